"""Jobs of submitit on this machine, in sessions of their own: a Ctrl-C in the terminal reaches the launcher alone.

submitit's controller answers a Ctrl-C by killing its tasks after one second; the launcher gives them time to save.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from submitit.local import local


@contextmanager
def own_sessions(**variables: str) -> Iterator[None]:
    """Gives the jobs that submitit starts inside the block a session of their own, and some variables.

    submitit has no option for either, and writes CUDA_VISIBLE_DEVICES itself, from numbers alone.
    """

    def start(command: Any, *, env: dict[str, str], **options: Any) -> subprocess.Popen[Any]:
        with _hearing_interrupts():
            return subprocess.Popen(command, env={**env, **variables}, start_new_session=True, **options)

    with patch.object(local, "subprocess", SimpleNamespace(Popen=start)):
        yield


@contextmanager
def _hearing_interrupts() -> Iterator[None]:
    """Lets processes that are started inside the block hear SIGINT, by which they are stopped.

    They would inherit the deafness of a launcher that a script has started with `&`.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: None)  # a handler is not inherited
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
