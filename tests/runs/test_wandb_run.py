"""W&B as its users expect: what one cell sends to a server, from training to the export of its folder.

The server is a STAND-IN on this machine (tests/wandb_stand_in.py), and W&B's package is the real one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import wandb

from evaluation.results.metrics import is_metric
from evaluation.results.store import ResultStore
from evaluation.stages import EVALUATE, TRAIN, run_stage
from matquant.config.cell import Cell
from matquant.runs.tracked.artifacts import Artifact
from matquant.runs.tracking import tracking
from matquant.serving import export
from tests.tiny import TINY_OMNIQUANT, tiny_overrides
from tests.wandb_stand_in import StandIn, stand_in

UPLOAD_MB = 0.01
"""Less than the tensors of the tiny checkpoint, and more than its description."""
WIDTHS = ("int8", "int4", "int2")


class Told(NamedTuple):
    """Everything that a server was told of a cell that three processes' worth of work trained, measured, exported."""

    server: StandIn
    cell: Cell
    folder: Path


@pytest.fixture(scope="module")
def online() -> Iterator[StandIn]:
    mine = {
        "WANDB_MODE": "online",
        "WANDB_API_KEY": "0" * 40,
        "WANDB_ERROR_REPORTING": "false",
        "NO_PROXY": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patch, stand_in() as server:
        for name, value in {**mine, "WANDB_BASE_URL": server.url}.items():
            patch.setenv(name, value)
        wandb.teardown()  # it remembers the environment of the tests before
        yield server
        wandb.teardown()


@pytest.fixture(scope="module")
def told(online, composed, tmp_path_factory) -> Told:
    folder = tmp_path_factory.mktemp("told")
    paths = [override for override in tiny_overrides(folder) if override.startswith("paths.")]
    tracked = ["tracking=wandb", f"tracking.upload_mb={UPLOAD_MB}"]
    asked = ["weights=gemma2", "seed=1", "readout.tasks=[piqa]", "readout.limit=2", *tracked]
    study = composed(*tiny_overrides(folder), *TINY_OMNIQUANT, *asked)
    for stage in (TRAIN, EVALUATE):
        run_stage(study.one_cell(), study.setup, stage)
    export.main(["nested", study.one_cell().id, str(folder / "nested"), *paths, *tracked])
    return Told(online, study.one_cell(), folder)


def test_a_cell_is_one_run_with_a_name_tags_and_fields_and_its_export_is_another(told):
    described = told.server.runs[told.cell.id]
    assert described["displayName"].startswith("omniquant · matquant · gemma2 λ · ")
    assert described["displayName"].endswith("seed 1 · tiny")
    assert described["jobType"] == "evaluate"
    assert {"omniquant", "MatQuant", "int2", "gemma2 λ", "ffn", "seed 1", "limit 2"} <= set(described["tags"])
    config = described["config"]
    assert (config["cell_id"], config["method"], config["weights"]) == (told.cell.id, "MatQuant", "gemma2")
    assert (config["limit"], config["readout"]["tasks"]) == (2, ["piqa"])
    assert set(told.server.runs) == {told.cell.id, f"{told.cell.id}-export"}
    assert told.server.runs[f"{told.cell.id}-export"]["jobType"] == "export"


def test_read_outs_are_drawn_against_effective_bits_and_counters_are_not_drawn(told):
    """The metrics as W&B keeps them in a run's configuration, by the field numbers of its message MetricRecord."""
    sent = told.server.runs[told.cell.id]["config"]["_wandb"]["m"]
    name, glob, step_metric, options, hidden = "1", "2", "5", "6", 2
    names = {one[name] for one in sent if hidden in one[options]}
    assert names == {"readout/effective_bits", "train/block", "train/step"}
    (curves,) = [one for one in sent if glob in one]
    assert (curves[glob], sent[curves[step_metric] - 1][name]) == ("readout/*", "readout/effective_bits")


def test_every_metric_of_every_width_is_a_point_of_a_curve_and_a_final_number(told):
    store = ResultStore(told.folder / "results")
    summary, rows = told.server.summaries[told.cell.id], told.server.rows[told.cell.id]
    points = {row["readout/effective_bits"]: row for row in rows if "readout/effective_bits" in row}
    assert sorted(points) == [2, 4, 8]
    for result in map(store.read, store.paths(told.cell.id)):
        point = points[result.effective_bits]
        for metric, value in result.metrics.items():
            name = metric if result.task == "log_pplx" else f"{result.task}/{metric}"
            is_percent = metric.removesuffix("_stderr") in ("same_top_p", "rms_dp", "mean_dp")
            shown = pytest.approx(100 * value if is_percent else value)
            if is_metric(metric):
                assert point[f"readout/{name}"] == summary[f"{result.plan}/{name}"] == shown
            elif metric.endswith("_stderr"):
                assert summary[f"{result.plan}/{name}"] == shown
    for width in WIDTHS:
        assert summary[f"{width}/effective_bits"] == int(width[3:])
        assert summary[f"{width}/task_avg"] == pytest.approx(100 * summary[f"{width}/piqa/acc_norm"])
    assert not [name for name in summary if name.startswith("readout/")]  # of no width


def test_no_panel_has_a_single_point(told):
    """Numbers that W&B draws by itself: all but what is hidden, and tables, which are no curves."""
    rows = told.server.rows[told.cell.id]
    counts = {name: sum(name in row for row in rows) for row in rows for name in row if not name.startswith("_")}
    assert [name for name, count in counts.items() if count < 2] == ["results"]


def test_a_single_width_is_hidden_where_it_would_be_a_panel_of_its_own(online, tiny_study):
    study = tiny_study("tracking=wandb", "base=minmax", "bits=int4")
    with tracking(study.one_cell(), study.setup, "cell"):
        pass
    (curves,) = [
        one for one in online.runs[study.one_cell().id]["config"]["_wandb"]["m"] if one.get("2") == "readout/*"
    ]
    assert 2 in curves["6"]


def test_checkpoint_results_and_nested_folder_are_artifacts_that_name_their_sources(told):
    cell_id = told.cell.id
    (checkpoint,), (results,), (nested,) = (
        told.server.artifacts.named(f"{cell_id}-{kind}") for kind in ("checkpoint", "results", "nested")
    )
    assert (checkpoint.type, checkpoint.made_by) == ("model", cell_id)
    assert checkpoint.used_by == [cell_id, f"{cell_id}-export"]  # by the run that measured, and by the export
    assert (results.type, results.made_by) == ("results", cell_id)
    assert (nested.type, nested.made_by) == ("model", f"{cell_id}-export")
    facts = json.loads((told.folder / "runs" / cell_id / "checkpoint" / "nested.json").read_text())
    for version in (checkpoint, results, nested):
        assert version.committed
        assert version.metadata["checksum"] == facts["checksum"]
    assert set(nested.manifest["contents"]) == {path.name for path in (told.folder / "nested").iterdir()}


def test_large_files_are_named_by_their_places_and_small_ones_are_sent(told):
    folder = told.folder / "runs" / told.cell.id / "checkpoint"
    (checkpoint,) = told.server.artifacts.named(f"{told.cell.id}-checkpoint")
    assert checkpoint.files == {"nested.json": (folder / "nested.json").read_bytes()}
    assert checkpoint.references == {"nested.safetensors": (folder / "nested.safetensors").as_uri()}
    for version in told.server.artifacts.versions:
        assert sum(map(len, version.files.values())) <= UPLOAD_MB * 1e6


def test_the_machine_is_measured(told):
    assert "system.memory_percent" in told.server.statistics[told.cell.id][0]


def test_files_that_cannot_be_sent_cost_a_sentence_and_none_of_the_numbers(online, tiny_study, tmp_path, caplog):
    study = tiny_study("tracking=wandb", "base=none")
    cell = study.one_cell()
    with tracking(cell, study.setup, "cell") as tracker:
        tracker.log({"loss": 1.0})
        tracker.keep(Artifact("gone", "results", {"gone.json": tmp_path / "gone.json"}))
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("matquant")]
    assert said.startswith("W&B does not take all files of gone (")
    assert [row["loss"] for row in online.rows[cell.id]] == [1.0]
