"""A local mirror: its files in any format, refused in one sentence where they cannot be right."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from evaluation.sources.folder import FolderSource
from evaluation.sources.loading import load_tasks
from tests.mirrors import PIQA, mirror


@pytest.mark.parametrize("file_name", ["data.parquet", "data.jsonl", "data.json", "data-00000-of-00001.arrow"])
def test_a_mirror_gives_its_documents_whatever_their_format(tmp_path, file_name):
    documents, folder = datasets.Dataset.from_list(PIQA), tmp_path / "piqa"
    folder.mkdir()
    match Path(file_name).suffix:
        case ".parquet":
            documents.to_parquet(folder / file_name)
        case ".jsonl":
            documents.to_json(folder / file_name)
        case ".json":
            (folder / file_name).write_text(json.dumps(PIQA))
        case ".arrow":
            documents.save_to_disk(folder)
            assert (folder / file_name).exists()
    task = load_tasks(["piqa"], FolderSource(tmp_path))["piqa"]
    assert task.eval_docs.to_list() == PIQA


def test_a_mirror_in_parts_is_read_in_the_order_of_its_names(tmp_path):
    mirror(tmp_path, "piqa", PIQA[3:], "validation-1.jsonl")
    source = mirror(tmp_path, "piqa", PIQA[:3], "validation-0.jsonl")
    assert load_tasks(["piqa"], source)["piqa"].eval_docs.to_list() == PIQA


def test_the_revision_of_a_mirror_changes_with_its_content_alone(tmp_path):
    before = mirror(tmp_path, "piqa", PIQA).revision("piqa")
    source = mirror(tmp_path, "piqa", PIQA)
    assert source.revision("piqa") == before
    assert str(source.folder) in before
    assert mirror(tmp_path, "piqa", PIQA[1:]).revision("piqa") != before


def test_a_mirror_that_is_not_there_is_refused_with_the_layout_expected(tmp_path):
    with pytest.raises(ValueError, match=r"piqa is not a folder; readout.data_dir holds a folder for each task"):
        load_tasks(["piqa"], FolderSource(tmp_path))
    (tmp_path / "piqa").mkdir()
    with pytest.raises(ValueError, match=r"piqa holds no documents; .*validation split as \*.parquet"):
        load_tasks(["piqa"], FolderSource(tmp_path))


def test_a_mirror_of_more_than_the_scored_split_is_refused(tmp_path):
    mirror(tmp_path, "piqa", PIQA, "validation-0.jsonl")
    with pytest.raises(ValueError, match=r"train-0.jsonl is named after another split than validation"):
        load_tasks(["piqa"], mirror(tmp_path, "piqa", PIQA, "train-0.jsonl"))


def test_a_mirror_in_two_formats_is_refused(tmp_path):
    mirror(tmp_path, "piqa", PIQA, "a.jsonl")
    with pytest.raises(ValueError, match=r"several formats \(a.jsonl, b.json\)"):
        load_tasks(["piqa"], mirror(tmp_path, "piqa", PIQA, "b.json"))


@pytest.mark.parametrize("file_name", ["cut.jsonl", "cut.json", "cut.parquet", "cut.arrow"])
def test_a_broken_file_is_refused_by_name(tmp_path, file_name):
    source = mirror(tmp_path, "piqa", [])
    (source.folder / "piqa" / "data.jsonl").unlink()
    (source.folder / "piqa" / file_name).write_text('{"goal": "op')
    with pytest.raises(ValueError, match=f"{file_name} cannot be read"):
        load_tasks(["piqa"], source)
