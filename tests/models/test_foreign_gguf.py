"""GGUF files become the model that llama.cpp computes, or are refused by what transformers' reader passes over."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast

from matquant.config.cell import EmbeddedModel
from matquant.errors import UserError
from matquant.models import embedded, gguf_model
from matquant.models.checks import check_tokenizer
from matquant.models.gguf_model import require_placed, settle
from matquant.models.loading import check_model, load_model, tokenizer_of
from matquant.models.random_model import byte_tokenizer
from matquant.notation import Plan
from matquant.serving.gguf.file import FILE, Gguf
from matquant.serving.gguf.tokenizer import SPLITS
from tests.models.test_foreign import study
from tests.serving.test_gguf import held_model, source_of, tiny_model

CPU = torch.device("cpu")
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 5e5}
LLAMA3 |= {"original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4}
OF_GEMMA = {"full_attention": {**LINEAR, "rope_theta": 1e6}}
OF_GEMMA |= {"sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}


def sharp(model):
    """A model whose attention is far from even, so that positions matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(20)
    return model


def written(folder: Path, model, tokenizer=None):
    """The file of a model, and the model that it holds."""
    source, layers = source_of(model, Plan.parse("int4"), tokenizer=tokenizer)
    Gguf().refuse(source)
    folder.mkdir()
    Gguf().write(folder, source, lambda name: Gguf().hold(name, source.read(name)))
    if tokenizer is None:
        byte_tokenizer().save_pretrained(folder)
    return folder / FILE, held_model(source, layers)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": LINEAR}),
        ("gemma2", {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0}),
        ("gemma3_text", {"rope_parameters": OF_GEMMA}),
    ],
)
def test_a_file_is_measured_as_the_model_that_was_written(kind, settings, tmp_path):
    file, model = written(tmp_path / "file", sharp(tiny_model(kind, **settings)))
    cell = study(tmp_path, file).one_cell()
    check_model(cell, cache=tmp_path)
    read, _ = load_model(cell.model, cache=tmp_path, dtype="float32", device=CPU)
    tokens = torch.randint(0, 256, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Gemma's norms lie in the file as 1 + w, which rounds w, and sharp attention makes more of it (2e-5).
        assert (read(tokens).logits - model(tokens).logits).abs().max() < 1e-4


def test_frequencies_stay_in_float32_whatever_the_weights_are_read_as(tmp_path):
    file, model = written(tmp_path / "file", tiny_model("llama", rope_parameters=LLAMA3))
    read, _ = load_model(study(tmp_path, file).one_cell().model, cache=tmp_path, dtype="bfloat16", device=CPU)
    assert read.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.allclose(read.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq, rtol=1e-6)


def test_tensors_without_a_place_are_refused_by_name(tmp_path):
    file, _ = written(tmp_path / "file", tiny_model("llama", attention_bias=True))
    cell = study(tmp_path, file).one_cell()
    says = (
        r"has 24 tensors .*leaves out.*blk.0.attn_q.bias, .* and 21 more; measure its unquantized model with base=none"
    )
    with pytest.raises(UserError, match=says):
        check_model(cell, cache=tmp_path)
    with pytest.raises(UserError, match=says):
        load_model(cell.model, cache=tmp_path, dtype="float32", device=CPU)


def test_factors_of_frequencies_are_refused_where_nobody_divides_by_them(tmp_path):
    file, model = written(tmp_path / "file", tiny_model("llama", rope_parameters=LLAMA3))
    with pytest.raises(UserError, match=r"has 1 tensor .*rope_freqs.weight"):
        require_placed(model.config, file, "x", divides=False)


def test_an_embedded_model_is_converted_under_the_same_checks(tmp_path, monkeypatch):
    file, _ = written(tmp_path / "file", tiny_model("llama", attention_bias=True))
    monkeypatch.setattr(embedded, "embedded_files", lambda spec: [file])
    monkeypatch.setattr(embedded, "whole_file", lambda spec, beside: nullcontext(file))
    spec = EmbeddedModel(kind="embedded", name="tiny", package="a", version="1", file="b", dtype="float32")
    with pytest.raises(UserError, match=r"model tiny has 24 tensors .*leaves out.*attn_q.bias"):
        embedded.converted(spec, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def with_settings(file: Path, **settings: float | str | bool) -> Path:
    """The words of a file without its tensors, and others besides."""
    reader, name = GGUFReader(file), file.with_name("other.gguf")
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(name, architecture)
    kept = {key: field for key, field in reader.fields.items() if key.startswith(f"{architecture}.")}
    given = {f"{architecture}.{key.replace('__', '.')}": value for key, value in settings.items()}
    for key, field in kept.items():
        if key not in given:
            writer.add_key_value(key, field.contents(), field.types[0])
    kinds = {
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        str: GGUFValueType.STRING,
    }
    for key, value in given.items():
        writer.add_key_value(key, value, kinds[type(value)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return name


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("gguf") / "file", tiny_model("llama"))[0]


YARN = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (YARN, r"scaled in a way that is not read here \(.*rope.scaling.type=yarn"),
        ({"rope__scaling__attn_factor": 1.5}, "rope.scaling.attn_factor=1.5"),
        ({"attention__scale": 0.5}, r"says llama.attention.scale=0.5, which .* passes over.*base=none"),
        ({"attention__sliding_window": 16}, "says llama.attention.sliding_window=16"),
        ({"rope__dimension_count_swa": 8}, r"rope.dimension_count_swa=8"),
    ],
)
def test_settings_that_are_passed_over_are_refused_by_name(settings, says, plain):
    config = AutoConfig.for_model("llama", head_dim=16, hidden_size=64, num_attention_heads=4)
    with pytest.raises(UserError, match=says):
        settle(config, with_settings(plain, **settings), "x")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attention__sliding_window": 1 << 20},
        {"rope__scaling__type": "none", "rope__scaling__factor": 4.0},
        {"rope__scaling__finetuned": True, "rope__scaling__original_context_length": 64},
        {"logit_scale": 0.0, "expert_count": 0},
    ],
)
def test_settings_that_change_nothing_are_no_obstacle(settings, plain):
    config = AutoConfig.for_model("llama", head_dim=16, hidden_size=64, num_attention_heads=4)
    settle(config, with_settings(plain, **settings), "x")
    assert config.rope_parameters["rope_type"] == "default"


