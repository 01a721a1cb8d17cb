"""The name of a row: the paper's name of a read-out, its base algorithm, and facts that tell it from others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from evaluation.results.metrics import LOG_PPLX, TASK_AVG
from evaluation.sources.table import PAPER_TASKS
from matquant.config.cell import ForeignModel
from matquant.config.grid_words import COVERED, all_words, ends_words, grid_words

if TYPE_CHECKING:
    from matquant.config.cell import Cell
    from matquant.config.setup import Readout
    from matquant.notation import Objective, Plan

IDENTITY_COLUMNS = (
    *("cell_id", "config_id", "model", "base", "scope", "objective", "weights", "parent_bits", "method", "label"),
    *("plan", "bits", "extra_precision", "interpolated", "seed", "name", "grid", "ends"),
)
"""`name` is the label without the grid, which a label ends in where the grids of a study differ."""
TUNING_TEXT = "read on tuning text"
"""The fact that follows every name whose log perplexity is of the text that defaults are chosen on."""
BASE_NAMES = {
    "minmax": "MinMax",
    "search": "Search",
    "omniquant": "OmniQuant",
    "qat": "QAT",
    "gptq": "GPTQ",
    "foreign": "Foreign",
}
FOREIGN_NAMES = {
    "gptq": "GPTQ file",
    "awq": "AWQ file",
    "hqq": "HQQ file",
    "gguf": "GGUF file",
    "matgptq": "MatGPTQ",
    "any-precision": "Any-Precision",
    "anybcq": "AnyBCQ",
    "matquant": "nested folder",
}
"""The formats of foreign models, as they are printed."""
MODEL_NAMES = {
    "gemma2_2b": "Gemma-2 2B",
    "gemma2_9b": "Gemma-2 9B",
    "gemma3_270m": "Gemma 3 270M",
    "mistral_7b": "Mistral 7B",
    "smollm2_135m": "SmolLM2-135M",
}
"""The models of the paper and the embedded ones, as they are printed; any other is called by its own name."""
TASK_NAMES = {
    **{name: task.printed for name, task in PAPER_TASKS.items()},
    TASK_AVG: "Task Avg",
    LOG_PPLX: "log pplx",
}


WEIGHTS_NAMES: Mapping[tuple[float, ...], str] = {
    (0.1, 0.1, 1.0): "gemma2 λ",
    (0.2, 0.2, 1.0): "lambda_02 λ",
    (0.3, 0.3, 1.0): "lambda_03 λ",
    (0.4, 0.4, 1.0): "lambda_04 λ",
    (0.5, 0.5, 1.0): "lambda_05 λ",
}
"""The names of loss weights of int8, int4 and int2: the files of conf/weights, as they are typed."""
WEIGHTS = re.compile(r"\{(\S+: [^{}:,]+(?:, \S+: [^{}:,]+)*)\}")
HEAD = re.compile(rf".*? \((?:{'|'.join(BASE_NAMES.values())})\)")
"""The beginning of a label up to its algorithm; that of a foreign model's ends before the first comma."""

Read = tuple["Cell", "Plan"]
"""A cell, and a plan that it is read at."""


def reads_of(cells: Sequence[Cell], readout: Readout) -> list[Read]:
    """Everything that a read-out asks for."""
    return [(cell, plan) for cell in cells for plan in readout.plans_of(cell)]


