"""W&B: the content of a run as W&B itself wrote it to disk, and a report as the library sends it.

Publishing is tested against a STAND-IN of the API on this machine (tests/wandb_stand_in.py); it is not W&B.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import wandb

import run
from analysis.frame.load import load_frame
from analysis.report.wandb_report import FILE, as_json, build, main, publish, run_sets
from evaluation.protocol import protocols
from evaluation.results.readouts import readout_point, readout_rows
from evaluation.results.store import ResultStore
from matquant.checkout import PROJECT
from matquant.errors import UserError
from matquant.runs.wandb_run import run_id
from tests.made_results import measure, paper_cells, study
from tests.tiny import TINY_OMNIQUANT
from tests.wandb_stand_in import ENTITY, stand_in


@pytest.fixture
def made(tmp_path):
    made = study(tmp_path, paper_cells(), name="smollm2_table01")
    measure(made)
    return made


@pytest.fixture
def loaded(made):
    return load_frame(made.cells, made.setup, ResultStore(made.setup.paths.results))


def of_type(spec, kind):
    return [block for block in spec["blocks"] if block["type"] == kind]


def text_of(block) -> str:
    return block.get("text", "") + "".join(map(text_of, block.get("children", [])))


def test_the_report_has_a_pareto_panel_run_sets_curves_tables_and_words(made, loaded):
    report = as_json(build(made, loaded))
    assert report["title"] == "MatQuant: smollm2_table01"
    pareto, curves = of_type(report["spec"], "panel-grid")
    panels = [panel["config"] for panel in pareto["metadata"]["panelBankSectionConfig"]["panels"]]
    assert [panel["xAxis"] for panel in panels] == ["readout/effective_bits"] * 2
    assert [panel["metrics"] for panel in panels] == [["readout/task_avg"], ["readout/log_pplx"]]
    (losses,) = [panel["config"]["metrics"] for panel in curves["metadata"]["panelBankSectionConfig"]["panels"]]
    assert {"train/int8", "train/int4", "train/int2"} <= set(losses)
    tables = [block["content"] for block in of_type(report["spec"], "markdown-block")]
    assert "Table 1: OmniQuant, FFN" in tables[0]
    assert "MatQuant (OmniQuant)" in tables[1]
    words = [text_of(block) for block in of_type(report["spec"], "paragraph")]
    assert any(line.startswith("int2 read out of MatQuant") for line in words)
    listed = " ".join(text_of(block) for block in of_type(report["spec"], "list"))
    assert "c0ffeec0ffee" in listed


def test_every_run_is_in_the_run_set_of_its_method(made, loaded):
    from analysis.frame.summary import summary

    sets = run_sets(summary(loaded))
    assert sorted(id_ for ids in sets.values() for id_ in ids) == sorted(cell.id for cell in made.cells)
    grid = of_type(as_json(build(made, loaded))["spec"], "panel-grid")[0]
    filters = {one["name"]: one["filters"]["filters"] for one in grid["metadata"]["runSets"]}
    assert filters["MatQuant (OmniQuant)"] == [
        {"key": {"section": "run", "name": "name"}, "op": "IN", "value": [run_id(made.cells[3].id)], "disabled": False}
    ]


def test_the_same_results_are_the_same_file(made, loaded):
    assert as_json(build(made, loaded)) == as_json(build(made, loaded))


def test_an_empty_results_folder_is_a_report_of_gaps(tmp_path):
    made = study(tmp_path, paper_cells())
    loaded = load_frame(made.cells, made.setup, ResultStore(made.setup.paths.results))
    report = as_json(build(made, loaded))
    assert "Nothing has been measured yet." in json.dumps(report)
    assert "nothing measured yet" in json.dumps(report)


def overrides(folder):
    return ["experiment=demo", f"paths.out={folder}", f"paths.results={PROJECT / 'studies/demo/results'}"]


def test_without_publish_the_report_is_written_and_the_way_to_publish_it_said(tmp_path, capsys):
    main(overrides(tmp_path))
    assert json.loads((tmp_path / "demo" / FILE).read_text())["project"] == "matquant"
    assert "wandb login" in capsys.readouterr().out


def test_publishing_without_a_key_is_refused(tmp_path):
    with pytest.raises(UserError, match="publishing needs a W&B key"):
        main([*overrides(tmp_path), "--publish"])
    assert (tmp_path / "demo" / FILE).exists()


def test_publishing_to_a_server_that_does_not_answer_is_refused_in_seconds(made, loaded, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    mine = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": url, "NO_PROXY": "127.0.0.1"}
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it remembers the environment of the tests before
    try:
        with pytest.raises(UserError, match=f"W&B at {url} does not answer .*; repeat the command where it does"):
            publish(made, loaded)
    finally:
        wandb.teardown()


def published(folder, url: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own, because the library remembers its login."""
    mine = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online", "HOME": str(folder)}
    command = [sys.executable, "-m", "matquant", "wandb", *overrides(folder), "--publish"]
    environment = {**os.environ, **mine, "NETRC": str(folder / "netrc"), "WANDB_ERROR_REPORTING": "false"}
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)


