"""One stage of one cell as a job: picklable, resumable, and told nothing that is not in it.

A job is stopped by a signal before its time limit, or when a job of higher priority wants its place.  It then goes on
to the next safe point (the end of a step, of a block, of a task), saves, and is put back into the queue.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.protocol import WHOLE, Part, missing
from evaluation.results import ResultStore
from matquant.config.cell import Cell, QATBase
from matquant.config.setup import LocalCluster, Setup, SlurmCluster
from matquant.parallel.ranks import num_ranks
from matquant.runs.files import remove_leftovers
from matquant.runs.folder import RunDir
from matquant.runs.status import Reason, Reporter, State
from matquant.runs.stopping import Stopped, at_safe_points

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

log = logging.getLogger("matquant")


@dataclass(frozen=True)
class Job:
    """Training, or the evaluation of a part of the plans."""

    cell: Cell
    setup: Setup
    part: Part | None = None

    @property
    def stage(self) -> str:
        return "train" if self.part is None else self.part.stage

    @property
    def num_gpus(self) -> int:
        """On each node.  Quantization-aware training is spread over all it can get; everything else takes one."""
        match self.setup.cluster:
            case SlurmCluster(gpus_per_node=available) | LocalCluster(gpus_per_worker=available):
                return available if self.is_distributed else min(1, available)
            case _:
                return 0

    @property
    def is_distributed(self) -> bool:
        return self.part is None and isinstance(self.cell.base, QATBase)

    def __call__(self) -> None:
        """Runs inside a submitit job."""
        # Imported here: what only looks at a study makes Jobs to say what they would cost.
        import submitit
        from submitit.core.utils import UncompletedJobError

        _log_to_stderr()
        environment = submitit.JobEnvironment()
        if environment.num_tasks > 1:
            # All GPUs stay visible: each rank takes the one of its local rank.
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        try:
            self._refuse_endless_requeues()
            with at_safe_points(self._patience_s()):
                self.work()
        except Stopped:
            time.sleep(3600)  # not the main rank, which requeues the whole job: that ends this process
        except UncompletedJobError as error:
            self._end("failed", "time limit", f"{error} The state is saved: --retry-failed goes on from it")
            raise
        except subprocess.CalledProcessError as error:
            self._end("stopped", "interrupted", f"SLURM would not requeue it ({error}); the state is saved")
            raise

    def work(self) -> None:
        """What the job is for; a second job on the same stage waits for the first and finds nothing to do."""
        if num_ranks() > 1:
            from matquant.parallel.distributed import world

            if not world().is_main:
                self._train()
                return
        run = RunDir(self.setup.paths.runs, self.cell.id)
        with run.alone(self.stage), run.stage(self.stage):
            if self.part is None:
                remove_leftovers(self.setup.paths.runs / self.cell.id)
                self._train()
            else:
                self._evaluate(self.part)

    def _train(self) -> None:
        from matquant.parallel.distributed import leave, world
        from matquant.runs.tracking import NoTracker, tracking
        from matquant.training.train import train

        if world().is_main:
            with tracking(self.cell, self.setup, "train") as tracker:
                train(self.cell, self.setup, tracker)
        else:
            train(self.cell, self.setup, NoTracker())
        leave(world())

    def _evaluate(self, part: Part) -> None:
        from evaluation.evaluate import evaluate, publish
        from matquant.runs.tracking import NoTracker, tracking

        store = ResultStore(self.setup.paths.results)
        remove_leftovers(store.folder / self.cell.id)
        if part == WHOLE:
            with tracking(self.cell, self.setup, "evaluate") as tracker:
                evaluate(self.cell, self.setup, tracker)
            return
        # Several jobs cannot write one W&B run at a time: the last one to finish tells it everything.
        evaluate(self.cell, self.setup, NoTracker(), part)
        if not missing(self.cell, self.setup.readout, store):
            with tracking(self.cell, self.setup, "evaluate") as tracker:
                publish(self.cell, self.setup.readout, store, tracker)

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit when the job is requeued: everything that matters is on disk, so it is the job itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _patience_s(self) -> float:
        """How long a job may take to its next safe point before it is requeued without having saved."""
        assert isinstance(self.setup.cluster, SlurmCluster | LocalCluster)
        delay = self.setup.cluster.signal_delay_s
        return max(delay - 20, delay / 2)

    def _refuse_endless_requeues(self) -> None:
        assert isinstance(self.setup.cluster, SlurmCluster | LocalCluster)
        restarts, allowed = int(os.environ.get("SLURM_RESTART_COUNT", "0")), self.setup.cluster.max_requeues
        if restarts > allowed:
            from submitit.core.utils import UncompletedJobError

            raise UncompletedJobError(
                f"The job has been started again {restarts} times (cluster.max_requeues={allowed})."
            )

    def _end(self, state: State, reason: Reason, message: str) -> None:
        Reporter(RunDir(self.setup.paths.runs, self.cell.id).status(self.stage)).end(state, reason, message)


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for ours in ("matquant", "evaluation"):
        logging.getLogger(ours).setLevel(logging.INFO)
    logging.getLogger("submitit").propagate = False  # it prints its own lines