def identities(reads: Sequence[Read], readout: Readout) -> dict[tuple[str, str], dict[str, Any]]:
    """The IDENTITY_COLUMNS of every read, by cell id and plan."""
    cells = list({id(cell): cell for cell, _ in reads}.values())
    ids = {id(cell): cell.id for cell in cells}  # an id is a hash of everything, worked out once a cell
    configs = {cell_id: _without_seed(cell).id for cell, cell_id in zip(cells, ids.values(), strict=True)}
    names = [_row_name(cell, plan, readout) for cell, plan in reads]
    rivals: dict[tuple[str, str, str], dict[str, Cell]] = {}
    for (cell, _), name in zip(reads, names, strict=True):
        rivals.setdefault(name, {})[ids[id(cell)]] = cell
    differing = {
        group_ids: _differing_facts(group, configs)
        for group_ids, group in {tuple(group): group for group in rivals.values()}.items()
    }
    of_base = {
        base: _differing_words([one for one in cells if one.base.kind == base]) if base != "foreign" else []
        for base in _bases(cells)
    }
    found = {}
    of_text = [TUNING_TEXT] if readout.perplexity is not None and readout.perplexity.part == "tuning" else []
    groups = {name: differing[tuple(group)] for name, group in rivals.items()}
    for (cell, plan), name in zip(reads, names, strict=True):
        cell_id = ids[id(cell)]
        facts = groups[name].get(cell_id, ())
        short = [name[1], *facts]
        found[cell_id, plan.label] = {
            "cell_id": cell_id,
            **_identity(cell, plan, readout),
            "config_id": configs[cell_id],
            "name": ", ".join([*short, *of_text]),
            "label": ", ".join(filter(None, [*short, *(words(cell) for words in of_base[cell.base.kind]), *of_text])),
        }
    return found


def _bases(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.base.kind for cell in cells))


def _differing_words(cells: Sequence[Cell]) -> list[Callable[[Cell], str]]:
    """The parts of a grid in which the quantized cells of one algorithm differ: labels end in them.

    Those in which only algorithms differ stand in the tables' column: labels name the algorithm already.
    """
    quantized = [cell for cell in cells if cell.base.kind != "none"]
    return [words for words in (grid_words, ends_words) if len({words(cell) for cell in quantized}) > 1]


def _row_name(cell: Cell, plan: Plan, readout: Readout) -> tuple[str, str, str]:
    """Model, method with base algorithm, and plan; rows that share them are told apart by the facts that differ."""
    method = method_name(cell, plan, readout)
    named = f"{method} ({base_name(cell)})" if base_name(cell) and cell.base.kind != "none" else method
    return cell.model.name, named, plan.label


def _identity(cell: Cell, plan: Plan, readout: Readout) -> dict[str, Any]:
    objective, part = cell.objective, plan.default
    return {
        "model": cell.model.name,
        "base": cell.base.kind,
        "scope": cell.scope or "",
        "objective": None if objective is None else objective_text(objective),
        "weights": "" if objective is None else weights_text(objective),
        "parent_bits": None if objective is None else objective.parent_bits,
        "method": method_name(cell, plan, readout),
        "plan": plan.label,
        "bits": plan.bits,
        "extra_precision": plan.extra_precision,
        "interpolated": objective is not None and part is not None and objective.is_interpolated(part),
        "seed": cell.seed,
        "grid": grid_words(cell),
        "ends": ends_words(cell),
    }


def method_name(cell: Cell, plan: Plan, readout: Readout) -> str:
    """The paper's name of the row; a model without quantization is called by the dtype it was evaluated in."""
    if isinstance(cell.model, ForeignModel):
        return " ".join(filter(None, (FOREIGN_NAMES.get(cell.model.format, cell.model.format), _foreign_plan(plan))))
    if cell.objective is None:
        return readout.dtype
    if plan.layout is not None:
        return f"Mix'n'Match {plan.layout.replace('_', ' ')}{cell.objective.rules(plan.rule)}"
    if plan.strategy is not None:
        return f"Mix'n'Match {plan.strategy.replace('_', ' ')}{cell.objective.rules(plan.rule)}"
    if plan.layers is not None:
        return f"Searched {plan.label}"
    assert plan.default is not None
    return cell.objective.method(plan.default)


def _foreign_plan(plan: Plan) -> str:
    return plan.layout.replace("_", " ") if plan.layout is not None else ""


def base_name(cell: Cell) -> str:
    """The algorithm of a row; of a foreign model the program that quantized it, as far as its files say."""
    if isinstance(cell.model, ForeignModel):
        return cell.model.tool
    return BASE_NAMES.get(cell.base.kind, cell.base.kind)


