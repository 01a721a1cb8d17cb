"""Models: sources, structure, and refusals before any weight is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from matquant.config.cell import EmbeddedModel, FolderModel, HubModel, RandomModel
from matquant.errors import UserError
from matquant.models.embedded import embedded_files
from matquant.models.layers.families import blocks, forward_replaced, linears
from matquant.models.loading import check_model, load_model, skeleton
from matquant.models.random_model import byte_tokenizer
from matquant.models.wheels import MODEL

CPU = torch.device("cpu")


def tiny(**changes) -> RandomModel:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return RandomModel(kind="random", name="tiny", architecture="llama", config={**sizes, **changes})


def test_a_random_model_is_the_same_every_time_and_leaves_the_random_state_alone(tmp_path):
    state = torch.get_rng_state()
    first, second = (load_model(tiny(), cache=tmp_path, dtype="float32", device=CPU).model for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_the_byte_tokenizer_keeps_every_text():
    tokenizer = byte_tokenizer()
    text = "Café: 5 µm → ∞\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == 257


def test_a_folder_written_by_save_pretrained_is_a_model(tmp_path):
    written = load_model(tiny(), cache=tmp_path, dtype="float32", device=CPU)
    written.model.save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    read = load_model(
        FolderModel(kind="folder", name="m", path=str(tmp_path / "m")), cache=tmp_path, dtype="float32", device=CPU
    )
    assert all(torch.equal(a, b) for a, b in zip(written.model.parameters(), read.model.parameters(), strict=True))
    assert read.tokenizer("ab")["input_ids"] == written.tokenizer("ab")["input_ids"]


def test_the_scope_is_the_feed_forward_network_of_every_block():
    model = skeleton(tiny(), cache=Path())
    assert len(blocks(model)) == 2
    assert list(linears(blocks(model)[0], "ffn")) == ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_replaced_forward_comes_back_after_an_error():
    block = torch.nn.Linear(2, 2)
    expected = block(torch.ones(2))

    def failing() -> None:
        with forward_replaced(block, lambda x: x + 1):
            assert block(1) == 2
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert torch.equal(block(torch.ones(2)), expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["grid=group_128"], "grid.group_size=128 does not divide the 32 inputs of block 0 mlp.gate_proj of tiny"),
        (["model.architecture=lama"], "model.architecture=lama is not one that transformers knows"),
        (["model.architecture=t5"], "model.architecture=t5 is no causal language model; try llama"),
        (
            ["model.config.num_attention_heads=5"],
            "a multiple of the number of attention heads (5).); correct model.config",
        ),
        (["model.architecture=mamba"], "MambaForCausalLM is not supported: it has no blocks at model.layers or"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(tiny_study, overrides, message):
    study = tiny_study("base=minmax", "bits=int8", *overrides)
    with pytest.raises(UserError) as raised:
        check_model(study.cells[0], cache=study.setup.paths.cache)
    assert message in str(raised.value)


def test_a_package_that_a_model_needs_is_named(monkeypatch):
    def lacking(_: object) -> None:
        raise ImportError(
            "\nTimmWrapperModel requires the timm library. Install it:\n`pip install timm`. Then restart.\n"
        )

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", lacking)
    with pytest.raises(UserError, match=r"^model tiny needs a package .*the timm library.*; pip install timm$"):
        skeleton(tiny(), cache=Path())


def test_a_hub_model_that_is_out_of_reach_names_the_alternatives(tmp_path):
    spec = HubModel(kind="hub", name="x", repo="nobody/nothing")
    with pytest.raises(UserError) as raised:
        load_model(spec, cache=tmp_path, dtype="float32", device=CPU)
    message = str(raised.value)
    assert "nobody/nothing" in message
    assert "model=smollm2_135m" in message
    assert "model=folder" in message
    assert "\n" not in message


def test_a_folder_without_a_model_is_refused(tmp_path):
    spec = FolderModel(kind="folder", name="x", path=str(tmp_path))
    with pytest.raises(UserError, match=r"holds no config\.json"):
        load_model(spec, cache=tmp_path, dtype="float32", device=CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"package": "no-such-wheel"}, "is not installed"),
        ({"version": "9.9"}, f"is installed as {MODEL.version}"),
        ({"file": "x.gguf"}, "is missing"),
    ],
)
def test_an_embedded_model_that_is_missing_says_how_to_install_it(change, message):
    facts = {
        "kind": "embedded",
        "name": "x",
        "package": MODEL.package,
        "version": MODEL.version,
        "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    }
    with pytest.raises(UserError, match=message):
        embedded_files(EmbeddedModel.model_validate({**facts, **change}))


def test_the_embedded_model_is_where_its_spec_says():
    spec = {
        "kind": "embedded",
        "name": "x",
        "package": MODEL.package,
        "version": MODEL.version,
        "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    }
    (path,) = embedded_files(EmbeddedModel.model_validate(spec))
    assert path.stat().st_size > 90e6
