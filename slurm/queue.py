"""SLURM's commands, asked directly: squeue, sacct, scontrol and scancel, each with a limit on how long it may take.

submitit is not asked: it knows a job's state from accounting only, and waits for ever on a cluster without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TypeGuard, assert_never

from matquant.config.setup import ClusterSpec, DebugCluster, LocalCluster, SlurmCluster
from matquant.errors import UserError
from matquant.runs.processes import user_name
from slurm.states.known import Identity, Known, QueuedJob, elements
from slurm.states.reasons import is_at_limit

TIMEOUT_S = 60
AT_ONCE = 500  # job ids on one command line
LATELY_S = 90.0
"""The time after the end of a job within which SLURM starts those that waited for its place."""
SQUEUE = "%i|%T|%r|%u|%S|%a|%q|%j"
SACCT = "JobID,State,User,Start,Account,QOS,JobName"


def is_slurm(cluster: ClusterSpec) -> TypeGuard[SlurmCluster]:
    """True if jobs go to SLURM; False if they run on this machine, where the launcher stays and starts them."""
    match cluster:
        case SlurmCluster():
            return True
        case LocalCluster() | DebugCluster():
            return False
        case _:
            assert_never(cluster)


def require_slurm() -> None:
    """Refuses a machine that is not part of a SLURM cluster."""
    if absent := [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]:
        raise UserError(
            f"{', '.join(absent)} cannot be found; run this where SLURM's commands are (a login node), "
            "or use cluster=local"
        )


def ask_for(identities: Collection[Identity]) -> Known:
    """SLURM's knowledge of some jobs, those that ended lately included; UserError if it does not answer.

    Jobs are asked for by their numbers, whoever's they are, and those without a number by their names.  Accounting is
    asked for the jobs that the queue has forgotten, where there is any.
    """
    if not identities:
        return Known()
    jobs: list[QueuedJob] = []
    for cluster, mine in _by_cluster(identities).items():
        try:
            found = _in_queue(cluster, mine)
        except UserError:
            found = _in_accounts(cluster, mine)
            if any(Known(found).find(one) is None for one in mine):
                raise
        known = Known(found)
        jobs += [*found, *_in_accounts(cluster, [one for one in mine if known.find(one) is None])]
    known = Known(jobs)
    hides = {one for one in identities if one.user not in (None, user_name()) and known.find(one) is None}
    private = bool(hides) and "jobs" in configuration().get("PrivateData", "") and os.getuid() != 0
    at_work = None if private or not any(map(is_at_limit, jobs)) else _at_work()
    return Known(jobs, hides=hides if private else (), asked=identities, at_work=at_work)


def jobs_in_queue() -> list[QueuedJob]:
    """The user's jobs that have not ended, of any study; UserError if SLURM does not answer."""
    lines = _ask(["squeue", "--noheader", "--array", "--user", str(os.getuid()), "--format", SQUEUE])
    return _jobs(lines, None)


def is_in_queue(job_id: str, cluster: str | None) -> bool:
    """True for a job that waits or runs; UserError if SLURM does not answer."""
    where = None if cluster == configuration().get("ClusterName") else cluster
    jobs = _in_queue(where, [Identity(job_id, "")])
    return any(job.job_id == job_id and not job.has_ended for job in jobs)


def cancel(jobs: Iterable[QueuedJob]) -> None:
    """Cancels jobs, waiting or running."""
    home = configuration().get("ClusterName")
    clusters: dict[str | None, set[str]] = {}
    for job in jobs:
        clusters.setdefault(None if job.cluster == home else job.cluster, set()).add(job.job_id)
    for cluster, ids in clusters.items():
        for portion in _portions(sorted(ids)):
            try:
                _ask(["scancel", *_at(cluster), *portion])
            except UserError as error:
                if "Invalid job id" not in str(error) and "already complet" not in str(error):  # ended just now
                    raise


@cache
def configuration() -> Mapping[str, str]:
    """The configuration of the cluster; empty where it cannot be had."""
    try:
        lines = _ask(["scontrol", "show", "config"], timeout_s=15)
    except UserError:
        return {}
    pairs = (line.partition("=") for line in lines)
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def target_cluster(cluster: SlurmCluster) -> str | None:
    """The name of the cluster that jobs are submitted to; None if it cannot be told."""
    named = [cluster.sbatch.get("clusters"), os.environ.get("SBATCH_CLUSTERS"), os.environ.get("SLURM_CLUSTERS")]
    return next((str(name) for name in named if name), configuration().get("ClusterName"))


