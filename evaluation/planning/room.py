"""The room that a study takes on the disk, and whether it is there."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from evaluation.planning.work import Size, calibration_tokens, size_of
from matquant.config.cell import (
    Cell,
    DType,
    ForeignBase,
    GPTQBase,
    MinMaxBase,
    NoBase,
    OmniQuantBase,
    QATBase,
    SearchBase,
)
from matquant.config.setup import Setup
from matquant.errors import UserError
from matquant.runs.folder import RunDir

log = logging.getLogger(__name__)
BYTES: dict[DType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Room:
    """Bytes of one cell: those that stay; beside them, those that its training needs for certain, and may need."""

    checkpoint: float
    certain: float = 0.0
    likely: float = 0.0


def room_of(cell: Cell, setup: Setup, size: Size) -> Room:
    """The room for a cell's checkpoint, and while it is trained for its pieces, states and activations."""
    checkpoint = _checkpoint_bytes(cell, size)
    match cell.base:
        case NoBase() | ForeignBase():
            return Room(0.0)
        case MinMaxBase() | SearchBase():
            return Room(checkpoint, certain=checkpoint, likely=checkpoint)
        case OmniQuantBase() as base:
            one = _activations(cell, size, base.activation_dtype) if setup.activations == "disk" else 0.0
            half = calibration_tokens(cell) * size.hidden * BYTES[base.compute_dtype] * 3 if one else 0.0
            return Room(checkpoint, certain=max(checkpoint, one), likely=checkpoint + 6 * one + half)
        case GPTQBase() as base:
            one = _activations(cell, size, base.activation_dtype) if setup.activations == "disk" else 0.0
            return Room(checkpoint, certain=max(checkpoint, one), likely=checkpoint + 3 * one)
        case QATBase():
            # A state is a weight and AdamW's two moments in float32, and the next one is written beside it.  A training
            # shorter than save_every_min writes none.
            return Room(checkpoint, likely=2 * 12 * size.in_scope)
        case _:
            assert_never(cell.base)


def _checkpoint_bytes(cell: Cell, size: Size) -> float:
    """A byte for each code, and a scale and a zero for each group."""
    if cell.grid is None:
        return 0.0
    group = cell.grid.group_size or size.hidden
    return size.in_scope * (1 + 2 * BYTES[cell.grid.scale_dtype] / group)


def _activations(cell: Cell, size: Size, dtype: DType) -> float:
    """One set of the hidden states of all calibration sequences."""
    return calibration_tokens(cell) * size.hidden * BYTES[dtype]


def require_room(folder: Path, cells: Sequence[tuple[Cell, Setup]]) -> None:
    """Refuses cells whose checkpoints have no room in a folder for certain; warns where room may be short.

    Cells are trained one after the other at least: their checkpoints add up, what lies beside one does not.
    """
    to_train = [(cell, setup) for cell, setup in cells if not RunDir(folder, cell.id).description.exists()]
    rooms = [room_of(cell, setup, size_of(cell, setup.paths.cache)) for cell, setup in to_train]
    if not rooms:
        return
    there = sum(_bytes_in(RunDir(folder, cell.id).path) for cell, _ in to_train)
    kept = sum(room.checkpoint for room in rooms) - there
    free = shutil.disk_usage(_existing(folder)).free
    certain, likely = (kept + max(getattr(room, name) for room in rooms) for name in ("certain", "likely"))
    number = f"{len(rooms)} cell{'s' if len(rooms) > 1 else ''}"
    if free < certain:
        raise UserError(
            f"{folder} needs about {_amount(certain)} for {number} and has {_amount(free)} free; "
            "set paths.runs to a disk with room, or free some"
        )
    if free < likely:
        log.warning(
            "%s may need %s for %s and has %s free: where it runs out, free some, and the same command goes on",
            folder,
            _amount(likely),
            number,
            _amount(free),
        )


def _existing(folder: Path) -> Path:
    """The folder, or the first one above it that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _bytes_in(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _amount(number: float) -> str:
    """Bytes as a person reads them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if number >= 0.1 * factor:
            return f"{number / factor:.1f} {unit}"
    return f"{max(0.0, number) / 1e3:.1f} kB"
