"""The work of two ranks for `test_distributed`, all in one start: `torchrun -m tests.ranks FOLDER`."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from torch import Tensor

from matquant.algorithms import qat
from matquant.config.cell import Cell
from matquant.config.setup import Setup
from matquant.config.study import load_study
from matquant.errors import UserError
from matquant.parallel import distributed
from matquant.runs import stopping
from matquant.runs.folder import RunDir
from matquant.runs.stopping import Stopped
from matquant.runs.tracking import NoTracker
from matquant.training.train import train
from tests.tiny import tiny_overrides

QAT = (
    "base=qat",
    "base.num_steps=4",
    "base.warmup_steps=2",
    "base.batch_size=4",
    "base.compute_dtype=float32",
)
FITS: Mapping[str, tuple[str, ...]] = {
    "nested": (),
    "taught_with_scales": ("distill=8to4_and_2", "base.train_scales=true", "base.temperature=2"),
    "only_scales_of_a_student": (
        "base.train_weights=false",
        "base.train_scales=true",
        "scope=ffn_attention",
        "distill=only_8to2",
        "extra_bit=on",
    ),
    "recomputed_and_clipped": (
        "base.activation_checkpointing=true",
        "base.micro_batch_size=1",
        "base.max_gradient_norm=1e-2",
    ),
    "bfloat16_tied_symmetric": (
        "model.dtype=bfloat16",
        "+model.config.tie_word_embeddings=true",
        "base.compute_dtype=bfloat16",
        "base.train_scales=true",
        "grid.symmetric=true",
    ),
    "between_searched_ends": ("base.clipping_init=search", "base.clipping_reach=1.5", "bits=int2"),
    # Of so many experts each rank finds tokens for other ones.
    "experts": (
        "model.architecture=mixtral",
        "+model.config.num_local_experts=16",
        "+model.config.num_experts_per_tok=1",
        "data.sequence_length=8",
    ),
}
# With one slice, and no norm to clip by, the ranks' gradients are summed in the order of micro-batches.
ONE_SLICE = ("bits=int2", "base.max_gradient_norm=null", "base.train_scales=true", "base.lr=1e-2")
RESUMED = FITS["taught_with_scales"]


def study(folder: Path, *overrides: str, base: Sequence[str] = QAT) -> tuple[Cell, Setup]:
    """A tiny cell with its files in a folder."""
    made = load_study([*tiny_overrides(folder), *base, *overrides])
    return made.cells[0], made.setup


def run_dir(folder: Path, *overrides: str) -> RunDir:
    cell, setup = study(folder, *overrides)
    return RunDir(setup.paths.runs, cell.id)


def fit(folder: Path, *overrides: str) -> RunDir:
    """Trains a tiny cell and returns its folder."""
    train(*study(folder, *overrides), NoTracker())
    return run_dir(folder, *overrides)


@contextmanager
def asked_to_stop(after: int, *, rank: int = 0) -> Iterator[None]:
    """Asks one rank, after a number of steps, to stop."""
    advance = qat.Training.advance

    def advance_and_ask(training: qat.Training) -> dict[str, float | int]:
        metrics = advance(training)
        if training.step == after and distributed.world().rank == rank:
            stopping.request()
        return metrics

    with mock.patch.object(qat.Training, "advance", advance_and_ask):
        try:
            yield
        finally:
            stopping.reset()


@contextmanager
def losing_track(*, rank: int) -> Iterator[None]:
    """Makes the loss of one rank not a number."""
    right = qat.next_token_loss

    def wrong(logits: Tensor, tokens: Tensor) -> Tensor:
        return right(logits, tokens) * (math.nan if distributed.world().rank == rank else 1.0)

    with mock.patch.object(qat, "next_token_loss", wrong):
        yield


def said(error: type[BaseException], act: Callable[[], object]) -> str:
    """The message of an error, which has to be raised."""
    try:
        act()
    except error as raised:
        return str(raised)
    raise AssertionError(f"no {error.__name__}")


def main(folder: Path) -> None:
    """Does everything that the tests look at; each rank writes what it has seen to rankN.json."""
    world = distributed.world()
    for name, overrides in FITS.items():
        fit(folder / "two" / name, *overrides)
    fit(folder / "one_slice", *ONE_SLICE)
    fit(folder / "one_stopped", *RESUMED)
    told = {
        "indivisible": said(UserError, lambda: fit(folder / "refused", "base.batch_size=3")),
        "minmax": said(UserError, lambda: train(*study(folder / "refused", base=["base=minmax"]), NoTracker())),
        "mean": world.mean({"rank": float(world.rank), "one": 1.0}),
        "any": world.any(world.rank == 1, False),
        "broadcast": world.broadcast(f"from {world.rank}"),
    }
    with asked_to_stop(2, rank=1):
        told["stopped"] = said(Stopped, lambda: fit(folder / "two_stopped", *RESUMED))
    with asked_to_stop(4):
        told["stopped_at_the_end"] = said(Stopped, lambda: fit(folder / "trained", *RESUMED))
    with losing_track(rank=1):
        told["not finite"] = said(FloatingPointError, lambda: fit(folder / "nan", "base.max_skipped_steps=1"))
    world.barrier()
    if world.is_main:
        shutil.copytree(folder / "trained", folder / "trained_one")
    world.barrier()
    fit(folder / "trained", *RESUMED)
    (folder / f"rank{world.rank}.json").write_text(json.dumps(told))
    distributed.leave(world)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
