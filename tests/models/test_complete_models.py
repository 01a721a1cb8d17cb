"""A model is complete or refused: each kind of fault is one sentence, before anything is computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file

from matquant.config.cell import Cell, EmbeddedText, FolderModel, HubModel, ModelSpec, NoBase, RandomModel
from matquant.errors import UserError
from matquant.models import checks, loading
from matquant.models.loading import check_model, load_model
from matquant.models.random_model import byte_tokenizer, random_model
from tests.families import LLAMA as SIZES
from tests.families import VISION
from tests.mixtures import MIXTURES

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]
UP = "model.layers.1.mlp.up_proj.weight"


def saved(folder: Path, architecture: str = "llama", **config) -> Path:
    spec = RandomModel(kind="random", name="x", architecture=architecture, config={**SIZES, **config})
    random_model(spec, torch.float32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(llama, tmp_path) -> Path:
    """A complete model that a test may spoil."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def retensor(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def reconfigure(folder: Path, **facts: object) -> None:
    path = folder / "config.json"
    known = {**json.loads(path.read_text()), **facts}
    path.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))


def cell(model: ModelSpec) -> Cell:
    return Cell(model=model, base=NoBase(kind="none"))


def refusals(model: ModelSpec, cache: Path) -> list[str]:
    """The sentences of preflight and of loading, each empty if it has nothing to say."""
    sentences = []
    for look in (
        lambda: check_model(cell(model), cache=cache),
        lambda: load_model(model, cache=cache, dtype="float32", device=CPU),
    ):
        try:
            look()
            sentences.append("")
        except UserError as error:
            sentences.append(str(error))
    return sentences


def assert_refused(folder: Path, *words: str, **facts) -> None:
    """Preflight and loading say the same, in one line."""
    for sentence in refusals(FolderModel(kind="folder", name="x", path=str(folder), **facts), folder):
        assert all(part in sentence for part in words), sentence
        assert "\n" not in sentence


def assert_measured(folder: Path, **facts) -> None:
    assert refusals(FolderModel(kind="folder", name="x", path=str(folder), **facts), folder) == ["", ""]


# --- weights ---------------------------------------------------------------------------------------------------------


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: one for name, one in tensors.items() if part not in name}


def with_tensors(**changed: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, **{name.replace("__", "."): one for name, one in changed.items()}}


def with_value(value: float, dtype: torch.dtype = torch.float32) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        tensors[UP].view(-1)[3] = value
        return {name: one.to(dtype) for name, one in tensors.items()}

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("lm_head"), ["lacks 1 tensor", "lm_head.weight", "random numbers"]),
        (without("layers.1.mlp"), ["lacks 3 tensors", UP]),
        (without("layers"), ["lacks 18 tensors", "and 15 more"]),
        (with_tensors(score__weight=torch.ones(2, 32)), ["1 tensor that its model does not know", "score.weight"]),
        (with_tensors(model__norm__weight=torch.ones(5)), ["model.norm.weight is (5,) and should be (32,)"]),
        (with_value(float("nan")), ["not finite in " + UP]),
        (with_value(float("-inf"), torch.bfloat16), ["not finite in " + UP]),
        (lambda tensors: {**tensors, UP: tensors[UP].to(torch.int8)}, ["already quantized", f"{UP} is int8"]),
        (lambda tensors: {**tensors, UP: tensors[UP].to(torch.float8_e4m3fn)}, ["already quantized", "float8"]),
        (with_tensors(model__x__qweight=torch.ones(2, 2).int()), ["already quantized"]),
    ],
)
def test_weights_that_are_not_the_models_are_refused_by_name(folder, change, words):
    retensor(folder, change)
    assert_refused(folder, f"model.path={folder}", *words)


def test_a_config_with_more_layers_than_the_file_is_refused(folder):
    reconfigure(folder, num_hidden_layers=3)
    assert_refused(folder, "lacks 9 tensors", "model.layers.2.")


def test_experts_are_judged_as_they_are_fused(tmp_path):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    folder = saved(tmp_path, "qwen3_moe", **experts)
    assert_measured(folder)
    whole = load_file(folder / "model.safetensors")
    retensor(folder, without("layers.1.mlp.experts.3.up_proj"))
    assert_refused(folder, "do not fit together in model.layers.1.mlp.experts.gate_up_proj")
    save_file(without("layers.1.mlp.experts.3.")(whole), folder / "model.safetensors", {"format": "pt"})
    assert_refused(folder, "model.layers.1.mlp.experts", "(3, 32, 16) and should be (4, 32, 16)")


