"""The options of sbatch for one batch of jobs: ours, and in their place those that cluster.sbatch names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluation.stages import TRAIN
from matquant.config.sbatch import Option
from matquant.config.setup import SlurmCluster
from slurm.jobs import Job

SAME_MATTER = {
    "mem-per-cpu": "mem",
    "mem-per-gpu": "mem",
    "cpus-per-gpu": "cpus-per-task",
    "gpus": "gpus-per-node",
    "gpus-per-task": "gpus-per-node",
    "gpus-per-socket": "gpus-per-node",
}
"""Options that ask for the same thing as one of ours, which is then left out."""
# A rank that dies takes the others with it.  Under SBATCH_EXPORT=NONE srun would pass on no variable.
SRUN = ("--kill-on-bad-exit=1", "--export=ALL")
# Since SLURM 22.05 srun does not read the CPUs of a task from its job, and would give each of them one.
CPUS = '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'
KEYS = {
    "time": "time_min",
    "mem": "mem_gb_per_task",
    "cpus-per-task": "cpus_per_task",
    "gpus-per-node": "gpus_per_node",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
}
"""The keys below `cluster` that our options come from."""


def sbatch_parameters(
    job: Job, cluster: SlurmCluster, name: str, setup: Sequence[str], dependency: str | None = None
) -> dict[str, Any]:
    """The parameters of jobs like this one, in submitit's words."""
    tasks = max(1, job.num_gpus)
    theirs = {key: value for key, value in cluster.sbatch.items() if key != "requeue"}
    mine = {key: value for key, value in _options(job, cluster, tasks).items() if key not in _replaced(cluster)}
    extra = mine | {key: value for key, value in theirs.items() if value is not None and value is not False}
    extra |= {"requeue": True} if cluster.sbatch.get("requeue", True) else {"no-requeue": True}
    if dependency is not None:
        # A job goes away, if the stage before it has failed, instead of waiting for ever.
        extra |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    return {
        "job_name": name,
        "time": time_min(job, cluster),
        "nodes": cluster.nodes if job.is_distributed else 1,
        "ntasks_per_node": tasks,
        "signal_delay_s": cluster.signal_delay_s,
        "array_parallelism": cluster.array_parallelism,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own would be refused where they are checked
        "srun_args": list(SRUN),
        "setup": list(setup),
        "additional_parameters": extra,
    }


def time_min(job: Job, cluster: SlurmCluster) -> int:
    """Minutes of a job, as the cluster's keys say."""
    return cluster.time_min if job.stage == TRAIN else cluster.evaluate_time_min or cluster.time_min


def _options(job: Job, cluster: SlurmCluster, tasks: int) -> dict[str, Option]:
    kind = "" if cluster.gpu_type is None else f"{cluster.gpu_type}:"
    named = {key: getattr(cluster, key) for key in ("partition", "account", "qos", "constraint")}
    return {
        **{key: value for key, value in named.items() if value is not None},
        **({"gpus-per-node": f"{kind}{job.num_gpus}"} if job.num_gpus else {}),
        "cpus-per-task": cluster.cpus_per_task,
        "mem": f"{round(tasks * cluster.mem_gb_per_task * 1024)}M",
        "time": time_min(job, cluster),
    }


def _replaced(cluster: SlurmCluster) -> Mapping[str, str]:
    """Our options that have one of the user's in their place."""
    found = {SAME_MATTER.get(key, key): key for key in cluster.sbatch}
    if found.get("time") and not cluster.sbatch["time"]:
        del found["time"]  # a job without a limit would not be told to save in time
    if "gpu" in str(cluster.sbatch.get("gres", "")):
        found["gpus-per-node"] = "gres"
    return {ours: theirs for ours, theirs in found.items() if ours in KEYS}


def replacements(cluster: SlurmCluster) -> Iterator[str]:
    """Sentences about keys of the cluster that an option of cluster.sbatch takes the place of."""
    for ours, theirs in _replaced(cluster).items():
        key, value = KEYS[ours], cluster.sbatch[theirs]
        before = getattr(cluster, key)
        if before is None or str(before) == str(value):
            continue
        kept = f"cluster.{key}={before}"
        if value is None or value is False:
            yield f"cluster.sbatch.{theirs} is empty: jobs are submitted without it, and {kept} does not count"
        elif ours == "gpus-per-node":
            yield f"every job asks for {theirs}={value} (cluster.sbatch); {kept} says how many GPUs it uses"
        else:
            yield f"cluster.sbatch.{theirs}={value} takes the place of {kept}"
