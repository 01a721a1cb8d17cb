"""The speed of this CPU, for plans and forecasts: a product is timed, and a share of its speed expected of a stage."""

from __future__ import annotations

from typing import assert_never

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
from matquant.models.devices import product_speed

EFFICIENCY = 0.75
"""The share of the speed of one large product that whole stages reach.

Measured with SmolLM2 on two cores, with AVX2 and with AVX-512: OmniQuant with one slice 0.79, with three 0.74, a
read-out 0.74.
"""


def of_this_cpu(dtype: str) -> float:
    """Operations a second of a whole stage in a dtype, with all threads of this process."""
    return EFFICIENCY * product_speed(dtype)


def compute_dtype(cell: Cell) -> DType:
    """The dtype that most products of a cell's training are in."""
    match cell.base:
        case OmniQuantBase() | QATBase() | GPTQBase() as base:
            return base.compute_dtype
        case NoBase() | ForeignBase() | MinMaxBase() | SearchBase():
            return "float32"
        case _:
            assert_never(cell.base)
