"""The facts that decide the result of a search, and the plan on disk that was found for them.

Imports no torch: a sweep is planned by what has been found already.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from matquant.config.cell import Cell, DType
from matquant.config.setup import Readout, SearchSpec
from matquant.errors import UserError
from matquant.notation import EQ_6, STRATEGIES, Plan, Rule
from matquant.runs.files import read_json
from matquant.runs.folder import RunDir

Strategy = Literal["pyramid", "dynamic_program", "evolution"]
Granularity = Literal["block", "linear"]


@dataclass(frozen=True)
class Search:
    """The settings of one search."""

    label: str
    """The label of the plan, which names its file."""
    strategy: Strategy
    budget: float
    granularity: Granularity = "block"
    """A unit is all quantized layers of a block, or one of them, fused ones (q, k, v and gate, up) together."""
    spec: SearchSpec = field(default_factory=SearchSpec)
    rule: Rule = EQ_6
    """The rule of the slices."""
    extra_precision: bool = False
    """With the overflow bucket."""

    @classmethod
    def of(cls, plan: Plan, spec: SearchSpec) -> Search:
        """The search that a plan such as `evolution_linear@3` asks for; UserError for one that asks for none."""
        name = plan.strategy or plan.layout or ""
        stem = name.removesuffix("_linear")
        if stem not in get_args(Strategy) or plan.budget is None:
            raise UserError(
                f"{plan} is not searched for; choose {', '.join((*STRATEGIES, 'pyramid'))}, each followed by @BITS, "
                "such as evolution@3"
            )
        granularity = "block" if name == stem else "linear"
        return cls(plan.label, cast("Strategy", stem), plan.budget, granularity, spec, plan.rule, plan.extra_precision)

    def facts(self, checksum: str, dtype: DType) -> dict[str, Any]:
        """Everything that decides what is found."""
        return {
            "checksum": checksum,
            "dtype": dtype,
            "strategy": self.strategy,
            "budget": self.budget,
            "granularity": self.granularity,
            **self.spec.model_dump(),
            **({} if self.rule == EQ_6 else {"slicing": self.rule}),
            **({"extra_precision": True} if self.extra_precision else {}),
        }

    def state_of(self, facts: Mapping[str, Any]) -> str:
        """The name of the file of a search's measurements.

        A dynamic program measures the same under every budget, so its searches for several budgets share one file.
        """
        facts = dict(facts)
        if self.strategy == "dynamic_program":
            facts |= dict.fromkeys(("budget", "generations", "offspring", "seed"))
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.strategy}-{digest}"


def require_text(cell: Cell) -> None:
    """Refuses a cell that no widths can be searched for."""
    if cell.objective is None or cell.data is None:
        raise UserError(
            f"cell {cell.id} has no nested checkpoint or no calibration text to search with; "
            "choose base=omniquant, base=qat or base=gptq"
        )


def found_plan(run: RunDir, readout: Readout, plan: Plan) -> Mapping[str, Any] | None:
    """The facts of the plan that was found for a cell's checkpoint as it is now; None if there is no such plan."""
    search = Search.of(plan, readout.search)
    facts = _read(run.plan(search.label))
    return facts if facts.get("search") == search.facts(recorded_checksum(run), readout.dtype) else None


def recorded_checksum(run: RunDir) -> str:
    """The checksum that stands in the description of a cell's checkpoint; empty where there is none."""
    return _read(run.description).get("checksum", "")


def _read(path: Path) -> Mapping[str, Any]:
    """The facts in a json file; none if it is not there, or is no such file."""
    try:
        facts = read_json(path)
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