def model_name(model: str) -> str:
    return MODEL_NAMES.get(model, model)


def objective_text(objective: Objective) -> str:
    """`{int8: 0.1, int4: 0.1, int2: 1}`: the loss terms with their weights, as a configuration writes them."""
    return "{" + ", ".join(f"{term}: {term.weight:g}" for term in objective.terms) + "}"


def head_of(label: str) -> str:
    """A label without the facts that tell it from others: `MatQuant [8, 4, 8->2] (OmniQuant)`."""
    found = HEAD.match(label)
    if found is not None:
        return found[0]
    depth = 0
    for place, character in enumerate(label):
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            return label[:place]
    return label


def named_weights(text: str) -> str:
    """A label with the names of its loss weights: `gemma2 λ` for `{int8: 0.1, int4: 0.1, int2: 1}`."""
    return WEIGHTS.sub(lambda found: _weights_name(found[1]), text)


def _weights_name(terms: str) -> str:
    """`gemma2 λ`, `uniform λ of 8, 4, 3`; weights without a name are told by their values, `λ 0.7/1 of 8, 2`."""
    weights = dict(term.rsplit(": ", 1) for term in terms.split(", "))
    widths, values = [term.removeprefix("int") for term in weights], tuple(map(float, weights.values()))
    usual = widths == ["8", "4", "2"]
    if len(set(values)) == 1:
        name = "uniform λ"
    else:
        name = (WEIGHTS_NAMES.get(values) if usual else None) or f"λ {'/'.join(weights.values())}"
    return name if usual else f"{name} of ({', '.join(widths)})"


def weights_text(objective: Objective) -> str:
    """`0.1, 0.1, 1`: lambda of every width, widest first, as the paper's tables write it; empty for a single width."""
    widths = {term.slice.bits: term.weight for term in objective.terms}
    ordered = [f"{widths[bits]:g}" for bits in sorted(widths, reverse=True)]
    return ", ".join(ordered) if len(ordered) > 1 else ""


def _without_seed(cell: Cell) -> Cell:
    return cell.model_copy(update={"seed": 0})


def _differing_facts(rivals: Mapping[str, Cell], configs: Mapping[str, str]) -> dict[str, list[str]]:
    """The facts of each cell, by its id, that differ from those of other cells of its name; the seed is left out.

    Facts that the words for its grid tell are left to these, as long as no two configurations are then called alike.
    """
    if len({configs[cell_id] for cell_id in rivals}) < 2:
        return {}
    facts = {cell_id: dict(_facts(rival)) for cell_id, rival in rivals.items()}
    keys = dict.fromkeys(key for of_cell in facts.values() for key in of_cell)
    differing = {key for key in keys if len({of_cell.get(key) for of_cell in facts.values()}) > 1}
    told = differing - set(COVERED)
    distinct = {
        (*(facts[cell_id].get(key) for key in sorted(told)), all_words(rival)) for cell_id, rival in rivals.items()
    }
    if len(distinct) == len({configs[cell_id] for cell_id in rivals}):
        differing = told
    return {
        cell_id: [text if key == "objective" else f"{key}={text}" for key, text in of_cell.items() if key in differing]
        for cell_id, of_cell in facts.items()
    }


def _facts(cell: Cell) -> Iterator[tuple[str, str]]:
    """Every fact of a cell but its seed, as dotted keys and text."""
    if cell.objective is not None:
        yield "objective", objective_text(cell.objective)
    if isinstance(cell.model, ForeignModel):  # what its name does not say, and the folder that tells it from others
        yield "file", PurePath(cell.model.path).name
        yield "model.grid", cell.model.grid
        yield "model.unquantized", cell.model.unquantized
        return
    yield from flatten(cell.model_dump(mode="json", exclude={"objective", "seed"}))


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as `("base.num_steps", "48")` pairs."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
