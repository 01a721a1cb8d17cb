"""Exports for HQQ in its own library: the weights of every layer, and logits of a text, beside ours.

    python -m benchmarks.engines.hqq            SmolLM2-135M rounded to nearest
    python -m benchmarks.engines.hqq CELL       a trained cell: its id, its folder, or overrides

Weights are compared by digest, so that they are the same to the last bit or not at all.  Both compute in float32 and
on one thread; logits may differ only where the two versions of torch do.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from benchmarks.engines.cells import trained_cell
from benchmarks.engines.environment import TORCH_CPU, Environment, skipped
from matquant.codes.nested import materialize
from matquant.models.loading import load_model
from matquant.notation import Plan
from matquant.serving.engines.hqq import HQQ, WEIGHTS
from matquant.serving.export import Trained, export_readout

ENGINE = Environment(
    "hqq",
    (TORCH_CPU, "transformers==5.23.0", "accelerate==1.15.0", "termcolor", "hqq==0.2.8.post1"),
    # Without it the installation compiles kernels for a GPU.
    environ={"DISABLE_CUDA": "1"},
)
SAFE = {"PYTHONSAFEPATH": "1"}
"""Beside the program lies this module, which has the library's name."""
PROGRAM = Path(__file__).with_name("in_hqq.py")
PLANS = ("int8", "int4", "int3", "int2", "int1")
TEXT = "Matryoshka dolls hold smaller dolls inside, and a checkpoint of this kind holds narrower ones."
SAME = 1e-4
"""The largest difference of a logit."""
HEAD = f"  {'plan':8}{'MB':>8}{'layers':>8}{'other weights':>15}{'largest difference of a logit':>31}"


class Row(NamedTuple):
    """The comparison of one export."""

    plan: str
    megabytes: float
    layers: int
    others: int
    """Layers whose weights are not ours to the last bit."""
    difference: float

    @property
    def is_met(self) -> bool:
        return self.layers > 0 and not self.others and self.difference <= SAME

    def __str__(self) -> str:
        verdict = "met" if self.is_met else "MISSED"
        numbers = f"{self.megabytes:8.1f}{self.layers:8}{self.others:15}{self.difference:31.2g}"
        return f"  {self.plan:8}{numbers}  {verdict}"


@torch.no_grad()
def compared(trained: Trained, plan: str, scratch: Path) -> Row:
    """Exports one read-out, and asks HQQ for what it reads."""
    folder = scratch / plan
    export_readout(trained, HQQ(), Plan.parse(plan), folder, dtype="float32")
    model, tokenizer = load_model(
        trained.cell.model, cache=trained.setup.paths.cache, dtype="float32", device=torch.device("cpu")
    )
    materialize(model, trained.checkpoint().layers, Plan.parse(plan))
    tokens = tokenizer(TEXT)["input_ids"]
    theirs = ENGINE.ask(PROGRAM, {"folders": [str(folder)], "tokens": tokens}, environ=SAFE)["digests"][str(folder)]
    ours = _digests(model, list(trained.checkpoint().layers))
    torch.set_num_threads(1)
    difference = model(torch.tensor([tokens])).logits[0] - load_file(folder / "logits.safetensors")["logits"]
    others = sum(ours.get(name) != theirs.get(name) for name in ours.keys() | theirs.keys())
    return Row(plan, (folder / WEIGHTS).stat().st_size / 1e6, len(ours), others, difference.abs().max().item())


def _digests(model: PreTrainedModel, names: Sequence[str]) -> dict[str, str]:
    weights = {name: model.get_submodule(name).get_parameter("weight").detach().contiguous() for name in names}
    return {name: hashlib.sha256(weight.numpy().data).hexdigest() for name, weight in weights.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cell", nargs="*", help="a cell id, the folder of a run, or overrides")
    words = parser.parse_args(arguments).cell
    rows: list[Row] = []
    with skipped(), tempfile.TemporaryDirectory() as scratch:
        ENGINE.python()
        trained = trained_cell(words, Path(scratch))
        print(f"{trained.cell.id} in HQQ's library, float32, one thread")
        print(HEAD)
        for plan in PLANS:
            rows.append(compared(trained, plan, Path(scratch)))
            print(rows[-1], flush=True)
    return 0 if all(row.is_met for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
