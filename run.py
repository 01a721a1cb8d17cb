"""One cell, or all cells of an experiment, from configuration to table: train, evaluate every slice, report.

    python run.py                      the default cell, offline, on the embedded model
    python run.py --help               the axes and their choices
    torchrun --nproc_per_node=8 run.py base=qat ...    one model trained by several GPUs together

The composition root: it alone imports `matquant`, `evaluation` and `analysis` together.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from evaluation.objective import as_returned, values_of
from evaluation.stages import check_agent, run_cell, untimed
from matquant.command import multirun
from matquant.command.dispatch import say_where
from matquant.command.terminal import ended, fail, log_to_stderr, say
from matquant.config.compose import check_line, sweep_points
from matquant.config.study import Study, load_study
from matquant.config.sweep import Point, is_of_hydra, joint
from matquant.config.syntax.grammar import is_searched, sweeper_of
from matquant.config.syntax.listing import listing
from matquant.config.syntax.overrides import for_hydra, understood
from matquant.disk import in_words
from matquant.errors import FailedCellsError, UserError
from matquant.parallel.ranks import num_ranks
from matquant.runs.files import require_writable
from matquant.runs.stage_runner import is_main
from matquant.runs.stopping import at_safe_points, interrupts_win, remember_interrupts

if TYPE_CHECKING:
    from evaluation.planning.forecast import Forecast

log = logging.getLogger("matquant")
PATIENCE_S = 100.0
"""Seconds that a job of Hydra's launcher may take to a safe point: less than hydra.launcher.signal_delay_s."""
MULTIRUN = {"-m", "--multirun"}
_shared: Forecast | None = None
"""The forecast of all points of a multirun in this process."""


def main() -> None:
    log_to_stderr()
    remember_interrupts()
    sys.exit(ended(_run))


def _run() -> int:
    """Refuses a bad command line in one sentence before anything starts, then hands over to Hydra; the exit status."""
    arguments = sys.argv[1:]
    if (asked := listing(arguments)) is not None:
        print(asked)
        return 0
    flags = {argument for argument in arguments if argument.startswith("-")}
    if not flags <= MULTIRUN:
        sys.argv[1:] = check_line(arguments)
        _hydra_main()
        return 0
    typed = [word for word in arguments if not word.startswith("-")]
    overrides = understood(typed, swept=bool(flags))
    # Hydra wants a flag before or after all overrides, not in between.
    sys.argv[1:] = [*flags, *(for_hydra(overrides) if flags else overrides)]
    check_folders_of_hydra(overrides)
    check_agent(None if flags else load_study(overrides))
    if flags and num_ranks() == 1:
        return _sweep(typed, overrides)
    points = [(point, load_study(point)) for point in (sweep_points(overrides) if flags else [overrides])]
    say_where(points[0][1].setup.paths)
    join(lambda: check([study for _, study in points]))
    _hydra_main()
    if flags and is_main():
        _report_jointly(points, typed)
    part()
    return 0


def _sweep(typed: Sequence[str], overrides: Sequence[str]) -> int:
    """Runs the points of a multirun, here or as jobs, and ends in a joint report; the exit status."""
    global _shared
    from evaluation.planning.points import lead
    from slurm.hydra_points import install, raising

    leader = multirun.current = lead(overrides)
    for study, _ in joint(leader.runnable)[:1]:
        say_where(study.setup.paths)
    if not is_searched(overrides) and not any(word.startswith("hydra/launcher=") for word in overrides):
        _shared = _outlook([study for study, _ in joint(leader.runnable)])
        leader.is_forecast = _shared is not None
    install()
    ended_early: UserError | None = None
    try:
        with raising(sweeper_of(overrides)):
            _hydra_main()
    except UserError as error:
        ended_early = error
    except KeyboardInterrupt:
        print(f"\n{leader.interrupted()}", file=sys.stderr)
        raise
    finally:
        multirun.current = None
    if ended_early is None or leader.measured:
        _report_jointly(leader.composed, None if is_searched(overrides) else typed)
    if (best := leader.best()) is not None:
        print(best)
    if (error := ended_early or leader.error()) is not None:
        raise error
    return 0


def check_folders_of_hydra(overrides: Sequence[str]) -> None:
    """Refuses typed folders of Hydra's own that cannot be made; Hydra would end in a traceback."""
    for key, _, folder in (override.partition("=") for override in overrides):
        if key in ("hydra.run.dir", "hydra.sweep.dir") and "${" not in folder:
            require_writable(Path(folder.strip("'\"")), key)


