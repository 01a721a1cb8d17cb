"""Tables of 1,000 cells x 20 plans x 7 tasks in four forms: at most 5 s, and against pandas' own Styler for the HTML.

    python -m benchmarks.tables            about a minute on one core, no model

Results are made in memory, so that drawing is timed and not the disk; reading result files is timed apart, on a tenth
of them.  Comparisons of documents are not part of it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from analysis.frame.load import expected_tasks, frame_of, load_frame
from analysis.frame.summary import summary
from analysis.tables.drawing import to_html, to_latex, to_markdown
from analysis.tables.summary_table import summary_table
from benchmarks.timing import print_ratios
from evaluation.results.metrics import LOG_PPLX
from evaluation.results.store import Result, ResultStore
from matquant.config.cell import Cell
from matquant.config.setup import Readout, Setup
from matquant.config.study import load_study

T = TypeVar("T")
NUM_CELLS, NUM_PLANS = 1000, 20
LIMIT_S = 5.0
RIVAL = "HTML by pandas' Styler (rival)"


def cells_and_setup() -> tuple[list[Cell], Setup]:
    """MatQuant cells that differ in the weights of their objective, and a read-out of 20 plans and 7 tasks."""
    layouts = ("pyramid", "reverse_pyramid", "increasing", "decreasing")
    plans = [f"int{bits}" for bits in (8, 6, 4, 2)] + [f"{layout}@{b}" for layout in layouts for b in (3, 4, 5, 6)]
    assert len(plans) == NUM_PLANS
    study = load_study(["model=tiny", "data=embedded", f"readout.plans=[{','.join(plans)}]"])
    template = study.cells[0].model_dump(mode="json")
    cells = []
    for number in range(NUM_CELLS):
        terms = {"int8": 1 + number / NUM_CELLS, "int4": 1.0, "int2": 1.0}
        cells.append(Cell.model_validate({**template, "objective": {"parent_bits": 8, "terms": terms}}))
    return cells, study.setup


def results_of(cells: list[Cell], readout: Readout) -> Iterator[Result]:
    """Every result that the read-out asks for."""
    for cell in cells:
        for plan in readout.plans_of(cell):
            for task in expected_tasks(readout):
                metric, value = (LOG_PPLX, 3.5) if task == LOG_PPLX else ("acc", 0.5)
                protocol = {"task": task, "limit": readout.limit, "dtype": readout.dtype}
                overhead = {"grid_bits": 1.0, "overflow_bits": 0.0, "model_bits": 9.0}
                metrics = {metric: value, f"{metric}_stderr": 0.01}
                yield Result(cell.id, plan.label, task, protocol, metrics, 34, plan.bits, overhead, "checkpoint")


def main() -> None:
    cells, setup = cells_and_setup()
    results = list(results_of(cells, setup.readout))
    seconds: dict[str, float] = {}

    def timed(name: str, action: Callable[[], T]) -> T:
        start = time.perf_counter()
        value = action()
        seconds[name] = time.perf_counter() - start
        return value

    loaded = timed("one tidy frame out of the results", lambda: frame_of(results, cells, setup.readout))
    assert not loaded.problems
    assert loaded.missing.empty
    rows = timed("numbers: one row a read-out", lambda: summary(loaded))
    table = timed("text", lambda: summary_table(rows, loaded.tasks))
    timed("markdown", lambda: to_markdown(table))
    timed("HTML", lambda: to_html(table))
    timed("LaTeX", lambda: to_latex(table))
    timed("CSV", lambda: rows.to_csv(index=False))
    total = sum(taken for name, taken in seconds.items() if not name.startswith("one tidy"))
    timed(RIVAL, lambda: rows.style.hide(axis="index").to_html())
    print(f"{len(cells)} cells x {NUM_PLANS} plans x {len(expected_tasks(setup.readout))} tasks, {len(rows)} rows")
    print_ratios(seconds, rival=RIVAL)
    print(f"  tables in four forms: {total:.2f} s, target {LIMIT_S:g} s: {'met' if total <= LIMIT_S else 'MISSED'}")
    with tempfile.TemporaryDirectory() as folder:
        few = cells[: NUM_CELLS // 10]
        store = ResultStore(Path(folder))
        for result in results_of(few, setup.readout):
            store.put(result, {"doc_id": [0]})
        start = time.perf_counter()
        load_frame(few, setup, store)
        print(f"  reading the files of {len(few)} cells: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