def test_tied_shards_and_older_files_are_complete(tmp_path):
    folder = saved(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert_measured(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    assert_measured(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    assert_refused(folder, "lacks 1 of the", "model-00002-of-")
    for path in folder.glob("model*"):
        path.unlink()
    assert_refused(folder, "holds no weights")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert_measured(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda content: content[:-100], ["is cut short or damaged"]),
        (lambda content: content[:3], ["is cut short or damaged"]),
        (lambda _: b"", ["is cut short or damaged"]),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\nsize 9\n", ["git lfs pull"]),
    ],
)
def test_a_file_that_is_not_whole_is_refused(folder, content, words):
    path = folder / "model.safetensors"
    path.write_bytes(content(path.read_bytes()))
    assert_refused(folder, str(path), *words)


def test_older_files_may_hold_masks_and_tables_that_a_model_computes_by_itself(tmp_path):
    folder = saved(tmp_path, "gpt2", n_embd=32, n_head=4, n_layer=2, n_inner=64)
    mask = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
    retensor(
        folder,
        lambda tensors: {
            **{name.removeprefix("transformer."): one for name, one in tensors.items()},
            **{f"h.{index}.attn.{kind}": mask.clone() for index in range(2) for kind in ("bias", "masked_bias")},
        },
    )
    assert_measured(folder)


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.0.attn.causal_mask",  # CodeGen
        "model.decoder.version",  # OPT
        "model.embed_positions.weights",  # XGLM
        "biogpt.embed_positions._float_tensor",
        "transformer.h.0.self_attention.maybe_rotary.inv_freq",  # Falcon
    ],
)
def test_every_family_has_its_own_name_for_masks_and_tables(folder, name):
    retensor(folder, lambda tensors: {**tensors, name: torch.ones(1)})
    assert_measured(folder)


def test_the_text_model_of_one_with_images_is_read_alone(tmp_path):
    """As meta-llama/Llama-4-Scout is on the hub, of which transformers makes a text model."""
    text = {name: value for name, value in MIXTURES["llama4"].config.items() if name != "vocab_size"}
    names = ("vision_output_dim", "projector_input_dim", "projector_output_dim")
    vision = {**VISION, **dict.fromkeys(names, 16), "pixel_shuffle_ratio": 0.5}
    config = transformers.CONFIG_MAPPING["llama4"](text_config={**text, "vocab_size": 257}, vision_config=vision)
    whole: Any = transformers.AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    spec, tokens = FolderModel(kind="folder", name="x", path=str(tmp_path)), torch.arange(1, 20)[None]
    read: Any = load_model(spec, cache=Path(), dtype="float32", device=CPU).model
    with torch.no_grad():
        assert torch.allclose(whole(input_ids=tokens).logits, read(input_ids=tokens).logits, atol=1e-5)
    retensor(tmp_path, without("layers.1.self_attn.q_proj"))
    assert_refused(tmp_path, "lacks 1 tensor", "layers.1.self_attn.q_proj")


def test_an_adapter_beside_the_weights_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    assert_refused(folder, "holds an adapter beside its weights; merge it")


def test_a_mended_folder_is_measured(folder):
    whole = (folder / "model.safetensors").read_bytes()
    retensor(folder, with_value(float("nan")))
    assert_refused(folder, "not finite")
    (folder / "model.safetensors").write_bytes(whole)
    assert_measured(folder)


def test_a_large_model_is_refused_when_it_is_loaded(folder, monkeypatch):
    monkeypatch.setattr(loading, "SMALL", 1000)
    retensor(folder, with_value(float("nan")))
    before, loaded = refusals(FolderModel(kind="folder", name="x", path=str(folder)), folder)
    assert not before
    assert f"not finite in {UP}, read as float32" in loaded


def test_a_weight_too_large_for_float16_names_wider_dtypes(folder):
    retensor(folder, with_value(1e6))
    with pytest.raises(UserError, match=r"read as float16; .* set model.dtype=bfloat16 readout.dtype=bfloat16"):
        load_model(FolderModel(kind="folder", name="x", path=str(folder)), cache=folder, dtype="float16", device=CPU)


