"""Files that a stage has made, as a tracker keeps them: checkpoints, nested folders, results.

Each names those that it was made from, so that a tracker can draw where a number comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matquant.runs.files import read_json
from matquant.runs.folder import RunDir

Kind = Literal["model", "results"]
"""The type that trackers list artifacts by; a registry of models takes those of `model`."""
SHOWN = ("cell_id", "checksum", "commit", "scale_dtype")
"""The facts of a checkpoint that are shown beside its files."""


@dataclass(frozen=True)
class Artifact:
    """Some files under one name, of which a tracker keeps every version."""

    name: str
    kind: Kind
    files: Mapping[str, Path]
    """Their paths, by their names in the artifact."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    made_from: tuple[Artifact, ...] = ()

    def uploaded(self, most_mb: float) -> frozenset[str]:
        """The files that are sent, smallest first, while they are no larger than this together.

        The first is sent in any case: a reference is told from another by its address alone, so that a version is told
        from another by the files that are sent.
        """
        sizes = sorted((path.stat().st_size, name) for name, path in self.files.items())
        sent, total = list[str](), 0
        for size, name in sizes:
            total += size
            if sent and total > most_mb * 1e6:
                break
            sent.append(name)
        return frozenset(sent)


class Role(NamedTuple):
    """An artifact, and what it is to a run."""

    artifact: Artifact
    is_made: bool
    is_used: bool


def roles(kept: Sequence[Artifact]) -> list[Role]:
    """The artifacts that a run has made, and those that they were made from, which it has used: sources first."""
    made = {artifact.name for artifact in kept}
    used = {source.name for artifact in kept for source in artifact.made_from}
    found = {one.name: one for artifact in kept for one in (*artifact.made_from, artifact)}
    return [Role(one, name in made, name in used) for name, one in found.items()]


def checkpoint_artifact(run: RunDir) -> Artifact | None:
    """The checkpoint of a cell; None if it has none."""
    try:
        facts = read_json(run.description)
    except (OSError, ValueError):
        return None
    shown = {name: facts[name] for name in SHOWN if name in facts}
    return Artifact(f"{run.path.name}-checkpoint", "model", files_below(run.checkpoint), shown)


def nested_artifact(folder: Path, run: RunDir) -> Artifact:
    """An exported folder that is served at any width, made from the checkpoint of a cell."""
    checkpoint = checkpoint_artifact(run)
    made_from = () if checkpoint is None else (checkpoint,)
    facts = {} if checkpoint is None else checkpoint.facts
    return Artifact(f"{run.path.name}-nested", "model", files_below(folder), facts, made_from)


def files_below(folder: Path) -> dict[str, Path]:
    """All files of a folder that are whole, by their paths in it."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_hidden(path, folder))
    return {path.relative_to(folder).as_posix(): path for path in found}


def _is_hidden(path: Path, folder: Path) -> bool:
    """True for a file that is being written beside another."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
