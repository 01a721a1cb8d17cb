"""A nested folder in rough hands: moved, replaced, mixed, cut short; never other weights without a word."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

import matquant
from matquant.errors import UserError
from matquant.serving.nested import places
from matquant.serving.nested.folder import DESCRIPTION, GRIDS, STAMP, plane_file
from matquant.serving.nested.places import nested_folder
from tests import families
from tests.nested_folders import TOKENS, quantized, written

REST = "nested-unquantized.safetensors"


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS).logits


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two folders of the same architecture with other weights."""
    folder, loaded = tmp_path_factory.mktemp("made"), families.loaded("llama")
    first = written(folder / "one", loaded, quantized(loaded.model))
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1.5)
    return first, written(folder / "two", loaded, quantized(loaded.model))


@pytest.fixture
def mine(made, tmp_path):
    """A copy of the first folder, to be spoiled."""
    return shutil.copytree(made[0], tmp_path / "a b" / "nested")


both = pytest.mark.parametrize("packed", [False, True], ids=["expanded", "packed"])


@both
def test_a_model_of_a_relative_folder_is_read_again_from_another_working_directory(mine, monkeypatch, packed):
    monkeypatch.chdir(mine.parent)
    model, _ = matquant.load("nested", "int3", packed=packed)
    monkeypatch.chdir("/")
    assert torch.equal(logits(matquant.reread(model, "int8")), logits(matquant.load(mine, "int8")[0]))


@both
def test_a_folder_that_was_replaced_is_not_read_into_the_model_of_the_old_one(made, mine, packed):
    model, _ = matquant.load(mine, "int3", packed=packed)
    before = logits(model)
    shutil.rmtree(mine)
    shutil.copytree(made[1], mine)
    with pytest.raises(UserError, match=r"is of another checkpoint than the nested\.json that was read; load"):
        matquant.reread(model, "int8")
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("file", [GRIDS, plane_file(1), plane_file(4), DESCRIPTION, REST])
def test_files_of_two_checkpoints_are_not_read_as_one(made, mine, file):
    shutil.copy(made[1] / file, mine / file)
    with pytest.raises(UserError, match="is of another checkpoint"):
        matquant.load(mine, "int3")


def test_the_rest_of_another_model_around_the_same_codes_is_refused(mine, tmp_path):
    loaded = families.loaded("llama")
    layers = quantized(loaded.model)
    with torch.no_grad():
        loaded.model.get_submodule("model.norm").weight.mul_(1.5)
    other = written(tmp_path / "other", loaded, layers)
    shutil.copy(other / REST, mine / REST)
    with pytest.raises(UserError, match=rf"{REST} is of another checkpoint than the nested\.json"):
        matquant.load(mine, "int3")
    with pytest.raises(UserError, match=rf"{REST} is of another checkpoint than the nested\.json"):
        AutoModelForCausalLM.from_pretrained(mine)


def test_two_exports_of_one_model_are_the_same_to_the_last_byte(made, tmp_path):
    loaded = families.loaded("llama")
    again = written(tmp_path / "again", loaded, quantized(loaded.model))
    for name in (REST, GRIDS, plane_file(1), DESCRIPTION):
        assert (again / name).read_bytes() == (made[0] / name).read_bytes(), name


@both
def test_a_plane_that_lacks_a_layer_leaves_a_model_as_it_was(mine, packed):
    model, _ = matquant.load(mine, "int3", packed=packed)
    before, path = logits(model), mine / plane_file(6)
    planes = load_file(path)
    planes.popitem()
    save_file(planes, path, {STAMP: json.loads((mine / DESCRIPTION).read_text())[STAMP]})
    with pytest.raises(UserError, match=rf"{plane_file(6)} holds no "):
        matquant.reread(model, "int8")
    assert torch.equal(logits(model), before)


def test_weights_beside_the_planes_are_all_there_or_missed_in_one_sentence(mine):
    path = mine / "nested-unquantized.safetensors"
    tensors = load_file(path)
    lost = "model.layers.0.self_attn.q_proj.weight"
    stamp = {STAMP: json.loads((mine / DESCRIPTION).read_text())[STAMP]}
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, path, {"format": "pt", **stamp})
    with pytest.raises(UserError, match=rf"lacks {lost} and 0 other weights"):
        matquant.load(mine, "int3")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=rf"{REST} cannot be read, it may be cut short .* write it again"):
        matquant.load(mine, "int3")
    path.unlink()
    with pytest.raises(UserError, match=r"holds no nested-unquantized\.safetensors; write it again"):
        matquant.load(mine, "int3")
    (mine / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds no config\.json; write it again"):
        matquant.load(mine, "int3")


def test_a_folder_without_its_tokenizer_is_one_sentence(mine):
    for path in mine.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"the tokenizer of .* cannot be read"):
        matquant.load(mine, "int3")


