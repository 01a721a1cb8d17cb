"""Reasons for which a stage has failed: a remedy for each, and the rule whether the next launch tries again.

The words of SLURM are read here: the states in which jobs end, and the reasons for which jobs cannot start.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from matquant.runs.status import Reason
from slurm.states.known import Known, QueuedJob

Again = Literal["always", "once more", "asked", "insisted"]
"""The launch that submits it again: the next one; the next one, unless it has ended so twice with nothing saved in
between, or with the same crash; one with --retry-failed; or one with --retry-failed=all."""


class Rule(NamedTuple):
    """A user's remedy for a failure, and the launch that tries again."""

    remedy: str
    again: Again


GOES_ON = "launch again: it goes on from its saved state"
RULES: Mapping[Reason, Rule] = {
    "out of memory": Rule(
        "lower its memory (readout.batch_size, base.micro_batch_size, activations=host) or raise the limit "
        "(cluster.mem_gb_per_task, more GPUs), then --retry-failed=all",
        "insisted",
    ),
    "non-finite": Rule(
        "the same cell would fail again: lower base.lr or change what is trained, which is another cell", "insisted"
    ),
    "time limit": Rule(
        "raise cluster.time_min or cluster.max_requeues, then --retry-failed: its state is saved", "asked"
    ),
    "killed": Rule(GOES_ON, "once more"),
    "crashed": Rule(f"{GOES_ON}; the log may name the library that crashed", "once more"),
    "node lost": Rule(GOES_ON, "once more"),
    "cancelled": Rule(GOES_ON, "always"),
    "preempted": Rule(GOES_ON, "always"),
    "interrupted": Rule(GOES_ON, "always"),
    "setup failed": Rule("read the log and mend cluster.setup or the environment, then --retry-failed", "asked"),
    "cannot start": Rule("mend what SLURM's reason names, then --retry-failed: its job is replaced", "asked"),
    "held": Rule("release it with `scontrol release`, or replace its job with --retry-failed", "asked"),
    "bad input": Rule("mend what the message names, then --retry-failed", "asked"),
    "disk full": Rule(
        "make room in paths.runs and paths.results, then launch again: it goes on; earlier results are intact", "always"
    ),
    "error": Rule("read the log, then --retry-failed", "asked"),
}
ENDINGS: Mapping[str, Reason] = {
    "OUT_OF_MEMORY": "out of memory",
    "TIMEOUT": "time limit",
    "DEADLINE": "time limit",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node lost",
    "BOOT_FAIL": "node lost",
    "LAUNCH_FAILED": "node lost",
    "RECONFIG_FAIL": "node lost",
}
"""The states of SLURM's that say why a job has ended; FAILED and COMPLETED do not."""


class Obstacle(NamedTuple):
    """A reason for which SLURM does not start a job, and what to change."""

    reason: Reason
    words: str
    remedy: str


_TIME = "lower cluster.time_min or cluster.evaluate_time_min, or name another cluster.partition or cluster.qos"
_LESS = "ask for less (cluster.nodes, gpus_per_node, cpus_per_task, mem_gb_per_task, time_min)"
_SIZE = f"{_LESS} or name another cluster.partition"
_NEVER: Mapping[str, tuple[str, str]] = {
    r"PartitionTimeLimit|TimeLimit|QOSTimeLimit|(QOS|Assoc)Max(Wall|.*Minutes).*PerJob": (
        "its time limit is longer than the partition, account or QOS allows",
        _TIME,
    ),
    r"PartitionNodeLimit|(QOS|Assoc)M(ax|in)Node.*": (
        "the partition, account or QOS does not allow this number of nodes",
        "change cluster.nodes, or name another cluster.partition or cluster.qos",
    ),
    r"PartitionConfig": ("the partition has no nodes for what it asks for, or its limits do not allow it", _SIZE),
    r"BadConstraints": (
        "no node has what it asks for",
        f"change cluster.constraint, or {_SIZE}",
    ),
    r"ReservationDeleted|Reservation_.*[Dd]eleted": (
        "its reservation has been deleted",
        "name another reservation in cluster.sbatch",
    ),
    r"DeadLine": ("its deadline cannot be met", "drop the deadline in cluster.sbatch, or lower cluster.time_min"),
    r"InvalidAccount|AccountNotAllowed|Assoc.*NotAllowed": (
        "the account does not exist or may not use the partition",
        "change cluster.account",
    ),
    r"InvalidQOS|QOSNotAllowed": ("the QOS does not exist or may not be used here", "change cluster.qos"),
    r"MaxMemPerLimit|(QOS|Assoc)(Max|Min)Mem.*(PerJob|PerNode|Memory)|QOSMinMemory": (
        "the partition, account or QOS does not allow this memory",
        "change cluster.mem_gb_per_task",
    ),
    r"(QOS|Assoc)MaxGRES.*(PerJob|PerNode)|QOSMinGRES": (
        "the account or QOS does not allow this number of GPUs",
        "change cluster.gpus_per_node, or name another cluster.qos",
    ),
    r"(QOS|Assoc)MaxC[Pp][Uu].*(PerJob|PerNode)|QOSMinC[Pp][Uu].*": (
        "the account or QOS does not allow this number of CPUs",
        "change cluster.cpus_per_task",
    ),
    r"(QOS|Assoc).*Per(Job|Node)|(QOS|Assoc)Min.*": ("the account or QOS does not allow what it asks for", _SIZE),
}
"""Reasons for which a job waits for ever, whatever other jobs do."""
_LIMIT = re.compile(r"(QOS|Assoc)(Grp|Max)|AccountingPolicy|QOSUsageThreshold|QOSResourceLimit|QOSJobLimit")
_HELD = re.compile(r"JobHeld|JobHoldMaxRequeue|launch_failed_requeued_held|job_requeued_in_held_state|.*requeued_held")
_HELD_STATES = ("REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
_AWAY = re.compile(r"ReqNodeNotAvail|NodeDown|Nodes_required|PartitionDown|PartitionInactive|Reservation|FrontEndDown")


def obstacle(job: QueuedJob, known: Known) -> Obstacle | None:
    """The reason for which a waiting job will never start unless somebody changes something; None if it may start."""
    if not job.is_waiting:
        return None
    word = job.reason.strip("()").replace(" ", "_")
    if job.state in _HELD_STATES or _HELD.match(word):
        by = {"JobHeldAdmin": "an administrator holds it", "JobHeldUser": "its user holds it"}.get(
            word, "SLURM holds it after it failed to start"
        )
        return Obstacle("held", by, f"release it (scontrol release {job.job_id}), or replace its job: --retry-failed")
    for pattern, (words, remedy) in _NEVER.items():
        if re.match(pattern, word):
            return Obstacle("cannot start", words, f"{remedy}; then --retry-failed: its job is replaced")
    if _LIMIT.match(word) and not known.may_get_room(job):
        words = "it is over a limit of its user, account or QOS, while no other job runs whose end would make room"
        remedy = f"{_LESS} or name another cluster.account or cluster.qos; then --retry-failed: its job is replaced"
        return Obstacle("cannot start", words, remedy)
    return None


def is_at_limit(job: QueuedJob) -> bool:
    """True for a job that waits at a limit that other jobs may have reached."""
    return job.is_waiting and _LIMIT.match(job.reason) is not None


def why_it_waits(job: QueuedJob) -> str:
    """The state of a waiting job, with a word on reasons that end only when somebody acts."""
    ends = (
        " (until its nodes or its partition are back)" if _AWAY.match(job.reason.strip("()").replace(" ", "_")) else ""
    )
    return f"{job.state.lower()}: {job.reason}{ends}"
