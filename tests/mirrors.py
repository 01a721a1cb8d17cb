"""A local mirror of tasks, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.sources.folder import FolderSource

PIQA = [{"goal": f"open jar {i}", "sol1": "twist the lid", "sol2": "look at the lid", "label": i % 2} for i in range(8)]


def mirror(
    root: Path, name: str, documents: Sequence[Mapping[str, Any]], file_name: str = "data.jsonl"
) -> FolderSource:
    """A folder source at `root`, after a file of documents has been added to one of its tasks."""
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / file_name).write_text("".join(f"{json.dumps(doc)}\n" for doc in documents))
    return FolderSource(root)