def _by_cluster(identities: Iterable[Identity]) -> dict[str | None, list[Identity]]:
    """Jobs by the cluster that is to be asked for them; None is the one of this machine."""
    home = configuration().get("ClusterName")
    clusters: dict[str | None, list[Identity]] = {}
    for one in identities:
        clusters.setdefault(None if home is None or one.cluster == home else one.cluster, []).append(one)
    return clusters


def _in_queue(cluster: str | None, identities: Iterable[Identity]) -> list[QueuedJob]:
    command = ["squeue", "--noheader", "--array", "--states=all", *_at(cluster), "--format", SQUEUE]
    wanted = list(identities)
    lines = [line for ids in _portions(_arrays(wanted)) for line in _lines_of(command, ids)]
    for names in _portions(sorted({one.name for one in wanted if one.job_id is None})):
        lines += _ask([*command, "--name", ",".join(names)])
    return _jobs(lines, cluster)


def _jobs(lines: Iterable[str], cluster: str | None) -> list[QueuedJob]:
    """The jobs that squeue has printed."""
    where, jobs = cluster or configuration().get("ClusterName"), list[QueuedJob]()
    for parts in (line.split("|", 7) for line in lines):
        if len(parts) < 8:  # a heading
            continue
        number, state, reason, user, start, account, qos, name = parts
        for job_id in elements(number):
            jobs.append(QueuedJob(job_id, name, state, reason, _user(user), where, _seconds(start), account, qos))
    return jobs


def _in_accounts(cluster: str | None, identities: Iterable[Identity]) -> list[QueuedJob]:
    """The same from accounting; empty if a cluster has none."""
    where, jobs = cluster or configuration().get("ClusterName"), list[QueuedJob]()
    command = ["sacct", "--noheader", "--allocations", "--allusers", "--parsable2", *_at(cluster), "--format", SACCT]
    for ids in _portions(_arrays(identities)):
        try:
            lines = _ask([*command, "--jobs", ",".join(ids)])
        except UserError:
            return jobs
        for parts in (line.split("|", 6) for line in lines):
            if len(parts) < 7 or not parts[1]:
                continue
            number, state, user, start, account, qos, name = parts
            word = state.split()[0]
            for job_id in elements(number):
                jobs.append(QueuedJob(job_id, name, word, "", _user(user), where, _seconds(start), account, qos))
    return jobs


def number_of(name: str, cluster: str | None) -> str | None:
    """SLURM's number of the job, or of the array, of a name that only one has; None if it has none of that name."""
    where = None if cluster == configuration().get("ClusterName") else cluster
    jobs = _in_queue(where, [Identity(None, name)])
    return jobs[0].job_id.partition("_")[0] if jobs else None


def _at_work() -> list[QueuedJob]:
    """All jobs of the cluster that run, or have ended a moment ago."""
    jobs: list[QueuedJob] = []
    for line in _ask(["squeue", "--noheader", "--states=all", "--format", f"%e|{SQUEUE}"]):
        end, _, told = line.partition("|")
        is_recent = (_seconds(end) or 0.0) > time.time() - LATELY_S
        jobs += [job for job in _jobs([told], None) if not job.is_waiting and (is_recent or not job.has_ended)]
    return jobs


def _lines_of(command: Sequence[str], ids: Sequence[str]) -> list[str]:
    """The lines of squeue for some ids; some versions refuse a number that SLURM has forgotten."""
    try:
        return _ask([*command, "--jobs", ",".join(ids)])
    except UserError as error:
        if "Invalid job id" not in str(error):
            raise
        if len(ids) == 1:
            return []
        half = len(ids) // 2
        return [*_lines_of(command, ids[:half]), *_lines_of(command, ids[half:])]


def _arrays(identities: Iterable[Identity]) -> list[str]:
    return sorted({one.array for one in identities if one.array is not None})


def _at(cluster: str | None) -> list[str]:
    return [] if cluster is None else [f"--clusters={cluster}"]


def _user(text: str) -> str | None:
    """The name of a user; None for a number, which is all that a machine has of a user it does not know."""
    return None if not text or text.isdigit() else text


def _seconds(text: str) -> float | None:
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:  # N/A, Unknown
        return None


def _portions(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE))


def _environment() -> dict[str, str]:
    """The variables for SLURM's commands: without those by which a user changes what the commands print."""
    own = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN")
    return {key: value for key, value in os.environ.items() if not key.startswith(own)}


def _ask(command: Sequence[str], timeout_s: float = TIMEOUT_S) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=_environment())
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} cannot be found; run this where SLURM's commands are (a login node)") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{command[0]} has not answered for {timeout_s:.0f} s: SLURM's controller is down or busy; try again later"
        ) from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise UserError(
            f"{command[0]} failed ({said}); run this where SLURM answers (a login node), or use cluster=local"
        )
    return [line for line in done.stdout.splitlines() if line.strip()]
