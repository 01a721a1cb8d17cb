"""The cell that a round trip exports: the one that is named, or a real model rounded to nearest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matquant.runs.checkpoint import has_checkpoint
from matquant.runs.tracking import NoTracker
from matquant.serving.export import Trained, find_trained

DEFAULT = ("model=smollm2_135m", "base=minmax", "bits=int8", "grid=group_64")


def trained_cell(words: Sequence[str], folder: Path) -> Trained:
    """The cell that was named, or SmolLM2 rounded to nearest, made now."""
    overrides = [word for word in words if "=" in word]
    trained = find_trained([word for word in words if "=" not in word], overrides or ([] if words else DEFAULT))
    if words:
        return trained
    from matquant.training.train import train

    paths = trained.setup.paths.model_copy(update={"runs": folder / "runs"})
    made = Trained(trained.cell, trained.setup.model_copy(update={"paths": paths}))
    if not has_checkpoint(made.run.checkpoint):
        train(made.cell, made.setup, NoTracker())
    return made
