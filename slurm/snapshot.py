"""The code that jobs run: a copy of the checkout as it is when they are launched.

An edit of the checkout while jobs wait in a queue, or are requeued, does not change their work.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from matquant.checkout import PROJECT
from matquant.runs.files import write_json
from matquant.runs.provenance import SOURCE, source_commit

CODE = ("matquant", "evaluation", "analysis", "slurm", "conf", "run.py", "pyproject.toml")


def take(folder: Path) -> Path:
    """Copies the code below a folder, under a name made of its content, unless it is there already."""
    files = {str(path.relative_to(PROJECT)): path.read_bytes() for path in _code()}
    source = source_commit()
    digest = hashlib.sha256(json.dumps(source).encode())  # the same files, committed since, are another origin
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    snapshot = folder / digest.hexdigest()[:12]
    if (snapshot / SOURCE).is_file():
        return snapshot
    beside = snapshot.with_name(f".{snapshot.name}.{os.getpid()}")
    for name, content in files.items():
        path = beside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_json(beside / SOURCE, {**source, "snapshot": snapshot.name})
    try:
        os.rename(beside, snapshot)
    except OSError:  # another launcher was first, with the same files
        shutil.rmtree(beside)
    return snapshot


def environment(snapshot: Path) -> dict[str, str]:
    """The variables that make Python import a snapshot instead of the checkout it was started from."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    # Safe path: `python -m` would put the working directory, which may be the checkout, before everything else.
    return {"PYTHONPATH": os.pathsep.join([str(snapshot), *others]), "PYTHONSAFEPATH": "1"}


def _code() -> Iterator[Path]:
    for path in (*(PROJECT / name for name in CODE), *sorted(PROJECT.glob("studies/*/conf"))):
        found = [path] if path.is_file() else path.rglob("*")
        yield from sorted(p for p in found if p.is_file() and "__pycache__" not in p.parts)
