"""The cells of `base=foreign`: what a model's own files say takes the place of what would be configured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matquant.config.cell import Cell, ForeignModel
from matquant.config.home import at_home
from matquant.config.setup import Setup, holds
from matquant.errors import UserError
from matquant.notation import STORED, Plan, Slice
from matquant.stored.foreign import describe

KIND = "foreign"
OF_ITS_FILES = ("bits", "weights", "distill", "extra_bit", "slicing", "scope", "grid", "data", "seed")
"""The axes that a foreign model has been quantized with, or without, long ago."""


def foreign_model(model: Mapping[str, Any], paths: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a model of `base=foreign`: its name and path as configured, and everything else as it is stored."""
    if model.get("kind") != "folder":
        name = model.get("repo") or model.get("name")
        raise UserError(
            f"base=foreign reads a folder or a GGUF file, and model={name} is neither; download it with "
            "`hf download OWNER/NAME --local-dir FOLDER` and choose model=folder model.path=FOLDER model.name=NAME"
        )
    files, foreign = describe(at_home(str(model["path"])))
    memo = at_home(str(paths["cache"])) / "digests"
    return {
        **{key: value for key, value in model.items() if key not in ("kind", "path")},
        "kind": KIND,
        "path": str(model["path"]),
        "content": files.content(memo),
        "format": foreign.format,
        "tool": foreign.tool,
        "widths": foreign.widths,
        "average": round(foreign.average, 4),
        "grid": foreign.grid,
        "unquantized": foreign.unquantized,
    }


def check_foreign(cells: Sequence[Cell], setup: Setup, typed: Iterable[str]) -> None:
    """Refuses axes that were typed for foreign models alone, and widths that none of the cells has."""
    foreign = [cell.model for cell in cells if isinstance(cell.model, ForeignModel)]
    if not foreign or len(foreign) < len(cells):
        return  # the words are for the other cells, and are left out here as they are of base=none
    typed = set(typed)
    for model in foreign:
        for axis in OF_ITS_FILES:
            if set_here := sorted(key for key in typed if key.partition(".")[0] == axis):
                raise UserError(
                    f"{set_here[0]} is not for base=foreign: {model.name} was quantized by somebody else, as its files "
                    f"say ({words_of(model)}); leave {set_here[0]} out{_or_widths(model) if axis == 'bits' else ''}"
                )
    if "readout.slicing" in typed:
        raise UserError("readout.slicing is not for base=foreign, whose files are read by their own rule; leave it out")
    if "readout.plans" not in typed:
        return
    for text in setup.readout.plans:
        if not any(holds(model, Plan.parse(text)) for model in foreign):
            model = foreign[0]
            raise UserError(
                f"readout.plans names {text}, and {model.path} ({words_of(model)}) is read at {_widths(model)}; "
                "leave it out of readout.plans"
            )


def words_of(model: ForeignModel) -> str:
    """`gptq, gptqmodel 2.2.0, int4, groups of 128`."""
    return ", ".join(filter(None, (model.format, model.tool, _widths(model), model.grid)))


def _widths(model: ForeignModel) -> str:
    return ", ".join(str(Slice(bits)) for bits in model.widths) or STORED


def _or_widths(model: ForeignModel) -> str:
    if len(model.widths) < 2:
        return ""
    return f", and choose among its widths with readout.plans=[{_widths(model).replace(' ', '')}]"
