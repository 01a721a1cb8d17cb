"""The results of a cell as files that a tracker keeps."""

from __future__ import annotations

from evaluation.results.store import ResultStore
from matquant.runs.folder import RunDir
from matquant.runs.tracked.artifacts import Artifact, checkpoint_artifact, files_below


def results_artifact(store: ResultStore, run: RunDir) -> Artifact | None:
    """The loose results of a cell, made from its checkpoint; None if there are none, or all are packed."""
    cell_id = run.path.name
    files = files_below(store.folder / cell_id)
    if not files:
        return None
    checkpoint = checkpoint_artifact(run)
    made_from = () if checkpoint is None else (checkpoint,)
    facts = {"cell_id": cell_id, **({} if checkpoint is None else {"checksum": checkpoint.facts.get("checksum")})}
    return Artifact(f"{cell_id}-results", "results", files, facts, made_from)