def join(check: Callable[[], None]) -> None:
    """Lets the main rank check for all; other ranks wait for it, and log nothing from here on."""
    if num_ranks() == 1:
        check()
        return
    from matquant.parallel.distributed import world  # imports torch, which a process that is alone may not need

    if world().is_main:
        check()
    else:
        logging.disable(logging.INFO)
    world().barrier()


def part() -> None:
    """Lets all ranks leave together: one that left early would look like one that died."""
    if num_ranks() > 1:
        from matquant.parallel.distributed import leave, world

        leave(world())


def check(studies: Sequence[Study]) -> None:
    """Refuses studies that cannot be run, before the first cell of the first of them starts."""
    from evaluation.planning import preflight

    preflight.check(studies)
    if num_ranks() == 1:
        return
    from matquant.parallel.distributed import check_ranks, world
    from matquant.training.train import to_train

    for study in studies:
        for cell in study.cells:
            if to_train(cell, study.setup):
                check_ranks(cell, world())


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def _hydra_main(_: DictConfig) -> float | list[float] | None:
    """One command line, or one point of a multirun: its objective, for a sweeper."""
    log_to_stderr()  # once more: a job of Hydra's launcher starts here
    overrides = list(HydraConfig.get().overrides.task)
    is_point = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        study = load_study(overrides)
        with in_words(dict(study.setup.paths)), interrupts_win(), at_safe_points(PATIENCE_S):
            run_study(study, None if is_point else overrides)
            return as_returned(_values(study, say=not is_point)) if is_main() else None
    except UserError as error:
        if is_point and num_ranks() == 1:
            raise  # to the launcher of the multirun, which goes on with the other points
        fail(error)  # not raised through Hydra, which would print a traceback


def _values(study: Study, *, say: bool) -> list[float]:
    values = values_of(study)
    if say:
        for goal, value in zip(study.goals, values, strict=True):
            print(f"{goal}: {value:.6g}")
    return values


def run_study(study: Study, overrides: Sequence[str] | None) -> None:
    """Trains and evaluates what is missing, cell by cell, and writes the report; a point (None) has none of its own.

    A cell that fails does not keep the others from running; the failures are named at the end.  Of several ranks all
    take part in training, and the main one does the rest.
    """
    failures: dict[str, Exception] = {}
    outlook = _outlook([study]) if _shared is None else _shared
    for number, cell in enumerate(study.cells, start=1):
        log.info("cell %d/%d: %s%s", number, len(study.cells), cell.id, outlook or "")
        try:
            with interrupts_win():
                run_cell(cell, study.setup, partial(outlook.stage, cell.id) if outlook is not None else untimed)
        except Exception as error:  # of any kind: what can still be measured is measured
            if num_ranks() > 1:
                raise  # the other ranks may not have failed, and would wait for this one for ever
            # What the user can put right needs no traceback; everything else is ours to mend.
            log.error("cell %s failed: %s", cell.id, error, exc_info=not isinstance(error, UserError))
            failures[cell.id] = error
    if not is_main():
        return
    try:
        if overrides is not None:
            with in_words(dict(study.setup.paths)):
                _report(study, overrides)
    except UserError as error:
        if not failures:
            raise
        say(error)  # the cells that failed have the last word, and decide the exit status
    if failures:
        reasons = "; ".join(f"{cell_id}: {error}" for cell_id, error in failures.items())
        raise FailedCellsError(
            f"{len(failures)} of {len(study.cells)} cells failed ({reasons}); the same command tries them again"
        )


def _report(study: Study, overrides: Sequence[str]) -> None:
    from analysis.report.report import show

    show(study, overrides)


def _report_jointly(points: Sequence[tuple[Point, Study]], typed: Sequence[str] | None) -> None:
    """One table and report of all points; several where their read-outs or folders differ."""
    for study, overrides in joint(points, None if typed is None else [word for word in typed if not is_of_hydra(word)]):
        with in_words(dict(study.setup.paths)):
            _report(study, overrides)
        if typed is None:
            print(f"the same from results: {shlex.join(['matquant', 'report', *overrides])}")


def _outlook(studies: Sequence[Study]) -> Forecast | None:
    """The forecast of the time of some studies; None if nothing is missing, or if there are several ranks."""
    from evaluation.planning.preflight import is_finished

    if num_ranks() > 1 or all(map(is_finished, studies)):
        return None
    from evaluation.planning.forecast import forecast  # imports torch, which a finished study does not need

    try:
        return forecast(*studies)
    except UserError:  # a cell cannot be run; the message comes when it is its turn
        return None


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
