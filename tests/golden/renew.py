"""Renews the recorded values of this folder: python -m tests.golden.renew.  Look at the diff: it is the change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from matquant.config.cell import BaseSpec, Cell, GPTQBase, GridSpec, ModelSpec, OmniQuantBase, QATBase, Spec, TextSpec
from matquant.config.compose import choices
from matquant.config.setup import Paths, Readout, Tracking
from matquant.config.study import Study, load_study
from matquant.notation import Slice
from reference.slicing_reference import slice_code

FOLDER = Path(__file__).parent

CELLS = {
    "none": ["base=none"],
    "minmax int8": ["base=minmax", "bits=int8"],
    "omniquant int2": ["base=omniquant_plain", "bits=int2"],
    "omniquant int2 in bfloat16": ["base=omniquant_plain", "bits=int2", "base.compute_dtype=bfloat16"],
    "omniquant matquant": ["base=omniquant_plain", "bits=matquant"],
    "omniquant matquant in bfloat16": ["base=omniquant_plain", "bits=matquant", "base.compute_dtype=bfloat16"],
    "omniquant matquant gemma2 weights": ["base=omniquant_plain", "bits=matquant", "weights=gemma2"],
    "omniquant matquant per channel, seed 1": ["base=omniquant_plain", "bits=matquant", "grid=per_channel", "seed=1"],
    "gptq int4": ["base=gptq_plain", "bits=int4"],
    "gptq matquant": ["base=gptq_plain", "bits=matquant"],
    "gptq matquant in bfloat16": ["base=gptq_plain", "bits=matquant", "base.compute_dtype=bfloat16"],
    "gptq matquant as published": ["base=gptq_paper", "bits=matquant"],
    "qat int2": ["base=qat_plain", "bits=int2"],
    "qat int2 in bfloat16": ["base=qat_plain", "bits=int2", "base.compute_dtype=bfloat16"],
    "gptq matquant {8, 4, 3}": ["base=gptq_plain", "bits=matquant_843"],
    "tiny": ["model=tiny", "base=minmax", "bits=int8"],
}


def slices() -> dict[str, list[int]]:
    """Every code of an int8 parent at every width, by the reference in exact fractions."""
    parts = [Slice(bits, extra) for bits in range(1, 9) for extra in (False, True) if not (extra and bits == 8)]
    return {
        str(part): [slice_code(q, part.bits, parent_bits=8, extra_precision=part.extra_precision) for q in range(256)]
        for part in parts
    }


def spec_defaults() -> dict[str, dict[str, Any]]:
    """The default of every field that a stored id may rely on."""
    unions = [get_args(get_args(union)[0]) for union in (ModelSpec, TextSpec, BaseSpec)]
    kinds: list[type[Spec]] = [kind for union in unions for kind in union] + [GridSpec, Readout, Tracking, Paths]
    return {
        kind.__name__: {
            name: str(field.default) for name, field in kind.model_fields.items() if not field.is_required()
        }
        for kind in kinds
    }


def cell_ids() -> dict[str, str]:
    """The ids of some cells, by which their checkpoints and results are found."""
    return {name: load_study(overrides).cells[0].id for name, overrides in CELLS.items()}


def experiments(compose: Callable[[str], Study] = lambda override: load_study([override])) -> dict[str, list[str]]:
    """For every experiment its cells, as the rows of a table read them."""
    names = choices("experiment")
    return {name: [row(cell) for cell in compose(f"experiment={name}").cells] for name in names}


def row(cell: Cell) -> str:
    """A cell in a line: `gemma2_2b omniquant, {int8: 0.1, int2: 1} in int8, ffn, 1221 steps of 4 x 2048 tokens`, ..."""
    facts = [f"{cell.model.name} {cell.base.kind}"]
    if cell.objective is not None:
        terms = ", ".join(f"{term}: {term.weight:g}" for term in cell.objective.terms)
        facts += [f"{{{terms}}} in int{cell.objective.parent_bits}", f"{cell.scope}"]
    if isinstance(cell.base, OmniQuantBase | QATBase) and cell.data is not None:
        facts += [f"{cell.base.num_steps} steps of {cell.base.batch_size} x {cell.data.sequence_length} tokens"]
    if isinstance(cell.base, GPTQBase) and cell.data is not None:
        facts += [f"{cell.data.num_sequences} x {cell.data.sequence_length} tokens"]
    if isinstance(cell.base, OmniQuantBase | QATBase | GPTQBase):
        facts += [f"in {cell.base.compute_dtype}"]
    return ", ".join(facts)


def main() -> None:
    recorded = {"slices": slices, "spec_defaults": spec_defaults, "cell_ids": cell_ids, "experiments": experiments}
    for name, measure in recorded.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(measure(), indent=1) + "\n")


if __name__ == "__main__":
    main()
