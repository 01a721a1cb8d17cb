"""The answers of sbatch that are no number of a job: their kind, SLURM's own words, and the key that each is about."""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["full", "array", "silent", "refused"]
"""No place now; an array that is too large; no answer, so that the jobs may have been taken; or anything else."""

RETRYING = re.compile(r"temporarily unable to accept job|job queue full")
"""The note of an sbatch that found the queue full (MaxJobCount), and now asks again and again for two minutes."""
FULL = re.compile(
    r"(?:Assoc|QOS)(?:Max|Grp)SubmitJob|MaxJobCount|Resource temporarily unavailable|"
    rf"Job violates accounting/QOS policy|{RETRYING.pattern}"
)
OTHER_LIMIT = re.compile(r"(?:Assoc|QOS)(?!MaxSubmit|GrpSubmit)[A-Z]\w+")
"""SLURM's name of a limit that is not about the number of jobs, such as QOSMaxWallDurationPerJobLimit."""
ARRAY = re.compile(r"Invalid job array specification")
SILENT = re.compile(
    r"timed out|[Uu]nable to contact|Zero Bytes|[Uu]nexpected message|Transport endpoint|Connection (?:refused|reset)|"
    r"[Cc]ommunication connection failure|Message (?:receive|send) failure|no answer"
)
KEYS = (
    (r"\b[Aa]ccount\b", "cluster.account"),
    (r"[Pp]artition", "cluster.partition"),
    (r"[Ww]all ?[Dd]uration|time limit is invalid|TimeLimit", "cluster.time_min and cluster.evaluate_time_min"),
    (r"feature|constraint", "cluster.constraint"),
    (r"[Mm]emory|Mem(?=Per)", "cluster.mem_gb_per_task"),
    (r"generic resource|gres|GRES|[Gg][Pp][Uu]", "cluster.gpus_per_node"),
    (r"processors|[Cc][Pp][Uu]", "cluster.cpus_per_task"),
    (r"[Nn]ode count", "cluster.nodes"),
    (
        r"node configuration is not available",
        "cluster.gpus_per_node, cluster.cpus_per_task, cluster.mem_gb_per_task and cluster.constraint",
    ),
    (r"wckey", "cluster.sbatch.wckey"),
    (r"option|mutually exclusive", "cluster.sbatch"),
    (r"Assoc", "cluster.account"),
    (r"QOS|qos", "cluster.qos"),
)
"""The keys below `cluster` that SLURM's words are about; the first that fits counts."""


def kind_of(said: str) -> Kind:
    """The kind of an answer."""
    if SILENT.search(said):
        return "silent"
    if ARRAY.search(said):
        return "array"
    if FULL.search(said) and not OTHER_LIMIT.search(said):
        return "full"
    return "refused"


def in_words(said: str) -> str:
    """The message of sbatch in one line, each part once."""
    lines = re.findall(r"sbatch: (?:error: |fatal: )?(.+)", said) or said.splitlines()
    return "; ".join(dict.fromkeys(line.strip().rstrip(".") for line in lines if line.strip()))[:500] or "no answer"


def keys_of(words: str) -> str:
    """The keys below `cluster` that a refusal is about; all of them if it does not tell."""
    limit = OTHER_LIMIT.search(words)
    about = words if limit is None else limit[0]
    return next((key for pattern, key in KEYS if re.search(pattern, about)), "cluster.*")
