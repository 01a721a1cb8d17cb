"""Refusals of things that cannot be had: before anything is computed, in the same words wherever a study is started."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

import run
from evaluation import searching
from evaluation.planning import preflight
from evaluation.planning.room import Room, room_of
from evaluation.planning.work import size_of
from matquant.command.terminal import ended
from matquant.config.study import Study
from matquant.errors import UserError
from matquant.models import hub
from matquant.runs.folder import RunDir
from slurm import launch, queue
from slurm.records import Submission, write_submission
from tests.tiny import TINY_OMNIQUANT

DOORS = ("run", "launch --dry-run", "search")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def doors(monkeypatch, capsys) -> Callable[[Study], dict[str, tuple[int, str]]]:
    """Starts a study in every way; returns the exit statuses and what was said."""

    def start(study: Study) -> dict[str, tuple[int, str]]:
        for module in (searching, launch):
            monkeypatch.setattr(module, "load_study", lambda _: study)
        starts: Sequence[Callable[[], int | None]] = (
            lambda: run.check([study]),
            lambda: launch.main(["--dry-run"]),
            lambda: searching.main(["evolution@3"]),
        )
        said: dict[str, tuple[int, str]] = {}
        for name, begin in zip(DOORS, starts, strict=True):
            status = ended(begin)
            said[name] = (status, "".join(capsys.readouterr()))
        return said

    return start


def text_file(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def refused(said: dict[str, tuple[int, str]], sentence: str) -> None:
    """Asserts that every door says a sentence, with exit status 2."""
    for door, (status, words) in said.items():
        assert status == 2, f"{door}: {words}"
        assert re.search(sentence, words), f"{door}: {words}"
        assert "Traceback" not in words


MANY = b"\n\n\n".join(b"a document of some words, number %d" % number for number in range(200))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data=text_files", "data.paths=[{no}]"], r"data\.paths: .*no\.txt cannot be read as UTF-8 text \(No such"),
        (["data=text_files", "data.paths=[{odd}]"], r"data\.paths: .*odd\.txt cannot be read .*at byte 0\)"),
        (["data=text_files", "data.paths=[{short}]"], r"data: paths=.* tokens to train on .*data\.num_sequences=8"),
        (["perplexity=text_files", "readout.perplexity.paths=[{no}]"], r"error: readout\.perplexity\.paths: .*no\.txt"),
        (
            ["perplexity=text_files", "readout.perplexity.paths=[{short}]"],
            r"readout\.perplexity: paths=.* held out .*readout\.perplexity\.num_sequences=4",
        ),
        (["data=hub", "data.repo=nobody/nothing"], r"data set nobody/nothing is neither .*data\.paths=\[FILE"),
        (
            ["perplexity=wikitext2"],
            r"data set Salesforce/wikitext is neither .*readout\.perplexity\.paths=\[FILE",
        ),
        (["readout.source=hub", "readout.tasks=[piqa]"], r"task piqa: .*local cache lacks the documents"),
        (["readout.tasks=[piqqa]"], r"'piqqa' is not a task of .*did you mean piqa"),
        (["readout.source=folder", "readout.data_dir={folder}"], r"piqa is not a folder; readout\.data_dir holds"),
        (["readout.plans=[{plan}]"], r"plan odd-\w+ has 1 layers, .*is in only one of them"),
        (["model=llama32_1b", "grid=per_channel"], r"meta-llama/Llama-3\.2-1B .*not in the local cache"),
        (
            ["data=text_files", "data.paths=[{pipe}]"],
            r"data\.paths: .*pipe cannot be read .*a pipe or a device, and no",
        ),
        (["data=text_files", "data.paths=[~nobody_here/a.txt]"], r"no home folder ~nobody_here .*write the path in"),
        (
            ["readout.source=folder", "readout.data_dir={parts}", "readout.tasks=[piqa]"],
            r"validation\.parquet is not a file; readout\.data_dir",
        ),
        (
            ["readout.source=folder", "readout.data_dir={wrapped}", "readout.tasks=[piqa]"],
            r"json cannot be read .*\(no list of documents\)",
        ),
        (["paths.runs=/proc/nowhere"], r"cannot write to /proc/nowhere .*set paths\.runs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_had_is_one_sentence_at_every_door(overrides, sentence, tiny_study, doors, tmp_path):
    (tmp_path / "odd.json").write_text(json.dumps({"layers": {"model.layers.9.mlp.up_proj": "int4"}}))
    names = {
        "no": str(tmp_path / "no.txt"),
        "odd": text_file(tmp_path, "odd.txt", b"\xff\xfe"),
        "short": text_file(tmp_path, "short.txt", b"a few words"),
        "folder": str(tmp_path),
        "plan": str(tmp_path / "odd.json"),
        "pipe": str(tmp_path / "pipe"),
        "parts": str(tmp_path / "parts"),
        "wrapped": str(tmp_path / "wrapped"),
    }
    os.mkfifo(names["pipe"])
    (tmp_path / "parts/piqa/validation.parquet").mkdir(parents=True)
    (tmp_path / "wrapped/piqa").mkdir(parents=True)
    text_file(tmp_path / "wrapped/piqa", "validation.json", b'{"data": [1]}')
    study = tiny_study(*TINY_OMNIQUANT, *(text.format(**names) for text in overrides))
    refused(doors(study), sentence)
    assert not list(tmp_path.glob("*/*/cell.json"))


@pytest.mark.parametrize(
    ("key", "axis", "amounts"),
    [
        ("data", "data=text_files", ("data.num_sequences=1000", "data.sequence_length=32")),
        ("data", "data=text_files", ("data.num_sequences=3", "data.sequence_length=9000")),
        ("readout.perplexity", "perplexity=text_files", ("readout.perplexity.sequence_length=900",)),
        ("readout.perplexity", "perplexity=text_files", ("readout.perplexity.num_sequences=900",)),
    ],
)
def test_the_remedies_for_too_little_text_work_when_typed(key, axis, amounts, tiny_study, tmp_path):
    files = [axis, f"{key}.paths=[{text_file(tmp_path, 'some.txt', MANY)}]"]
    with pytest.raises(UserError) as error:
        preflight.check([tiny_study(*TINY_OMNIQUANT, *files, *amounts)])
    remedies = re.findall(r"set (\S+=\d+)", str(error.value))
    assert remedies
    for remedy in remedies:
        preflight.check([tiny_study(*TINY_OMNIQUANT, *files, *amounts, remedy)])


def test_the_text_of_a_search_is_looked_at_too_and_its_own_key_is_named(tiny_study, tmp_path):
    files = ["data=text_files", f"data.paths=[{text_file(tmp_path, 'some.txt', MANY)}]", "readout.plans=[evolution@3]"]
    with pytest.raises(UserError, match=r"data: .*set readout\.search\.num_sequences=\d+") as error:
        preflight.check([tiny_study(*TINY_OMNIQUANT, *files, "readout.search.num_sequences=1000")])
    (remedy,) = re.findall(r"set (readout\.search\S+)", str(error.value))
    preflight.check([tiny_study(*TINY_OMNIQUANT, *files, remedy)])


def test_a_study_that_can_be_run_is_planned_with_its_cost_and_its_search_waits_for_training(tiny_study, doors):
    said = doors(tiny_study(*TINY_OMNIQUANT))
    assert said["run"] == (0, "")
    status, words = said["launch --dry-run"]
    assert status == 0
    assert "2 jobs, about" in words
    assert "is not trained yet" in said["search"][1]


def test_a_finished_stage_needs_its_text_no_more(tiny_study, monkeypatch):
    study = tiny_study(*TINY_OMNIQUANT, "readout.perplexity=null", "data=text_files", "data.paths=[/nowhere.txt]")
    (cell,) = study.cells
    assert "/nowhere.txt" in preflight.refusals(study.cells, study.setup)[cell.id]
    monkeypatch.setattr(preflight, "_is_to_train", lambda *_: False)
    assert not preflight.refusals(study.cells, study.setup)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"words": "a"}], r"data set a/b has no column text; set data\.column"),
        ([], r"data: data set a/b has no rows"),
        (
            ValueError("BuilderConfig 'x' not found.\nAvailable: ['y']"),
            r"cannot be opened \(Builder.* Available.*data\.subset",
        ),
        (FileNotFoundError("gone"), r"neither in the local cache nor reachable"),
    ],
    ids=["column", "rows", "subset", "gone"],
)
def test_text_on_the_hub_is_opened_and_its_first_row_read(rows, sentence, tiny_study, monkeypatch):
    def load(*_: object, **__: object) -> object:
        if isinstance(rows, Exception):
            raise rows
        return rows

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(UserError, match=sentence):
        preflight.check([tiny_study(*TINY_OMNIQUANT, "data=hub", "data.repo=a/b")])


def test_a_cell_that_owes_no_result_is_not_looked_at(tiny_study, monkeypatch):
    study = tiny_study("base=none", "model=llama32_1b", "grid=per_channel")
    assert preflight.refusals(study.cells, study.setup)
    monkeypatch.setattr(preflight, "missing", lambda *_: {})
    assert not preflight.refusals(study.cells, study.setup)


# --- room ------------------------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_refused_with_both_numbers_at_every_door(tiny_study, doors, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1e9, 1e9, 1000))
    refused(
        doors(tiny_study(*TINY_OMNIQUANT)), r"runs needs about [\d.]+ kB for 1 cell and has 1\.0 kB free; set paths"
    )


def test_room_that_may_be_short_is_a_warning_and_no_refusal(tiny_study, monkeypatch, caplog):
    study = tiny_study("base=qat", "base.num_steps=2", "base.batch_size=2", "base.warmup_steps=0")
    (cell,) = study.cells
    room = room_of(cell, study.setup, size_of(cell, study.setup.paths.cache))
    assert room == Room(room.checkpoint, certain=0.0, likely=24 * size_of(cell, study.setup.paths.cache).in_scope)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1e9, 1e9, room.checkpoint + room.likely / 2))
    preflight.check([study])
    assert "may need" in caplog.text


def test_the_cells_of_all_points_share_one_disk(tiny_study, monkeypatch):
    points = [tiny_study("base=minmax", f"bits={bits}") for bits in ("int8", "int4", "int2")]
    (cell,) = points[0].cells
    room = room_of(cell, points[0].setup, size_of(cell, points[0].setup.paths.cache))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1e9, 1e9, 3 * room.checkpoint))
    preflight.check(points[:2])
    with pytest.raises(UserError, match="for 3 cells"):
        preflight.check(points)


# --- what does not answer --------------------------------------------------------------------------------------------


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    asked: list[bool] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_silent", False)
    monkeypatch.setattr(hub, "_answers", lambda: asked.append(True))
    hub.settle.cache_clear()
    assert not hub.settle()
    assert not hub.settle()
    assert asked == [True]
    assert constants.HF_HUB_OFFLINE
    hub.settle.cache_clear()


@pytest.mark.parametrize("said", ["squeue cannot be found", "squeue failed (no configuration)"])
def test_a_dry_run_has_a_plan_where_slurm_does_not_answer(said, tiny_study, doors, monkeypatch):
    def silent(_: object) -> queue.Known:
        raise UserError(said)

    monkeypatch.setattr("slurm.plan.ask_for", silent)
    study = tiny_study(*TINY_OMNIQUANT, "cluster=slurm")
    job = Submission("launch-1", "slurm", "launch-1-0", job_id="7", submitted=time.time())
    write_submission(RunDir(study.setup.paths.runs, study.cells[0].id).job("train"), job)
    status, words = doors(study)["launch --dry-run"]
    assert status == 0
    assert "without SLURM's queue, whose jobs count as missing:" in words
    assert said in words
    assert "2 jobs, about" in words


@pytest.mark.parametrize(
    ("model", "plan"),
    [
        (["model=llama32_1b"], r"the plan: 1 jobs, about \d+\.\d hours of a worker .*"),
        (["model=hub", "model.repo=nobody/nothing", "model.name=x"], r"the plan: 1 jobs whose cost is not known, .*"),
        (["readout.tasks=[piqa,piqqa]"], r"the plan: 1 jobs, about .*"),
        (["paths.runs=/proc/nowhere"], r"the plan: 1 jobs, about .*"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_dry_run_ends_with_the_plan_and_its_cost_whatever_is_not_here(model, plan, tiny_study, doors):
    said = doors(tiny_study("base=none", "readout.limit=2", "readout.perplexity=null", "grid=per_channel", *model))
    status, words = said["launch --dry-run"]
    assert status == 2
    (last,) = [line for line in words.splitlines() if line.startswith("dry run: ")]
    assert re.fullmatch(f"dry run: nothing was submitted; {plan}", last)


def test_cells_that_share_a_reason_are_refused_in_one_line_and_still_have_a_cost(tiny_study, doors):
    study = tiny_study("cells=[{base:[minmax],bits:[int8,int4]}]", "readout.source=hub", "readout.tasks=[piqa]")
    status, words = doors(study)["launch --dry-run"]
    assert status == 2
    assert "4 jobs, about" in words
    assert words.count("local cache lacks") == 1
    assert " and 1 more: task piqa" in words


def test_checks_that_take_long_say_what_they_look_at(tiny_study, monkeypatch, caplog):
    def at_once(_: float, act: Callable[[], None]) -> SimpleNamespace:
        return SimpleNamespace(start=act, cancel=lambda: None)

    monkeypatch.setattr(threading, "Timer", at_once)
    monkeypatch.setattr(preflight, "_verdict", lambda _: None)
    with caplog.at_level("INFO"):
        study = tiny_study(*TINY_OMNIQUANT)
        preflight.refusals(study.cells, study.setup)
    assert "looking at 1 folder, 1 model, 1 base, 2 texts, 2 tasks, 1 length" in caplog.text


@pytest.mark.parametrize("place", ["runs", "results"])
def test_a_file_in_the_place_of_a_cells_folder_is_refused_before_training(place, tiny_study, doors, tmp_path):
    study = tiny_study(*TINY_OMNIQUANT)
    (tmp_path / place).mkdir()
    (tmp_path / place / study.cells[0].id).write_text("")
    refused(doors(study), rf"cannot write to \S+{study.cells[0].id} .*set paths\.{place} to")


def test_points_that_share_their_setup_are_looked_at_together(tiny_study, monkeypatch):
    looked: list[str] = []
    monkeypatch.setattr(preflight, "_check_training_text", lambda cell, _: looked.append(cell.id))
    preflight.check([tiny_study(*TINY_OMNIQUANT, f"seed={seed}") for seed in range(3)])
    assert len(looked) == 1


# --- home ------------------------------------------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder_for_the_checks_and_for_the_run_alike(tiny_study, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    keys = ("paths.runs", "paths.results", "paths.out", "paths.cache")
    study = tiny_study("base=minmax", *(f"{key}=~/{key}" for key in keys), "readout.tasks=[]")
    assert [str(path) for _, path in study.setup.paths] == [str(tmp_path / "home" / key) for key in keys]
    preflight.check([study])
    run.run_cell(study.cells[0], study.setup)
    assert not Path("~").exists()
    assert preflight.is_finished(study)


@pytest.mark.parametrize("key", ["paths.runs", "paths.cache", "readout.source=folder readout.data_dir"])
def test_a_home_that_nobody_has_is_refused_where_it_is_typed(key, tiny_study):
    with pytest.raises(
        UserError, match=r"no home folder ~nobody_here .* so ~nobody_here/x is nowhere; write the path in full"
    ):
        tiny_study(*f"{key}=~nobody_here/x".split())
