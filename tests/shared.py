"""Things that are made once for all tests of a run: the first process that asks makes them, and the others wait.

A folder of the test run, which is filled once; and configurations, which take Hydra seconds to compose and are frozen.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock

from matquant.config.study import Study, load_study


def run_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder that all processes of a test run share: each has its own below it."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(folder: Path, fill: Callable[[Path], object]) -> Path:
    """A folder that the first process to ask fills; one that was left half filled is filled again from the start."""
    whole = folder.with_name(f"{folder.name}.whole")
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            fill(folder)
            whole.touch()
    return folder


@cache
def studies(folder: Path) -> Callable[..., Study]:
    """Composes a study, unless a process of this test run has composed it already."""

    @cache
    def composed(*overrides: str) -> Study:
        name = hashlib.sha256("\0".join(overrides).encode()).hexdigest()[:16]

        def compose(place: Path) -> None:
            (place / "study.pickle").write_bytes(pickle.dumps(load_study(overrides)))

        return pickle.loads((once(folder / "studies" / name, compose) / "study.pickle").read_bytes())

    return composed
