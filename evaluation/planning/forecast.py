"""A forecast of the time that a study still takes on this machine: made before it starts, corrected by every stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import assert_never

from evaluation.board import duration
from evaluation.planning import speed
from evaluation.planning.work import (
    Size,
    comparing_operations,
    reading_operations,
    searching_operations,
    size_of,
    tokens_of_plan,
    tokens_of_task,
    training_operations,
)
from evaluation.protocol import missing
from evaluation.results.metrics import LOG_PPLX
from evaluation.results.store import ResultStore
from evaluation.stages import Kind, to_search
from matquant.config.cell import (
    Cell,
    ForeignBase,
    GPTQBase,
    MinMaxBase,
    NoBase,
    OmniQuantBase,
    QATBase,
    SearchBase,
)
from matquant.config.setup import Setup
from matquant.config.study import Study
from matquant.models.devices import pick_device
from matquant.runs.checkpoint import has_checkpoint
from matquant.runs.folder import RunDir

START_S = 4.0
"""The seconds in which a stage loads the model, the text and the tasks."""
REPORT_S = 10.0

Key = tuple[str, Kind]


@dataclass
class Forecast:
    """The time that is left.  `predicted`: the seconds of every stage that is still to come, by cell id and stage.

    Stages that have ended show how far predictions are off, and the rest is corrected by that.  If the machine's speed
    is not known (`is_guess`), there is no forecast before the first stage has ended.
    """

    predicted: dict[Key, float]
    is_guess: bool = False
    _expected: float = field(default=0.0, init=False)
    _taken: float = field(default=0.0, init=False)

    @contextmanager
    def stage(self, cell_id: str, stage: Kind) -> Iterator[None]:
        """Times a stage; a stage that fails is not to come any more, and corrects nothing."""
        start, expected = time.monotonic(), self.predicted.get((cell_id, stage), 0.0)
        try:
            yield
            if expected:
                self._expected += expected
                self._taken += time.monotonic() - start
        finally:
            self.predicted.pop((cell_id, stage), None)

    @property
    def seconds_left(self) -> float | None:
        """The seconds of all stages that are still to come and of the report; None if there is no forecast yet."""
        if not self.predicted or (self.is_guess and not self._expected):
            return None
        pace = self._taken / self._expected if self._expected else 1.0
        return pace * sum(self.predicted.values()) + REPORT_S

    def __str__(self) -> str:
        """Words such as `, about 9 min left in all`, to stand behind the name of a stage; empty without a forecast."""
        return "" if self.seconds_left is None else f", about {duration(self.seconds_left)} left in all"


def forecast(*studies: Study) -> Forecast:
    """The forecast of what is missing of studies, by arithmetic and the speed of a product on this machine."""
    on_cpu = pick_device(studies[0].setup).type == "cpu"
    predicted: dict[Key, float] = {}
    for study in studies:
        for key, seconds in _predicted(study, on_cpu=on_cpu):
            predicted[key] = predicted.get(key, 0.0) + seconds
    return Forecast(predicted, is_guess=not on_cpu)


def _predicted(study: Study, *, on_cpu: bool) -> Iterator[tuple[Key, float]]:
    setup = study.setup
    store = ResultStore(setup.paths.results)
    for cell in study.cells:
        gaps = missing(cell, setup.readout, store)
        if not gaps:
            continue
        size = size_of(cell, setup.paths.cache)
        share = _share_to_train(cell, setup, size)
        if share:
            pace = _speed(speed.compute_dtype(cell), on_cpu=on_cpu)
            yield (cell.id, "train"), START_S + share * training_operations(cell, size) / pace
        asked = sum(tokens_of_task(setup.readout, task) for tasks in gaps.values() for task in tasks)
        num_plans = asked / max(1, tokens_of_plan(setup.readout))
        pace = _speed(setup.readout.dtype, on_cpu=on_cpu)
        if plans := to_search(cell, setup, gaps):
            yield (cell.id, "search"), START_S + searching_operations(cell, setup.readout, size, plans) / pace
        num_texts = sum(LOG_PPLX in tasks for tasks in gaps.values())
        reading = reading_operations(setup.readout, size, num_plans)
        comparing = comparing_operations(cell, setup.readout, size, num_texts) if num_texts else 0.0
        yield (cell.id, "evaluate"), START_S + (reading + comparing) / pace


def _speed(dtype: str, *, on_cpu: bool) -> float:
    """Operations a second of whole stages; for a GPU a guess, which the first stage corrects."""
    return speed.of_this_cpu(dtype) if on_cpu else 1e14


def _share_to_train(cell: Cell, setup: Setup, size: Size) -> float:
    """The share of a cell's training that is still to do: an interrupted one has finished blocks, or steps, on disk."""
    run = RunDir(setup.paths.runs, cell.id)
    if has_checkpoint(run.checkpoint):
        return 0.0
    match cell.base:
        case NoBase() | ForeignBase():
            return 0.0
        case QATBase() as base:
            steps = [int(folder.name.removeprefix("step-")) for folder in run.training_states()]
            return 1 - max(steps, default=0) / base.num_steps
        case MinMaxBase() | SearchBase() | OmniQuantBase() | GPTQBase():
            return 1 - len(list(run.state.glob("*.safetensors"))) / size.layers
        case _:
            assert_never(cell.base)
