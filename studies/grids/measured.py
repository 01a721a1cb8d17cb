"""The tables of docs/grids_*.md: python -m studies.grids.measured [EXPERIMENT ...] [OVERRIDE ...]

A block for each model and granularity, a row for each method on each grid, a column for each width: mean and standard
deviation over seeds, and the minutes of training.  Only cells that differ in nothing but their seed are averaged, and
the cells of every row are named below its block.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from analysis.frame.load import LoadedResults, load_frame
from analysis.frame.names import base_name, flatten, model_name, objective_text
from analysis.frame.summary import headline_results
from evaluation.results.metrics import LOG_PPLX
from evaluation.results.store import ResultStore
from matquant.config.cell import Cell
from matquant.config.grid_words import COVERED, all_words
from matquant.config.study import load_study
from matquant.notation import Plan

EXPERIMENTS = ("untrained", "gptq", "omniquant", "qat")
MODELS = ("smollm2_135m", "gemma3_270m")
COLUMNS = ("int8", "int6", "int4", "int3", "int2", "int2+ep")
MISSING = "–"


class Number(NamedTuple):
    """A measured log perplexity of one cell, with the seconds of its training."""

    cell: Cell
    plan: str
    nats: float
    seconds: float | None


class Row(NamedTuple):
    """The identity of a row: everything of its cells but the seed, and for explicit baselines but the width."""

    model: str
    granularity: str
    method: str
    grid: str
    rest: tuple[str, ...]
    """Every other setting; those that rows of one algorithm do not share are shown."""


def granularity(cell: Cell) -> str:
    size = None if cell.grid is None else cell.grid.group_size
    return "unquantized" if cell.grid is None else "per channel" if size is None else f"groups of {size}"


def facts_of(cell: Cell) -> tuple[str, tuple[str, ...]]:
    """The grid in words, without its granularity; and all other settings but objective and seed, without defaults."""
    if cell.grid is None:
        return "", ()
    _, *words = all_words(cell).split(", ")
    facts = cell.model_dump(mode="json", exclude_defaults=True, exclude={"objective", "seed"})
    return ", ".join(words), tuple(
        f"{key}={value}" for key, value in flatten(facts) if key not in COVERED and value != "{}"
    )


def row_of(cell: Cell, plan: str) -> Row:
    """The row of one number."""
    if cell.objective is None:
        return Row(cell.model.name, granularity(cell), "unquantized", "", ())
    part = Plan.parse(plan).default
    assert part is not None  # this study reads no mixed plans
    name = cell.objective.method(part)
    if cell.objective.is_nested:
        name = f"{name} {objective_text(cell.objective)}"
    return Row(cell.model.name, granularity(cell), f"{base_name(cell)}, {name}", *facts_of(cell))


def numbers_of(loaded: LoadedResults, cells: Iterable[Cell], store: ResultStore) -> Iterator[Number]:
    """Every log perplexity that was measured as the read-out asks, in the order of the cells, wide to narrow."""
    found = headline_results(loaded)
    found = found[found["task"] == LOG_PPLX].set_index(["cell_id", "plan"])["value"].to_dict()
    for cell in cells:
        for plan in ("full", *COLUMNS):
            if (cell.id, plan) in found:
                yield Number(cell, plan, float(found[cell.id, plan]), store.training_seconds(cell.id))


def rows_of(numbers: Iterable[Number]) -> dict[Row, dict[str, list[Number]]]:
    """The numbers of each row by column.  The int8 baseline read at its own width begins its slices' row too."""
    found: dict[Row, dict[str, list[Number]]] = {}
    for number in numbers:
        column = "int8" if number.cell.objective is None else number.plan
        rows = [row_of(number.cell, number.plan)]
        objective = number.cell.objective
        if objective is not None and not objective.is_nested and number.plan == "int8":
            rows.append(row_of(number.cell, "int4"))
        for row in rows:
            found.setdefault(row, {}).setdefault(column, []).append(number)
    # An int8 model alone is no row of explicit baselines: it begins the row of its slices.
    begun = {columns["int8"][0].cell.id for columns in found.values() if len(columns) > 1 and "int8" in columns}
    return {
        row: columns
        for row, columns in found.items()
        if list(columns) != ["int8"] or columns["int8"][0].cell.id not in begun
    }


