"""One cell, or all cells of an experiment, from configuration to table: train, evaluate every slice, report.

    python run.py                      the default cell, offline, on the embedded model
    python run.py --help               the axes and their choices
    torchrun --nproc_per_node=8 run.py base=qat ...    one model trained by several GPUs together

The composition root: it alone imports `matquant`, `evaluation` and `analysis` together.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from evaluation.stages import run_cell, untimed
from matquant.command.dispatch import say_where
from matquant.command.terminal import ended, fail, log_to_stderr, say, status_of
from matquant.config.compose import check_line, sweep_points
from matquant.config.listing import listing
from matquant.config.overrides import understood
from matquant.config.study import Study, load_study
from matquant.disk import in_words
from matquant.errors import FailedCellsError, UserError
from matquant.parallel.ranks import num_ranks
from matquant.runs.files import require_writable
from matquant.runs.stage_runner import is_main
from matquant.runs.stopping import at_safe_points, interrupts_win, remember_interrupts

if TYPE_CHECKING:
    from evaluation.forecast import Forecast

log = logging.getLogger("matquant")
PATIENCE_S = 100.0
"""Seconds that a job of Hydra's launcher may take to a safe point: less than hydra.launcher.signal_delay_s."""
MULTIRUN = {"-m", "--multirun"}
failed_points: list[UserError] = []
"""The points of this process's multirun that failed."""


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
    if flags <= MULTIRUN:
        overrides = understood([word for word in arguments if not word.startswith("-")], swept=bool(flags))
        sys.argv[1:] = [*flags, *overrides]  # Hydra wants a flag before or after all overrides, not in between
        check_folders_of_hydra(overrides)
        points = sweep_points(overrides) if flags else [overrides]
        studies = [load_study(point) for point in points]
        say_where(studies[0].setup.paths)
        join(lambda: check(studies))
        _hydra_main()
        part()
    else:
        sys.argv[1:] = check_line(arguments)
        _hydra_main()
    return max(map(status_of, failed_points), default=0)


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
    from evaluation import preflight

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
def _hydra_main(_: DictConfig) -> None:
    log_to_stderr()  # once more: a job of Hydra's launcher starts here
    overrides = list(HydraConfig.get().overrides.task)
    try:
        study = load_study(overrides)
        with in_words(dict(study.setup.paths)), interrupts_win(), at_safe_points(PATIENCE_S):
            run_study(study, overrides)
    except UserError as error:
        if not _others_follow():
            fail(error)  # not raised through Hydra, which would print a traceback
        say(error)
        failed_points.append(error)


def _others_follow() -> bool:
    """True in a multirun of this process, where a point that fails keeps no other from running."""
    known = HydraConfig.get()
    return known.mode == RunMode.MULTIRUN and known.runtime.choices["hydra/launcher"] == "basic" and num_ranks() == 1


def run_study(study: Study, overrides: Sequence[str]) -> None:
    """Trains and evaluates what is missing, cell by cell, and writes the report.

    A cell that fails does not keep the others from running; the failures are named at the end.  Of several ranks all
    take part in training, and the main one does the rest.
    """
    failures: dict[str, Exception] = {}
    outlook = _outlook(study)
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
    from analysis.report.report import Report, print_text

    report = Report(study, overrides)
    print_text(report.text())
    print(f"report: {report.draw().html}")


def _outlook(study: Study) -> Forecast | None:
    """The forecast of a study's time; None if nothing is missing, or if there are several ranks."""
    from evaluation.preflight import is_finished

    if num_ranks() > 1 or is_finished(study):
        return None
    from evaluation.forecast import forecast  # imports torch, which a finished study does not need

    try:
        return forecast(study)
    except UserError:  # a cell cannot be run; the message comes when it is its turn
        return None


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
