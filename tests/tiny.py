"""The command line of a tiny study, for tests and for the processes they start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matquant.config.setup import Paths

FOLDERS = ("runs", "results", "out", "cache")
TINY_GPTQ = ("base=gptq", "base.batch_size=2", "base.compute_dtype=float32")
TINY_OMNIQUANT = ("base=omniquant", "base.num_steps=2", "base.batch_size=2", "base.compute_dtype=float32")


def tiny_overrides(folder: Path) -> Sequence[str]:
    """The overrides of a study of the tiny random model, with all files in one folder."""
    paths = [f"paths.{name}={folder / name}" for name in FOLDERS]
    data = ["data.num_sequences=8", "data.sequence_length=32"]
    return ["model=tiny", *data, "grid=group_32", "readout=smoke", "tracking=none", "device=cpu", *paths]


def tiny_paths(folder: Path) -> Paths:
    """The same folder, as the paths of a setup."""
    return Paths(**{name: folder / name for name in FOLDERS})