# --- configuration ---------------------------------------------------------------------------------------------------

OWN_CODE = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["already quantized (gptq, 4 bits)"]),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, ["(bitsandbytes, 8 bits)"]),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, ["already quantized (compressed-tensors)"]),
        ({"model_type": "xyz"}, ["model_type=xyz, which transformers", "does not know"]),
        ({"model_type": None}, ["has no model_type in its config.json"]),
        ({"model_type": "xyz", "auto_map": OWN_CODE}, ["brings its own code, which is not run here"]),
        ({"model_type": "t5", "architectures": ["T5Model"]}, ["model_type=t5 (T5Model)", "no causal language model"]),
        ({"hidden_size": "wide"}, ["cannot be read", "hidden_size"]),
        ({"num_attention_heads": 5}, ["cannot be read", "number of attention heads (5)"]),
    ],
)
def test_a_configuration_that_is_no_plain_causal_model_is_refused(folder, facts, words):
    reconfigure(folder, **facts)
    assert_refused(folder, f"model.path={folder}", *words)


def test_a_model_with_own_code_that_transformers_knows_is_measured_with_the_code_of_transformers(folder):
    reconfigure(folder, auto_map=OWN_CODE)
    assert_measured(folder)


def test_a_configuration_that_is_not_json_is_refused(folder):
    (folder / "config.json").write_text("{")
    assert_refused(folder, "is not a valid JSON file")


# --- tokenizer and length --------------------------------------------------------------------------------------------


def test_a_model_without_a_tokenizer_is_refused(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert_refused(folder, "has no tokenizer", "tokenizer.save_pretrained(FOLDER)")


def test_a_tokenizer_with_its_own_code_is_refused(folder):
    path = folder / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}, "tokenizer_class": "Tokenizer"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    assert_refused(folder, "the tokenizer of", "own code, which is not run here")


@pytest.mark.parametrize(
    "add",
    [
        lambda tokenizer: tokenizer.add_tokens(["<new>"]),
        lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "<new>"}),
        lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]}),
    ],
)
def test_a_tokenizer_larger_than_the_embedding_is_refused(folder, add):
    tokenizer = byte_tokenizer()
    add(tokenizer)
    tokenizer.save_pretrained(folder)
    assert_refused(folder, "'<new>' has the id 257, and the embedding has 257 rows")


def test_an_embedding_with_spare_rows_is_no_fault(tmp_path):
    assert_measured(saved(tmp_path, vocab_size=300))


def test_a_mark_for_the_unknown_that_a_class_adds_to_a_tokenizer_of_bytes_is_no_fault(tmp_path):
    assert_measured(saved(tmp_path, "qwen2"))


def test_bos_is_left_out_only_where_that_is_asked_for(folder):
    byte_tokenizer(sets_bos=True).save_pretrained(folder)
    assert_refused(folder, "begins every text with <eos>", "model.add_bos=true, or model.add_bos=never")
    assert_measured(folder, add_bos=True)
    assert_measured(folder, add_bos="never")
    byte_tokenizer().save_pretrained(folder)
    assert_refused(folder, "begins no text with a BOS token", "set model.add_bos=false", add_bos=True)


def write_tokenizer(folder: Path, template: str) -> None:
    """A tokenizer that puts <s> and </s> around every text as a template says, and calls neither of them BOS."""
    path = folder / "tokenizer.json"
    facts = json.loads(path.read_text())
    marks = {"<s>": 0, "</s>": 1}
    pieces = [
        {"Sequence": {"id": "A", "type_id": 0}} if part == "$A" else {"SpecialToken": {"id": part, "type_id": 0}}
        for part in template.split()
    ]
    special = {mark: {"id": mark, "ids": [index], "tokens": [mark]} for mark, index in marks.items()}
    facts["post_processor"] = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": pieces,
        "special_tokens": special,
    }
    vocabulary = {token: index for token, index in facts["model"]["vocab"].items() if index not in marks.values()}
    facts["model"]["vocab"] = {**marks, **vocabulary}
    path.write_text(json.dumps(facts))