def test_a_factor_without_a_kind_is_linear_as_llama_cpp_takes_it(plain):
    config = AutoConfig.for_model("llama", head_dim=16, hidden_size=64, num_attention_heads=4)
    settle(config, with_settings(plain, rope__scaling__factor=4.0, rope__freq_base=2e4), "x")
    assert config.rope_parameters == {"rope_type": "linear", "factor": 4.0, "rope_theta": 2e4}


@pytest.mark.parametrize(("num_blocks", "scalar"), [(2, 32), (3, 16)])
def test_gemmas_scale_of_attention_is_told_by_its_size(num_blocks, scalar, tmp_path, monkeypatch):
    monkeypatch.setitem(gguf_model.BLOCKS_27B, "gemma2", 3)
    settings = {"num_hidden_layers": num_blocks, "head_dim": 32, "query_pre_attn_scalar": scalar}
    file, _ = written(tmp_path / "file", tiny_model("gemma2", **settings))
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    settle(config, file, "x")
    assert config.query_pre_attn_scalar == scalar


def bpe(*special: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that cuts text as Llama 3's does."""
    split = next(expression for expression, name in SPLITS.items() if name == "llama-bpe")
    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(split), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=list(special), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the cat sat on the mat " * 20], trainer)
    begins = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[(special[0], 0)])
    tokenizer.post_processor = begins
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1])


def test_a_token_that_only_the_class_of_the_tokenizer_adds_is_no_obstacle(tmp_path):
    tokenizer = bpe("<|begin_of_text|>", "<|end_of_text|>")
    model = tiny_model("llama", vocab_size=len(tokenizer))
    file, _ = written(tmp_path / "file", model, tokenizer)
    cell = study(tmp_path, file, "model.add_bos=true").one_cell()
    check_model(cell, cache=tmp_path)
    read = tokenizer_of(cell.model, cache=tmp_path)
    assert len(read) == len(tokenizer) + 1, "the class adds <|endoftext|>: else this test says nothing"
    assert read.encode("the cat") == tokenizer.encode("the cat")


def test_a_vocabulary_of_the_file_that_is_larger_than_the_embedding_is_refused_still(tmp_path):
    tokenizer = bpe("<|begin_of_text|>", "<|end_of_text|>")
    spec = (
        study(tmp_path, written(tmp_path / "file", tiny_model("llama", vocab_size=300), tokenizer)[0]).one_cell().model
    )
    tokenizer.add_tokens(["<|ours|>", "<|file|>"])
    with pytest.raises(UserError, match=r"larger than its embedding: '<\|file\|>'"):
        check_tokenizer(spec, tokenizer, len(tokenizer) - 2, own={"<|file|>"})
    tokenizer.eos_token = "<|ours|>"
    with pytest.raises(UserError, match=r"larger than its embedding: '<\|ours\|>'"):
        check_tokenizer(spec, tokenizer, len(tokenizer) - 2, own=set())
