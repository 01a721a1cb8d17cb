"""One cell, or all cells of an experiment, from configuration to table: train, evaluate every slice, report.

    python run.py                      the default cell, offline, on the embedded model
    python run.py --help               the axes and their choices

The composition root: it alone imports `matquant`, `evaluation` and `analysis` together.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from matquant.cell import Setup
from matquant.config import Study, load_study, sweep_points
from matquant.errors import UserError
from matquant.runs import require_writable

log = logging.getLogger("matquant")
MULTIRUN = {"-m", "--multirun"}


def main() -> None:
    """Refuses a bad command line in one sentence before anything starts, then hands over to Hydra."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "datasets", "huggingface_hub", "lm_eval"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    arguments = sys.argv[1:]
    flags = {argument for argument in arguments if argument.startswith("-")}
    try:
        if flags <= MULTIRUN:
            overrides = [argument for argument in arguments if not argument.startswith("-")]
            check([load_study(point) for point in (sweep_points(overrides) if flags else [overrides])])
        _hydra_main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; what is finished is on disk, the same command continues")


def check(studies: Sequence[Study]) -> None:
    """Refuses studies that cannot be run, before the first cell of the first of them starts."""
    from evaluation.evaluate import task_source
    from evaluation.tasks import check_task_names
    from matquant.models import check_model

    for setup in {study.setup.model_dump_json(): study.setup for study in studies}.values():
        _require_folders(setup)
        try:
            check_task_names(setup.readout.tasks, task_source(setup.readout))
        except ValueError as error:
            raise UserError(str(error)) from error
    cells = {
        cell.model_dump_json(include={"model", "grid", "scope"}): (cell, study.setup)
        for study in studies
        for cell in study.cells
    }
    for cell, setup in cells.values():
        check_model(cell, cache=setup.paths.cache)


def _require_folders(setup: Setup) -> None:
    for option in ("runs", "results", "out", "cache"):
        folder: Path = getattr(setup.paths, option)
        require_writable(folder.expanduser(), f"paths.{option}")


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def _hydra_main(_: DictConfig) -> None:
    overrides = list(HydraConfig.get().overrides.task)
    try:
        run_study(load_study(overrides), overrides)
    except UserError as error:
        # Not raised through Hydra, which would print a traceback.
        sys.exit(f"error: {error}")


def run_study(study: Study, overrides: Sequence[str]) -> None:
    """Trains and evaluates what is missing, cell by cell, and writes the report."""
    # Imported here, so that --help and a refused command line answer at once.
    from analysis.report import build_report, print_table
    from evaluation.evaluate import evaluate
    from matquant.tracking import tracker_for
    from matquant.train import train

    for number, cell in enumerate(study.cells, start=1):
        log.info("cell %d/%d: %s", number, len(study.cells), cell.id)
        if is_done(study, number - 1):
            continue
        tracker = tracker_for(cell, study.setup)
        try:
            train(cell, study.setup, tracker)
            evaluate(cell, study.setup, tracker)
        finally:
            tracker.finish()
    print_table(study)
    print(f"report: {build_report(study, overrides).html}")


def is_done(study: Study, index: int) -> bool:
    """True if every result of a cell is on disk, so that nothing has to be loaded for it."""
    from evaluation.evaluate import missing
    from evaluation.results import ResultStore

    return not missing(study.cells[index], study.setup.readout, ResultStore(study.setup.paths.results))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