@pytest.mark.parametrize("template", ["<s> $A", "<s> </s> $A"])
def test_a_mark_that_is_not_called_bos_is_not_left_out_without_a_word(folder, template):
    write_tokenizer(folder, template)
    words = template.removesuffix("$A").replace(" ", "")
    assert_refused(folder, f"begins every text with {words}, and model.add_bos=false", "model.add_bos=never")
    assert_refused(folder, f"begins every text with {words}, not with a BOS", "model.add_bos=never", add_bos=True)
    assert_measured(folder, add_bos="never")
    if template == "<s> $A":  # the other remedy
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token": "<s>"}))
        assert_measured(folder, add_bos=True)


def test_a_mark_behind_every_text_does_not_stand_between_question_and_answer(folder):
    write_tokenizer(folder, "<s> $A </s>")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token": "<s>"}))
    assert_refused(folder, "ends every text with </s>", "model.add_bos=never", add_bos=True)
    assert_measured(folder, add_bos="never")
    write_tokenizer(folder, "$A </s>")
    assert_measured(folder)


def test_never_is_no_bos_in_a_cell_of_its_own(folder):
    plain, never = (cell(FolderModel(kind="folder", name="x", path="x", add_bos=bos)) for bos in (False, "never"))
    assert not never.sets_bos
    assert plain.id != never.id


def test_text_longer_than_the_model_is_refused_with_its_key(folder):
    spec = FolderModel(kind="folder", name="x", path=str(folder))
    fits, too_long = (EmbeddedText(kind="embedded", num_sequences=1, sequence_length=length) for length in (64, 65))
    check_model(cell(spec).model_copy(update={"data": fits}), cache=folder, heldout=fits)
    with pytest.raises(
        UserError, match=r"^data.sequence_length=65 is longer than the 64 .* set data.sequence_length=64"
    ):
        check_model(cell(spec).model_copy(update={"data": too_long}), cache=folder)
    with pytest.raises(UserError, match=r"set readout.perplexity.sequence_length=64$"):
        check_model(cell(spec), cache=folder, heldout=too_long)


# --- the hub ---------------------------------------------------------------------------------------------------------


def cached(hub: Path, files: Mapping[str, str | Path]) -> HubModel:
    """A repository in a cache of the hub."""
    commit, folder = "a" * 40, hub / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    for name, content in files.items():
        text = content.read_bytes() if isinstance(content, Path) else content.encode()
        (folder / "snapshots" / commit / name).write_bytes(text)
    return HubModel(kind="hub", name="x", repo="some/model")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    for module in ("huggingface_hub.constants", "transformers.utils.hub"):
        for name in ("HF_HUB_CACHE", "TRANSFORMERS_CACHE"):
            monkeypatch.setattr(f"{module}.{name}", str(tmp_path / "hub"), raising=False)
    return tmp_path / "hub"


def test_a_cached_hub_model_says_what_is_wrong_with_it(hub, llama):
    spec = cached(hub, {"config.json": '{"model_type": "xyz"}'})
    for sentence in refusals(spec, hub):
        assert sentence.startswith("model.repo=some/model has model_type=xyz, which transformers")
    shutil.rmtree(hub)
    spec = cached(hub, {"config.json": "{"})
    for sentence in refusals(spec, hub):
        assert "is there, but cannot be read" in sentence
    shutil.rmtree(hub)
    spec = cached(hub, {path.name: path for path in llama.iterdir()})
    assert refusals(spec, hub) == ["", ""]
    shutil.rmtree(hub)
    spec = cached(hub, {name: llama / name for name in ("config.json", "model.safetensors")})
    for sentence in refusals(spec, hub):
        assert "model.repo=some/model has no tokenizer" in sentence


def test_what_is_not_in_the_cache_is_not_said_to_be_broken(hub):
    for sentence in refusals(HubModel(kind="hub", name="x", repo="some/model"), hub):
        assert "is not in the local cache, and HF_HUB_OFFLINE=1 keeps the hub from being asked" in sentence


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (GatedRepoError, "is gated, and this machine has no access to it; ask for it on https://huggingface.co/some/"),
        (RevisionNotFoundError, "has no revision v9 on the hub; set model.revision=main"),
        (RepositoryNotFoundError, "is not on the hub, or is private; correct model.repo"),
    ],
)
def test_the_hubs_answers_have_words_of_their_own(hub, kind, words):
    spec = HubModel(kind="hub", name="x", repo="some/model", revision="v9")
    answer = kind.__new__(kind)
    with pytest.raises(UserError) as raised, checks.plain_words(spec):
        raise OSError("a long text") from answer
    assert words in str(raised.value)
