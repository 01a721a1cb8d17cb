"""Hydra's sweeper and launchers with points that may fail: each becomes a sentence, and keeps no other from running.

Hydra's own launchers raise what a point raised, and submitit's gives up all points at the first that was killed.  Those
here take their places in Hydra's register, so that `hydra/launcher=submitit_slurm` and the like are typed as ever.  A
point that cannot be run is not started; a sweeper is told the worst value of its objectives.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import basic_launcher, basic_sweeper
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher import submitit_launcher

from evaluation.objective import as_returned
from matquant.command import multirun
from matquant.command.multirun import Multirun
from matquant.config.setup import SlurmCluster
from matquant.config.sweep import Point
from matquant.errors import FailedCellsError, UserError
from slurm import gpus, queue
from slurm.sbatch.environment import DEFAULTS, POLICY, carried, environment_of_sbatch, having, option_of
from slurm.sbatch.parameters import CPUS, SRUN

log = logging.getLogger("matquant")
POLL_S = 1.0
GONE_S = 15.0
"""Seconds between two questions whether a job of unknown state is in the queue; twice not there is gone."""

Numbered = Sequence[tuple[int, Point]]
"""Points, each with its number in the multirun."""


def install() -> None:
    """Puts the sweeper and the launchers of this module in the places of Hydra's own."""
    known = Plugins.instance().class_name_to_class
    for theirs, ours in (
        (basic_sweeper.BasicSweeper, Sweeper),
        (basic_launcher.BasicLauncher, HereLauncher),
        (submitit_launcher.LocalLauncher, LocalLauncher),
        (submitit_launcher.SlurmLauncher, SlurmLauncher),
    ):
        known[f"{theirs.__module__}.{theirs.__name__}"] = ours


@contextmanager
def raising(sweeper: str) -> Iterator[None]:
    """Lets what ends a multirun be raised, where Hydra would print it; an error of a sweeper is a sentence."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any kind: what our own code raises keeps its traceback
        if sweeper == "basic" or "site-packages" not in traceback.extract_tb(error.__traceback__)[-1].filename:
            raise
        words = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise UserError(f"hydra/sweeper={sweeper} ended with: {words}; mend hydra.sweeper.* or objective") from error


class Sweeper(basic_sweeper.BasicSweeper):
    """The product of choices, of which Hydra does not compose those points again that are refused anyway."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing: every point is composed and checked when it begins, and one that is not legal is refused alone."""


class HereLauncher(basic_launcher.BasicLauncher):
    """The points in this process, one after the other."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert self.config is not None
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)  # though no point may be run
        return _launched(job_overrides, initial_job_idx, self._one)

    def _one(self, number: int, point: Point) -> JobReturn:
        return super().launch([point], number)[0]


def _launched(points: Sequence[Point], first: int, launch_one: Any) -> list[JobReturn]:
    """The returns of points that are run one after the other."""
    leader = _leader()
    returns = []
    for number, point in enumerate(points, start=first):
        if leader.begin(point) is None:
            returns.append(_of_values(leader.worst))
            continue
        log.info("point %s: %s", leader.place(), leader.name_of(point).removeprefix("point "))
        returns.append(_ended(leader, point, launch_one(number, point)))
    return returns


class _JobLauncher(submitit_launcher.BaseSubmititLauncher):
    """Points as jobs of submitit: all that can be run are submitted together, and waited for as they end."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert self.config is not None
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        leader = _leader()
        points = list(enumerate(job_overrides, start=initial_job_idx))
        admitted = [(number, point) for number, point in points if leader.begin(point) is not None]
        returns = dict(self._returns(leader, admitted)) if admitted else {}
        return [returns.get(number) or _of_values(leader.worst) for number, _ in points]

    def _returns(self, leader: Multirun, points: Numbered) -> Iterator[tuple[int, JobReturn]]:
        jobs = self._submitted(points)
        leader.jobs = f"; their jobs go on: {_words_of_jobs([job for _, _, job in jobs], self._EXECUTOR)}"
        waiting, absent, where = jobs, dict[str, float](), self._where()
        while waiting:
            still = []
            for number, point, job in waiting:
                if job.done() or (self._EXECUTOR == "slurm" and _is_gone(job, absent, where)):
                    yield number, _ended(leader, point, _return_of(job))
                else:
                    still.append((number, point, job))
            waiting = still
            if waiting:
                time.sleep(POLL_S)
        leader.jobs = ""

    def _submitted(self, points: Numbered) -> list[tuple[int, Point, Any]]:
        """The jobs of some points; UserError, in SLURM's words, if it refuses them."""
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        cluster = self._EXECUTOR
        known = BaseQueueConf.__dataclass_fields__
        settings = {
            name if name in known else f"{cluster}_{name}": value
            for name, value in {**self.params, **self._additions()}.items()
            if name not in ("submitit_folder", "max_num_timeout")
        }
        timeouts = {f"{cluster}_{name}": self.params[name] for name in ("max_num_timeout",) if name in self.params}
        try:
            executor = submitit.AutoExecutor(self.params["submitit_folder"], cluster=cluster, **timeouts)
            executor.update_parameters(**settings)
            numbers, overrides = [number for number, _ in points], [list(point) for _, point in points]
            same = [Singleton.get_state()] * len(points)
            with self._surroundings(), redirect_stderr(StringIO()):  # submitit prints what it then raises
                jobs = executor.map_array(
                    self, overrides, ["hydra.sweep.dir"] * len(points), numbers, list(map(str, numbers)), same
                )
        except (FailedJobError, FailedSubmissionError, TypeError, ValueError, NameError, RuntimeError) as error:
            words = " ".join(str(error).replace("sbatch: error: ", "").split())
            raise UserError(
                f"hydra/launcher=submitit_{cluster} cannot submit {len(points)} jobs: {words}; mend hydra.launcher.*, "
                f"which `python run.py hydra/launcher=submitit_{cluster} --cfg hydra` shows"
            ) from error
        log.info("submitted %d points: %s", len(jobs), _words_of_jobs(jobs, cluster))
        return [(number, point, job) for (number, point), job in zip(points, jobs, strict=True)]

    def _additions(self) -> Mapping[str, Any]:
        """Parameters of submitit beside those of the configuration, or in their place."""
        return {}

    def _surroundings(self) -> AbstractContextManager[None]:
        """The block in which submitit is called."""
        return nullcontext()

    def _where(self) -> str | None:
        """The cluster that is asked for the jobs; None: that of this machine."""
        return None