def text_of(numbers: Sequence[Number]) -> str:
    """`5.081 ± 0.012 (3)`; a cell is counted once, and a number of one seed has no deviation."""
    if not numbers:
        return MISSING
    assert len({number.cell.model_copy(update={"seed": 0}).id for number in numbers}) == 1, (
        "they differ in more than seeds"
    )
    nats = [number.nats for number in {number.cell.id: number for number in numbers}.values()]
    return f"{nats[0]:.3f}" if len(nats) == 1 else f"{fmean(nats):.3f} ± {stdev(nats):.3f} ({len(nats)})"


def minutes(columns: Mapping[str, Sequence[Number]]) -> str:
    """The minutes of training for all columns together, each configuration once and its seeds on average."""
    seconds: dict[str, dict[str, float | None]] = {}
    for number in (number for numbers in columns.values() for number in numbers):
        config = number.cell.model_copy(update={"seed": 0}).id
        seconds.setdefault(config, {})[number.cell.id] = number.seconds
    known = [[value for value in of_config.values() if value is not None] for of_config in seconds.values()]
    return f"{sum(map(fmean, known)) / 60:.1f}" if known and all(known) else MISSING


def blocks(rows: Mapping[Row, Mapping[str, Sequence[Number]]], text: str) -> Iterator[str]:
    """The lines of every block: its table, and the cells of each row."""
    for model, size in dict.fromkeys((row.model, row.granularity) for row in rows):
        mine = {row: columns for row, columns in rows.items() if (row.model, row.granularity) == (model, size)}
        yield from (f"### {model_name(model)}, {size}: nats per token of {text} text", "")
        yield f"| row | method | grid | {' | '.join(COLUMNS)} | minutes |"
        yield "|" + "---|" * (len(COLUMNS) + 4)
        for place, (row, columns) in enumerate(mine.items(), start=1):
            shown = [text_of(columns.get(column, [])) for column in COLUMNS]
            grid = ", ".join(filter(None, (row.grid, *told_apart(row, mine))))
            yield f"| {place} | {row.method} | {grid} | {' | '.join(shown)} | {minutes(columns)} |"
        yield ""
        for place, columns in enumerate(mine.values(), start=1):
            ids = dict.fromkeys(number.cell.id for numbers in columns.values() for number in numbers)
            yield f"- row {place}: {', '.join(f'`{cell_id}`' for cell_id in ids)}"
        yield ""


def told_apart(row: Row, rows: Iterable[Row]) -> Iterator[str]:
    """The settings of a row that other rows of its algorithm do not share, such as `num_steps=16`."""
    algorithm = row.method.partition(",")[0]
    rivals = [set(other.rest) for other in rows if other.method.partition(",")[0] == algorithm]
    shared = set.intersection(*rivals)
    # The text is the same wherever one is read: that a row reads none is no setting of the others.
    texts = {fact for rival in rivals for fact in rival if fact.startswith("data.")}
    only = texts if len({fact.partition("=")[0] for fact in texts}) == len(texts) else set()
    return (fact.removeprefix("base.") for fact in row.rest if fact not in shared | only)


def main(words: Sequence[str]) -> None:
    """Prints the table of the named experiments, or of all on test text, for every model and granularity measured."""
    overrides = [word for word in words if "=" in word]
    named = [word for word in words if word not in overrides]
    found: dict[tuple[str, str], Number] = {}
    part = "test"
    for experiment in named or EXPERIMENTS:
        for model in MODELS:
            for grid in ("per_channel", "group_64"):
                study = load_study([f"experiment=grids/{experiment}", f"model={model}", f"grid={grid}", *overrides])
                store, readout = ResultStore(study.setup.paths.results), study.setup.readout
                part = readout.perplexity.part if readout.perplexity is not None else part
                loaded = load_frame(study.cells, study.setup, store)
                for sentence in loaded.problems:
                    print(sentence, file=sys.stderr)
                for number in numbers_of(loaded, study.cells, store):
                    found[number.cell.id, number.plan] = number
    print("\n".join(blocks(rows_of(found.values()), part)))


if __name__ == "__main__":
    main(sys.argv[1:])