def test_a_folder_at_home_is_found(made, mine, monkeypatch):
    monkeypatch.setenv("HOME", str(mine.parent))
    assert torch.equal(logits(matquant.load("~/nested", "int3")[0]), logits(matquant.load(made[0], "int3")[0]))


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_a_class_or_a_folder_without_the_layers_is_one_sentence(mine, tmp_path):
    with pytest.raises(UserError, match=r"a LlamaModel has no layer .*; load the folder with AutoModelForCausalLM"):
        AutoModel.from_pretrained(mine)
    families.loaded("llama").model.save_pretrained(tmp_path / "dense")
    with pytest.raises(UserError, match=r"holds no nested\.json; `matquant export nested CELL DIR` writes"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=matquant.MatQuantConfig("int3"))


@both
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deep", "pickle"]
)
def test_a_copy_is_read_again_without_its_original(mine, packed, copied):
    model, _ = matquant.load(mine, "int3", packed=packed)
    before, other = logits(model), copied(model)
    assert torch.equal(logits(matquant.reread(other, "int8")), logits(matquant.load(mine, "int8")[0]))
    assert torch.equal(logits(model), before)


def test_the_state_of_a_packed_model_holds_its_weights(made, mine, tmp_path):
    model, _ = matquant.load(mine, "int2+ep", packed=True)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other, _ = matquant.load(made[1], "int7", packed=True)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(logits(other), logits(model))


def test_a_packed_model_that_is_saved_is_one_sentence_and_says_its_width(mine, tmp_path):
    model, _ = matquant.load(mine, "int3", packed=True)
    matquant.reread(model, "int5")
    assert model.config.quantization_config.plan == "int5"
    with pytest.raises(UserError, match=r"packed=True is not saved, .*; copy that folder, or load with packed=False"):
        model.save_pretrained(tmp_path / "saved")


def test_a_branch_of_the_hub_that_moves_is_read_at_the_commit_that_was_opened(made, tmp_path, monkeypatch):
    asked = []

    def fetch(repo: str, name: str, revision: str | None = None, **words: Any) -> str:
        asked.append(revision)
        snapshot = tmp_path / "snapshots" / "c0ffee"
        snapshot.mkdir(parents=True, exist_ok=True)
        return shutil.copy(made[0] / name, snapshot / name)

    monkeypatch.setattr(places, "hf_hub_download", fetch)
    whole = nested_folder("someone/nested", "main")
    next(whole.read_at(whole.plan("int1")))
    assert asked == ["main", "c0ffee", "c0ffee", "c0ffee"]


COMMIT = "c0ffee" + "0" * 34


def cached(folder: Path, cache: Path, subfolder: str = "", *, planes: int = 8) -> None:
    """The first planes of a folder, and everything else of it, as the hub's library keeps what it has fetched."""
    place = cache / "models--someone--nested"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, place / "snapshots" / COMMIT / subfolder)
    for number in range(planes + 1, 9):
        (place / "snapshots" / COMMIT / subfolder / plane_file(number)).unlink()


@pytest.mark.parametrize("subfolder", ["", "nested/one"])
@pytest.mark.parametrize("local", [True, False], ids=["local", "cache"])
@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_a_cache_a_folder_within_and_a_revision_count_for_every_file(made, tmp_path, subfolder, local):
    """Tokenizer and planes come from the place that the weights come from, by either way of loading."""
    if local:
        shutil.copytree(made[0], tmp_path / "some" / subfolder, dirs_exist_ok=True)
        source, words = str(tmp_path / "some"), {"subfolder": subfolder}
    else:
        cached(made[0], tmp_path / "cache", subfolder, planes=4)
        source, words = "someone/nested", {"subfolder": subfolder, "cache_dir": tmp_path / "cache"}
        words |= {"local_files_only": True, "revision": COMMIT if subfolder else None}
    expected = logits(matquant.load(made[0], "int3")[0])
    model, tokenizer = matquant.load(source, "int3", **words)
    assert tokenizer("abc")["input_ids"]
    assert torch.equal(logits(model), expected)
    matquant.reread(model, "int2")
    said = {name: word for name, word in words.items() if word is not None}
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=matquant.MatQuantConfig("int3"), **said)
    assert torch.equal(logits(model), expected)


def test_a_token_is_used_for_every_file_and_leaves_with_no_model(made, monkeypatch):
    asked = []

    def fetch(repo: str, name: str, *, token: str | None = None, **words: Any) -> str:
        asked.append(token)
        return str(made[0] / name)

    monkeypatch.setattr(places, "hf_hub_download", fetch)
    whole = nested_folder("someone/nested", token="secret")
    next(copy.deepcopy(whole).read_at(whole.plan("int1")))
    assert asked == ["secret"] * 4
    assert b"secret" not in pickle.dumps(whole)
    assert "secret" not in repr(whole)


def test_a_look_whether_transformers_is_there_registers_nothing_too_early():
    assert importlib.util.find_spec("transformers.quantizers") is not None
    code = (
        "import importlib.util, matquant; importlib.util.find_spec('transformers.quantizers')\n"
        "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as known; print('matquant' in known)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
