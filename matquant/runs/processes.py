"""Processes of this machine, by number and start time, and the user they belong to."""

from __future__ import annotations

import os
import pwd
from functools import cache

import psutil


def process_started(pid: int) -> float | None:
    """The start time of a process of this machine, by which it differs from a later one of its number; None if gone."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def is_hidden(pid: int) -> bool:
    """True for a process of another user that this machine does not show (a /proc mounted with hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False


@cache
def user_name() -> str:
    """The name of the user of this process, as SLURM spells it: not a variable, which anybody may set."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
