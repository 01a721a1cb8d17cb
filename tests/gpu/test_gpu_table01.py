"""Table 1 of one model on this machine, tiny: it stops when its minutes are over, and the same command goes on."""

from __future__ import annotations

import json

import pytest

from benchmarks.gpu import table01
from benchmarks.gpu.table01 import largest, main, spec_of
from matquant.config.cell import EmbeddedModel, FolderModel, RandomModel
from tests.foreign import plain_folder


def test_it_stops_at_a_block_and_the_same_command_does_the_rest(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(table01, "TEXT_BYTES", 100_000)
    words = ["--small", "--device", "cpu", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(table01, "give_way", lambda _: None)  # to stop in the middle of a cell
        assert main([*words, "--minutes", "0"]) == 0
    assert "the same command goes on" in capsys.readouterr().out
    first = json.loads((tmp_path / "gpu_table01.json").read_text())["records"]
    assert [(one["stage"], one["done"], one["of"]) for one in first] == [("train", 1, 2)]
    assert main(words) == 0
    content = json.loads((tmp_path / "gpu_table01.json").read_text())
    assert not content["failed"]
    cells = {one["cell"] for one in content["records"]}
    assert len(cells) == 7  # unquantized, five baselines and MatQuant
    assert "matquant" in content["records"][0]["cell"]
    for cell in cells:
        for stage in {one["stage"] for one in content["records"] if one["cell"] == cell}:
            mine = [one for one in content["records"] if (one["cell"], one["stage"]) == (cell, stage)]
            assert sum(one["done"] for one in mine) == mine[0]["of"]
    written = (tmp_path / "gpu_table01.md").read_text()
    assert "not begun" not in written
    assert written.endswith("## What failed\n\nNothing.\n")


def test_random_weights_have_the_shape_that_a_name_says(tmp_path):
    spec = spec_of("gemma2_9b")
    assert isinstance(spec, RandomModel)
    assert (spec.name, spec.dtype, spec.add_bos) == ("gemma2_9b_random", "bfloat16", True)
    assert spec.config["vocab_size"] == 256_000


def test_a_folder_is_that_model_and_so_is_one_that_needs_no_hub(tmp_path):
    assert isinstance(spec_of("smollm2_135m"), EmbeddedModel)
    folder = plain_folder(tmp_path / "model")
    spec = spec_of(str(folder))
    assert isinstance(spec, FolderModel)
    assert spec.path == str(folder)


@pytest.mark.parametrize(
    ("gigabytes", "words", "model"),
    [(80, [], "gemma2_9b"), (40, [], "gemma2_2b"), (40, ["activations=host"], "gemma2_9b")],
)
def test_the_largest_model_is_chosen_that_is_estimated_to_fit(gigabytes, words, model, tmp_path, monkeypatch):
    monkeypatch.setattr(table01, "TEXT_BYTES", 1000)
    assert largest(tmp_path, gigabytes, words) == model


def test_what_does_not_fit_or_is_not_known_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table01, "TEXT_BYTES", 1000)
    assert main(["--model", "gemma9", "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err