class LocalLauncher(_JobLauncher):
    _EXECUTOR = "local"

    def _surroundings(self) -> AbstractContextManager[None]:
        """The jobs are out of reach of a Ctrl-C, after which they go on."""
        from slurm.sessions import own_sessions  # submitit, which only starting jobs needs

        count, there = self.params.get("gpus_per_node") or 0, gpus.visible_gpus()
        if there and not count:
            log.warning("hydra.launcher.gpus_per_node=0 hides the %d GPUs of this machine from the points", len(there))
        return own_sessions(CUDA_VISIBLE_DEVICES=",".join(there[:count]))


class SlurmLauncher(_JobLauncher):
    """The jobs see the environment as those of `matquant launch` do, and nothing of a job that this process is in."""

    _EXECUTOR = "slurm"

    def _additions(self) -> Mapping[str, Any]:
        return {"srun_args": SRUN, "setup": [*carried(os.environ), CPUS, *(self.params.get("setup") or ())]}

    def _surroundings(self) -> AbstractContextManager[None]:
        # submitit passes every variable of this process to sbatch.
        return having(environment_of_sbatch(os.environ, self._cluster()))

    def _where(self) -> str | None:
        return queue.target_cluster(self._cluster())

    def _cluster(self) -> SlurmCluster:
        """The options of the launcher for which a variable may have a default."""
        given = {option_of(name): value for name, value in (self.params.get("additional_parameters") or {}).items()}
        named = {name: given.get(name, self.params.get(name)) for name in DEFAULTS.values()}
        sbatch = {name: value for name, value in given.items() if name in map(option_of, POLICY)}
        return SlurmCluster.model_validate({"kind": "slurm", **named, "sbatch": sbatch})


def _leader() -> Multirun:
    assert multirun.current is not None  # these launchers are installed by the process that leads a multirun
    return multirun.current


def _ended(leader: Multirun, point: Point, returned: JobReturn | UserError) -> JobReturn:
    """The return of a point that has ended, and a sentence about it; of one that failed the worst values."""
    if isinstance(returned, UserError):
        leader.lose(point, returned)
        return _of_values(leader.worst)
    given: Any = returned._return_value  # its property raises what the point raised
    if returned.status != JobStatus.COMPLETED:
        error = given if isinstance(given, UserError) else FailedCellsError(f"{type(given).__name__}: {given}")
        leader.lose(point, error)
        return _of_values(leader.worst)
    leader.measure(point, [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given])
    return returned


def _of_values(values: Sequence[float]) -> JobReturn:
    found = JobReturn(status=JobStatus.COMPLETED)
    found.return_value = as_returned(values)
    return found


def _return_of(job: Any) -> JobReturn | UserError:
    """The return of a job that has ended; for one that left none a sentence with its state and its log."""
    from submitit.core.utils import UncompletedJobError

    try:
        if job.paths.result_pickle.exists():
            return job.results()[0]
        state = _state(job)
    except UncompletedJobError as error:
        state = str(error).strip().splitlines()[-1]
    return FailedCellsError(f"job {job.job_id} ended without a result ({state}); its log is {_log(job)}")


def _log(job: Any) -> str:
    paths = [job.paths.stderr, job.paths.stdout]
    return shlex.quote(str(next((path for path in paths if path.exists()), paths[1])))


def _state(job: Any) -> str:
    """The state of a job in the words of the scheduler, or of how it ended."""
    word = str(job.state)
    known = {
        "OUT_OF_MEMORY": "out of memory; raise hydra.launcher.mem_gb",
        "INTERRUPTED": "killed",
        "UNKNOWN": "killed",  # without accounting
        "FINISHED": "killed",
    }
    return known.get(word, f"state {word}")


def _is_gone(job: Any, absent: dict[str, float], where: str | None) -> bool:
    """True for a job of which accounting knows nothing and that has left the queue, twice in a row.

    submitit waits for ever for a job that was killed on a cluster without accounting.
    """
    now = time.monotonic()
    if job.state != "UNKNOWN" or now < absent.get(f"{job.job_id} next", 0.0):
        return False
    absent[f"{job.job_id} next"] = now + GONE_S
    try:
        is_there = queue.is_in_queue(job.job_id, where)
    except UserError:  # SLURM does not answer now
        is_there = True
    absent[job.job_id] = 0.0 if is_there else absent.get(job.job_id, 0.0) + 1
    return absent[job.job_id] >= 2


def _words_of_jobs(jobs: Iterable[Any], cluster: str) -> str:
    """The jobs of some points, and the command that ends them."""
    ids = list(dict.fromkeys(str(job.job_id).partition("_")[0] for job in jobs))
    shown = ", ".join(ids[:4]) + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")
    if cluster != "slurm":
        return f"processes {shown}; `kill -INT {' '.join(ids)}` ends them"
    return f"jobs {shown}; `scancel {' '.join(ids)}` ends them"
