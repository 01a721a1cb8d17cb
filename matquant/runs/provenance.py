"""The circumstances under which a number was made: commit, versions, device and time."""

from __future__ import annotations

import platform
import subprocess
import time
from functools import cache
from importlib import metadata
from typing import Any

from matquant.checkout import PROJECT
from matquant.runs.files import read_json

SOURCE = "SOURCE.json"
LIBRARIES = ("torch", "transformers", "tokenizers", "lm_eval", "datasets", "safetensors", "numpy")


@cache
def library_versions() -> dict[str, str]:
    """The versions a number depends on, read from package metadata so that nothing is imported for it."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


@cache
def source_commit() -> dict[str, Any]:
    """The commit of this source tree and whether it had been edited; `unknown` outside a git checkout.

    A snapshot that jobs run from says itself what it was taken from.
    """
    if (PROJECT / SOURCE).is_file():
        return read_json(PROJECT / SOURCE)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PROJECT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": "unknown", "dirty": None}


def provenance(*, device: str, seconds: float) -> dict[str, Any]:
    """The origin of a measurement: commit, versions, device, wall-clock seconds and the time of day (UTC)."""
    return {
        **source_commit(),
        "versions": library_versions(),
        "device": device,
        "seconds": round(seconds, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
