"""The same jobs without a cluster: as processes of this machine, or, for a debugger, in this process.

The launcher stays, starts what is ready while a worker is free, and looks at the disk for its outcome.  A
launcher that is killed, or whose terminal is closed, leaves its workers at work; the next one waits for them.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import submitit
from tqdm import tqdm

from evaluation.board import duration
from matquant.config.setup import LocalCluster
from matquant.errors import UserError
from matquant.runs.folder import RunDir
from matquant.runs.status import LAUNCH
from matquant.runs.stopping import remember_interrupts
from slurm import gpus, snapshot
from slurm.interrupting import stop_jobs
from slurm.jobs import Job
from slurm.plan import Item, Sweep
from slurm.records import Submission, new_launch, write_submission
from slurm.sbatch.environment import having
from slurm.sessions import own_sessions

log = logging.getLogger("matquant")
POLL_S = 0.3
PAUSES = 20
"""Pauses, in looks at all cells, while no job ends: looking takes a twentieth of a core at most."""
Observe = Callable[[], Sweep]
Choose = Callable[[Sweep], Sequence[Item]]
Key = tuple[str, str]


def _key(item: Item) -> Key:
    return item.cell_id, item.stage.name


class Workers:
    """A few processes of this machine, each with its share of GPUs and CPUs."""

    def __init__(self, sweep: Sweep, code: Path) -> None:
        self.setup = sweep.study.setup
        assert isinstance(self.setup.cluster, LocalCluster)
        self.cluster, self.name, self.code = self.setup.cluster, new_launch(sweep.study.name), code
        self.folder = self.setup.paths.runs / ".jobs" / self.name
        self.at_work: dict[int, tuple[Item, submitit.Job[None], float]] = {}

    @property
    def free(self) -> list[int]:
        return [number for number in range(self.cluster.workers) if number not in self.at_work]

    def start(self, number: int, item: Item) -> None:
        """Lets a free worker do one job."""
        job = Job(item.cell, self.setup, item.stage)
        path = RunDir(self.setup.paths.runs, item.cell_id).job(item.stage.name)
        submission = Submission(self.name, "local", self.name, ended=item.ended)
        write_submission(path, submission)
        executor = submitit.LocalExecutor(self.folder, max_num_timeout=self.cluster.max_requeues)
        executor.update_parameters(
            timeout_min=self.cluster.time_min,
            signal_delay_s=self.cluster.signal_delay_s,
            tasks_per_node=max(1, job.num_gpus),
            stderr_to_stdout=True,
        )
        visible = ",".join(gpus.share(self.cluster, number, job.num_gpus))
        with having({**os.environ, **self._variables()}), own_sessions(CUDA_VISIBLE_DEVICES=visible):
            started = executor.submit(job)
        self.at_work[number] = (item, started, time.monotonic())  # at once: a Ctrl-C that comes now stops it too
        write_submission(path, submission.with_process(int(started.job_id), started.paths.stdout))

    def finished(self) -> Iterator[tuple[Item, float]]:
        """The jobs that have ended since it was last asked, and the seconds they took."""
        for number, (item, job, start) in list(self.at_work.items()):
            if job.done():
                del self.at_work[number]
                yield item, time.monotonic() - start

    def rest(self, seconds: float) -> None:
        """Waits for the end of a job, for so long at most: whoever looks at hundreds of cells must not take a core."""
        end = time.monotonic() + seconds
        time.sleep(POLL_S)
        while time.monotonic() < end and not any(job.done() for _, job, _ in self.at_work.values()):
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Interrupts what is at work, as Ctrl-C does, and waits for it."""
        stop_jobs(int(job.job_id) for _, job, _ in self.at_work.values())

    def _variables(self) -> dict[str, str]:
        threads = max(1, (os.cpu_count() or 1) // self.cluster.workers)
        return {
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            **snapshot.environment(self.code),
            LAUNCH: self.name,
            "TQDM_MININTERVAL": "30",
            "PYTHONFAULTHANDLER": "1",
        }


def run_local(observe: Observe, choose: Choose, code: Path) -> None:
    """Runs everything that is chosen; returns when nothing is at work and nothing more is ready."""
    sweep = observe()
    workers, tried = Workers(sweep, code), set[Key]()
    if workers.cluster.gpus_per_worker == 0 and (hidden := len(gpus.visible_gpus())):
        log.warning("cluster.gpus_per_worker=0 hides the %d GPUs of this machine from its workers", hidden)
    with tqdm(total=len(choose(sweep)), unit=" jobs", dynamic_ncols=True, mininterval=_interval()) as bar:
        try:
            while True:
                start = time.monotonic()
                ended, sweep = list(workers.finished()), observe()
                for item, seconds in ended:
                    _tell(bar, _now(sweep, item), seconds)
                ready = [item for item in choose(sweep) if _key(item) not in tried and sweep.is_ready(item)]
                for number, item in zip(workers.free, ready, strict=False):
                    tried.add(_key(item))
                    workers.start(number, item)
                others = len(sweep.of("running")) - len(workers.at_work)
                if not ready and not workers.at_work and others <= 0:
                    return
                by_others = f", {others} by others" if others > 0 else ""
                bar.set_postfix_str(f"{len(workers.at_work)} at work{by_others}", refresh=False)
                workers.rest(PAUSES * (time.monotonic() - start))
        except KeyboardInterrupt:
            workers.stop()
            raise


def run_debug(observe: Observe, choose: Choose) -> None:
    """Runs everything that is chosen in this process, one job after the other."""
    remember_interrupts()
    tried = set[Key]()
    while True:
        sweep = observe()
        ready = [item for item in choose(sweep) if _key(item) not in tried and sweep.is_ready(item)]
        if not ready:
            return
        item = ready[0]
        tried.add(_key(item))
        log.info("%s %s", item.stage.name, item.cell_id)
        try:
            Job(item.cell, sweep.study.setup, item.stage).work()
        except Exception as error:  # of any kind: its status is on disk, and the other jobs are still worth doing
            # What the user can put right needs no traceback.
            known = isinstance(error, UserError)
            log.error("%s %s failed: %s", item.stage.name, item.cell_id, error, exc_info=not known)


def _now(sweep: Sweep, item: Item) -> Item:
    return next(other for other in sweep.items if _key(other) == _key(item))


def _tell(bar: tqdm, item: Item, seconds: float) -> None:
    bar.update()
    what = f"{item.stage.name} {item.cell_id}"
    if item.state == "done":
        bar.write(f"done    {what} in {duration(seconds)}")
    else:
        bar.write(f"failed  {what}: {item.reason}: {item.note}")


def _interval() -> float:
    """Seconds between two states of a bar; more in a log file, which keeps them all."""
    return 0.3 if sys.stderr.isatty() else 30.0
