"""Two ranks train what one process trains: losses, checkpoints and states on disk, on CPUs (gloo)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import run
from matquant.checkout import PROJECT
from matquant.errors import UserError
from matquant.parallel import distributed
from matquant.parallel.distributed import ALONE, World
from matquant.runs.checkpoint import load_layers
from matquant.runs.folder import RunDir
from matquant.runs.status import read_status
from matquant.runs.stopping import Stopped
from tests.ranks import FITS, ONE_SLICE, QAT, RESUMED, asked_to_stop, fit, run_dir, said
from tests.tiny import tiny_overrides

TWO = World(rank=1, size=2, local_rank=1)


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command on two ranks, which meet at a free port."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder in which two ranks have done all that tests/ranks.py asks of them; started once for all tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "ranks"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            with asked_to_stop(2):
                said(Stopped, lambda: fit(folder / "one_stopped", *RESUMED))
            done = torchrun("-m", "tests.ranks", str(folder))
            (folder / "errors.txt").write_text(done.stderr)
    assert (folder / "rank0.json").exists(), (folder / "errors.txt").read_text()
    return folder


def told(ranks: Path) -> list[dict[str, Any]]:
    return [json.loads((ranks / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def steps(run: RunDir) -> list[dict[str, Any]]:
    return [record for line in run.log.read_text().splitlines() if "step" in (record := json.loads(line))]


def losses(record: dict[str, Any]) -> dict[str, float]:
    """The loss, its terms, the learning rate and what was skipped: everything but norms of gradients."""
    return {name: value for name, value in record.items() if not name.startswith("gradient_norm")}


def checkpoint(run: RunDir) -> bytes:
    return (run.checkpoint / "nested.safetensors").read_bytes()


def assert_same_losses(run: RunDir, expected: RunDir, tolerance: float = 1e-4) -> None:
    ours, theirs = steps(run), steps(expected)
    assert [record["step"] for record in ours] == list(range(4))
    for record, other in zip(ours, theirs, strict=True):
        assert list(record) == list(other)
        # A weight that is rounded the other way, which one wrong last digit can do, is a step in the gradient.
        assert record["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-2)
        assert losses(record) == pytest.approx(losses(other), abs=tolerance), record["step"]


@pytest.mark.parametrize("name", FITS)
def test_the_losses_of_two_ranks_are_those_of_one(ranks, tmp_path, name):
    # Where activations are bfloat16, a batch of two is not multiplied in the same order as a batch of four.
    tolerance = 1e-3 if "bfloat16" in name else 1e-4
    assert_same_losses(run_dir(ranks / "two" / name, *FITS[name]), fit(tmp_path, *FITS[name]), tolerance)


def test_where_gradients_are_summed_in_the_same_order_two_ranks_end_in_the_bits_of_one(ranks, tmp_path):
    two, one = run_dir(ranks / "one_slice", *ONE_SLICE), fit(tmp_path, *ONE_SLICE, "base.micro_batch_size=2")
    assert [losses(record) for record in steps(two)] == [losses(record) for record in steps(one)]
    assert checkpoint(two) == checkpoint(one)


def test_the_ranks_count_in_a_gradient_norm_of_a_slice_as_micro_batches_do(ranks, tmp_path):
    micro = fit(tmp_path, "base.micro_batch_size=2")
    for record, other in zip(steps(run_dir(ranks / "two" / "nested")), steps(micro), strict=True):
        for part in ("int8", "int4", "int2"):
            assert record[f"gradient_norm/{part}"] == pytest.approx(other[f"gradient_norm/{part}"], rel=1e-3)


def test_one_trained_state_is_the_same_checkpoint_from_two_ranks_and_from_one(ranks):
    two, one = run_dir(ranks / "trained", *RESUMED), fit(ranks / "trained_one", *RESUMED)
    assert checkpoint(two) == checkpoint(one)
    assert two.log.read_text() == one.log.read_text()
    assert len(load_layers(one.checkpoint / "nested.safetensors")) == 6


def test_what_two_ranks_have_saved_one_goes_on_from(ranks, tmp_path):
    stopped = run_dir(ranks / "two_stopped", *RESUMED)
    assert [path.name for path in stopped.training_states()] == ["step-00000002"]
    assert len(list(stopped.training_states()[0].glob("*.distcp"))) == 2
    assert len(steps(stopped)) == 2
    assert_same_losses(fit(ranks / "two_stopped", *RESUMED), fit(tmp_path, *RESUMED))
    assert not stopped.state.exists()


def test_what_one_has_saved_two_ranks_go_on_from(ranks, tmp_path):
    assert_same_losses(run_dir(ranks / "one_stopped", *RESUMED), fit(tmp_path, *RESUMED))


def test_all_ranks_stop_when_one_is_asked_to(ranks):
    for rank in told(ranks):
        assert rank["stopped"] == rank["stopped_at_the_end"] == "stopped after a step, as asked; the state is saved"


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(ranks):
    for rank in told(ranks):
        assert rank["not finite"].startswith("step 1: not finite, as 1 steps before it (loss, int8, int4, int2)")
    (skipped,) = steps(run_dir(ranks / "nan", "base.max_skipped_steps=1"))
    assert skipped["skipped"] == 1


def test_ranks_agree(ranks):
    for rank in told(ranks):
        assert rank["mean"] == {"rank": 0.5, "one": 1.0}
        assert rank["any"] == [True, False]
        assert rank["broadcast"] == "from 0"


def test_what_ranks_cannot_share_is_refused_on_all_of_them(ranks):
    for rank in told(ranks):
        assert rank["indivisible"] == (
            "base.batch_size=3 cannot be shared evenly by 2 ranks; "
            "set it to 2 or 4, or start a number of ranks that divides it"
        )
        assert "only base=qat runs on several" in rank["minmax"]
    assert not list((ranks / "refused").rglob("*.status.json"))


def test_torchrun_trains_together_and_evaluates_once(tmp_path):
    overrides = [*tiny_overrides(tmp_path), *QAT, "readout.tasks=[piqa]"]
    done = torchrun("run.py", *overrides)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("MatQuant (QAT)") == 3
    assert done.stdout.count("report: ") == 1
    assert done.stderr.count("cell 1/1: ") == 1
    assert len(list(tmp_path.glob("results/*/*/*.json"))) == 3 * 2
    stages = [read_status(run_dir(tmp_path).status(stage)) for stage in ("train", "evaluate")]
    assert [stage and stage.state for stage in stages] == ["done", "done"]
    piqa = json.loads(next(tmp_path.glob("results/*/int8/piqa-*.json")).read_text())
    assert piqa["protocol"]["limit"] == 4


# --- alone -----------------------------------------------------------------------------------------------------------


def test_the_environment_describes_the_world(monkeypatch):
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert distributed.world() == ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"WORLD_SIZE=2, but the environment lacks RANK, .*; start .* with torchrun"):
        distributed.world()
    for name, value in zip(names, ("2", "1", "1", "localhost", "1234"), strict=True):
        monkeypatch.setenv(name, value)
    assert distributed.world() == TWO
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed.world() == ALONE


def test_one_process_joins_nothing_and_agrees_with_itself():
    ALONE.barrier()
    assert ALONE.any(True, False) == [True, False]
    assert ALONE.mean({"loss": 0.1}) == {"loss": 0.1}
    assert ALONE.broadcast("word") == "word"
    assert ALONE.share(3) == slice(0, 3)
    distributed.leave(ALONE)
    assert not distributed.dist.is_initialized()


@pytest.mark.parametrize(("batch", "remedy"), [(1, "set it to 2,"), (7, "set it to 6 or 8,")])
def test_a_batch_that_cannot_be_shared_is_refused_with_its_remedy(batch, remedy):
    with pytest.raises(UserError, match=remedy):
        TWO.share(batch)


def test_the_ranks_share_a_batch_without_overlap():
    shares: Sequence[slice] = [World(rank, 4, rank).share(8) for rank in range(4)]
    assert [list(range(8))[share] for share in shares] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_what_the_ranks_cannot_train_is_refused_before_the_first_cell_starts(tiny_study, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    run.check([tiny_study(*QAT), tiny_study("base=none")])
    with pytest.raises(UserError, match="only base=qat runs on several"):
        run.check([tiny_study(*QAT), tiny_study("base=omniquant")])
    with pytest.raises(UserError, match=r"base\.batch_size=5 cannot be shared"):
        run.check([tiny_study(*QAT, "base.batch_size=5")])
    assert not distributed.dist.is_initialized()
