"""Artifacts: the files that a tracker keeps, those that it only names, and what they were made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.results.kept import results_artifact
from evaluation.results.store import ResultStore
from matquant.runs.folder import RunDir
from matquant.runs.tracked.artifacts import Artifact, Role, checkpoint_artifact, nested_artifact, roles
from tests.made_results import measure, paper_cells, study


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """Files of 1, 2 and 4 MB."""
    found = {name: tmp_path / name for name in ("large", "middle", "small")}
    for path, megabytes in zip(found.values(), (4, 2, 1), strict=True):
        path.write_bytes(bytes(megabytes * 10**6))
    return found


@pytest.mark.parametrize(
    ("most_mb", "sent"),
    [(0, {"small"}), (0.5, {"small"}), (2.9, {"small"}), (3, {"small", "middle"}), (7, {"small", "middle", "large"})],
)
def test_the_smallest_files_are_sent_as_far_as_the_limit_goes_and_one_in_any_case(files, most_mb, sent):
    assert Artifact("it", "model", files).uploaded(most_mb) == sent


def test_what_others_were_made_from_is_used_and_comes_first():
    checkpoint, other = Artifact("checkpoint", "model", {}), Artifact("other", "model", {})
    results = Artifact("results", "results", {}, made_from=(checkpoint,))
    assert roles([results]) == [Role(checkpoint, False, True), Role(results, True, False)]
    assert roles([checkpoint, results]) == [Role(checkpoint, True, True), Role(results, True, False)]
    assert roles([other, results]) == [Role(other, True, False), *roles([results])]
    assert roles([]) == []


def test_a_cell_without_a_checkpoint_has_results_made_from_nothing(tmp_path):
    made = study(tmp_path, paper_cells())
    measure(made)
    run = RunDir(tmp_path / "runs", made.cells[0].id)
    assert checkpoint_artifact(run) is None
    kept = results_artifact(ResultStore(made.setup.paths.results), run)
    assert kept is not None
    assert (kept.name, kept.kind, kept.made_from) == (f"{made.cells[0].id}-results", "results", ())
    assert {name.partition("/")[0] for name in kept.files} == {"full"}
    assert all(path.is_file() for path in kept.files.values())
    assert results_artifact(ResultStore(tmp_path / "nothing"), run) is None


def test_a_file_that_is_being_written_is_no_part_of_an_artifact(tmp_path):
    run = RunDir(tmp_path / "runs", "cell")
    for name in ("a/whole", ".part.host.1.tmp", ".state/part"):
        (tmp_path / "nested" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nested" / name).write_text("")
    assert set(nested_artifact(tmp_path / "nested", run).files) == {"a/whole"}
