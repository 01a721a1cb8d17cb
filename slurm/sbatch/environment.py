"""The environment in which sbatch is asked, and the part of it that jobs have to see.

A launch may start in a job, an interactive one for example.  What SLURM has told that job would be taken for options of
the new ones: its memory, its tasks, its place in an array.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from matquant.config.setup import SlurmCluster

FINDS_THE_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS")
POLICY = ("SBATCH_CLUSTERS", "SBATCH_EXPORT", "SBATCH_GET_USER_ENV", "SBATCH_RESERVATION", "SBATCH_WCKEY")
"""Defaults of a site or a person for which there is no key: they stay, unless cluster.sbatch says otherwise."""
DEFAULTS = {
    "SBATCH_PARTITION": "partition",
    "SBATCH_ACCOUNT": "account",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
}
"""Defaults for which there is a key: they stay where it is null.  The environment would overrule a script."""
OF_A_JOB = re.compile(
    r"(SLURM|SBATCH|SRUN|SLURMD|SUBMITIT|PMI|PMIX|PMI2)_|(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT)$"
)
GPUS_OF_A_JOB = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
CARRIED = re.compile(r"(HF|TRANSFORMERS|DATASETS|WANDB|TOKENIZERS|MATQUANT)_|XDG_CACHE_HOME$")
SECRET = re.compile(r"TOKEN$|KEY$|SECRET|PASSWORD", re.IGNORECASE)


def environment_of_sbatch(variables: Mapping[str, str], cluster: SlurmCluster) -> dict[str, str]:
    """The variables for sbatch, and so for its jobs: without those of a job that the launch itself may be in."""
    in_a_job = "SLURM_JOB_ID" in variables
    return {
        name: value
        for name, value in variables.items()
        if _stays(name, cluster) and not (in_a_job and name in GPUS_OF_A_JOB)
    }


def _stays(name: str, cluster: SlurmCluster) -> bool:
    if name in DEFAULTS:
        option = DEFAULTS[name]
        return getattr(cluster, option) is None and option not in cluster.sbatch
    if name in POLICY:
        return option_of(name) not in cluster.sbatch
    return name in FINDS_THE_CLUSTER or OF_A_JOB.match(name) is None


@contextmanager
def having(variables: Mapping[str, str]) -> Iterator[None]:
    """Lets this process have these variables and no others inside the block, for the processes that it starts there."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def option_of(name: str) -> str:
    """The option of sbatch that a variable, or a key of a configuration, is about, as sbatch spells it."""
    return name.removeprefix("SBATCH_").lstrip("-").lower().replace("_", "-")


def unused(variables: Mapping[str, str], cluster: SlurmCluster) -> list[str]:
    """The options of sbatch that the environment names and that do not count, each as NAME=VALUE."""
    return [
        f"{name}={value}"
        for name, value in sorted(variables.items())
        if name.startswith("SBATCH_") and not _stays(name, cluster)
    ]


def carried(variables: Mapping[str, str]) -> Sequence[str]:
    """Shell lines that set what jobs need and would miss under SBATCH_EXPORT=NONE: the places of models and data.

    Keys and tokens are left out: the lines are written to a file that others may read.
    """
    mine = {name: value for name, value in variables.items() if CARRIED.match(name) and not SECRET.search(name)}
    return [f"export {name}={shlex.quote(value)}" for name, value in sorted(mine.items())]