def test_publishing_sends_what_was_written_to_a_stand_in_of_the_api(tmp_path):
    with stand_in() as server:
        finished = published(tmp_path, server.url)
    assert finished.returncode == 0, finished.stderr
    assert f"published: {server.url}/{ENTITY}/matquant/reports/" in finished.stdout
    assert (server.saved["entityName"], server.saved["projectName"]) == (ENTITY, "matquant")
    assert server.saved["displayName"] == "MatQuant: demo"
    sent = json.loads(server.saved["spec"])
    written = json.loads((tmp_path / "demo" / FILE).read_text())["spec"]
    assert [block["type"] for block in sent["blocks"]] == [block["type"] for block in written["blocks"]]
    sets = of_type(sent, "panel-grid")[0]["metadata"]["runSets"]
    assert {one["project"]["name"] for one in sets} == {"matquant"}


def test_a_server_that_refuses_is_one_sentence(tmp_path):
    with stand_in() as server:
        server.answer = lambda query, variables: {"viewer": None}
        finished = published(tmp_path, server.url)
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1].startswith("error: W&B did not take the report")
    assert "Traceback" not in finished.stderr


# --- runs -------------------------------------------------------------------------------------------------------------


def test_an_offline_run_holds_config_curves_histogram_points_and_the_table(tiny_study):
    """Reads the files that W&B wrote, with W&B's own message types."""
    made = tiny_study(*TINY_OMNIQUANT, "tracking=wandb", "readout.tasks=[piqa]", "readout.limit=2")
    (cell,) = made.cells
    run.run_cell(cell, made.setup)
    folder = made.setup.paths.runs / cell.id / "wandb"
    (written,) = folder.glob("offline-run-*/run-*.wandb")
    config, history, artifacts = records(written)
    assert any("results/path" in line for line in history)
    assert artifacts[f"{cell.id}-checkpoint"].use_after_commit
    assert not artifacts[f"{cell.id}-results"].use_after_commit
    assert config["model"] == json.loads(cell.model_dump_json())["model"]
    assert config["objective"]["terms"] == {"int8": 1.0, "int4": 1.0, "int2": 1.0}
    for term in ("int8", "int4", "int2"):
        assert len([line for line in history if f"train/{term}" in line]) >= 2
    counts, *_ = [line for line in history if "train/histogram/_type" in line]  # one a block
    assert counts["train/histogram/_type"] == "histogram"
    assert len(counts["train/histogram/values"]) == 256
    points = [line for line in history if "readout/effective_bits" in line]
    wanted = protocols(made.setup.readout, add_bos=False)
    rows = readout_rows(ResultStore(made.setup.paths.results), cell.id, wanted)
    assert len(points) == len({row["plan"] for row in rows}) >= 2
    plans = {row["effective_bits"]: row["plan"] for row in rows}
    for point in points:
        expected = readout_point(rows, plans[point["readout/effective_bits"]])
        assert point["readout/log_pplx"] == pytest.approx(expected["readout/log_pplx"])
        assert point["readout/task_avg"] == pytest.approx(expected["readout/task_avg"])
    (place,) = [line["results/path"] for line in history if "results/path" in line]
    stored = json.loads((written.parent / "files" / place).read_text())
    assert stored["columns"] == list(rows[0])
    assert sorted(map(str, stored["data"])) == sorted(str(list(row.values())) for row in rows)


def records(path) -> tuple[dict, list[dict], dict[str, Any]]:
    """The config, the history and the artifacts of an offline run."""
    from wandb.proto import wandb_internal_pb2

    config, history, artifacts = {}, [], {}
    for data in entries(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            items = record.history.item
            history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        if record.HasField("artifact"):
            artifacts[record.artifact.name] = record.artifact
    return config, history, artifacts


def entries(data: bytes) -> Iterator[bytes]:
    """The entries of a .wandb file: a header of 7 bytes, then LevelDB's log format, checked by its checksums.

    Blocks of 32 KiB; a chunk is checksum, length and type (whole, first, middle, last) and its bytes.
    """
    assert data[:4] == b":W&B"
    place, entry = 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, place)
        chunk = data[place + 7 : place + 7 + length]
        if len(chunk) < length:
            return  # still being written
        assert kind in (1, 2, 3, 4)
        assert checksum == zlib.crc32(chunk, zlib.crc32(bytes([kind]))) & 0xFFFFFFFF
        entry = chunk if kind in (1, 2) else entry + chunk
        if kind in (1, 4):
            yield entry
        place += 7 + length


def test_points_and_rows_tolerate_what_is_missing_or_corrupt(made):
    store = ResultStore(made.setup.paths.results)
    cell_id = made.cells[3].id
    path = next((store.folder / cell_id / "int2").glob("boolq*.json"))
    path.write_text("{")
    wanted = protocols(made.setup.readout, add_bos=False)
    rows = readout_rows(store, cell_id, wanted)
    assert {row["task"] for row in rows if row["plan"] == "int2"} == {"arc_easy", "log_pplx"}
    point = readout_point(rows, "int2")
    assert point["readout/task_avg"] == pytest.approx(52.0)
    assert readout_point(rows, "int7") == {}
    assert readout_rows(store, "no such cell", wanted) == []
