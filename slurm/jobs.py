"""One stage of one cell as a job, which can be pickled and resumed, and holds everything that it needs.

A job is stopped by a signal before its time limit, or when a job of higher priority wants its place.  It then goes on
to the next safe point (the end of a step, of a block, of a task), saves, and is put back into the queue.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from evaluation.stages import TRAIN, Stage, run_stage
from matquant.command.terminal import log_to_stderr
from matquant.config.cell import Cell, QATBase
from matquant.config.setup import DebugCluster, LocalCluster, Setup, SlurmCluster
from matquant.errors import DiskFullError, UserError
from matquant.parallel.ranks import num_ranks
from matquant.runs.folder import RunDir
from matquant.runs.status import Reason, Reporter, State
from matquant.runs.stopping import Stopped, at_safe_points

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

log = logging.getLogger("matquant")


@dataclass(frozen=True)
class Job:
    """One stage of a cell, and everything it has to know."""

    cell: Cell
    setup: Setup
    stage: Stage = TRAIN

    @property
    def num_gpus(self) -> int:
        """The GPUs on each node: all of them for quantization-aware training, one for everything else."""
        match self.setup.cluster:
            case SlurmCluster(gpus_per_node=available) | LocalCluster(gpus_per_worker=available):
                return available if self.is_distributed else min(1, available)
            case DebugCluster():
                return 0
            case _:
                assert_never(self.setup.cluster)

    @property
    def is_distributed(self) -> bool:
        return self.stage.kind == "train" and isinstance(self.cell.base, QATBase)

    def __call__(self) -> None:
        """Runs inside a submitit job."""
        # Imported here: a plan makes Jobs only to estimate their cost.
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
        except UserError as error:
            if self.stage.kind != "search" or isinstance(error, DiskFullError):
                raise
            # The evaluation waits for this job to succeed, and has other plans to read.
            log.error("%s", error)
        except Stopped:
            time.sleep(3600)  # not the main rank, which requeues the whole job: that ends this process
        except UncompletedJobError as error:
            self._end("failed", "time limit", f"{error} The state is saved: --retry-failed goes on from it")
            raise
        except subprocess.CalledProcessError as error:
            self._end("stopped", "interrupted", f"SLURM would not requeue it ({error}); the state is saved")
            raise

    def work(self) -> None:
        """The work of the job; a second job on the same stage waits for the first and finds nothing to do."""
        run_stage(self.cell, self.setup, self.stage)
        if num_ranks() > 1:
            from matquant.parallel.distributed import leave, world

            leave(world())

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit when the job is requeued: its state is on disk, so the same job goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _patience_s(self) -> float:
        """The time to a job's next safe point, after which it is requeued without saving."""
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
        Reporter(RunDir(self.setup.paths.runs, self.cell.id).status(self.stage.name)).end(state, reason, message)


def _log_to_stderr() -> None:
    log_to_stderr()
    logging.getLogger("submitit").propagate = False  # it prints its own lines
