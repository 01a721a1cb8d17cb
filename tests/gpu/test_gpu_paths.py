"""Every path of a study on a GPU that is not there: fits with their options, read-outs, scores, served models.

By fake tensors, for which an operation that mixes devices is an error.  What has a backward pass stops before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.gpu.agreement import TINY, loaded
from benchmarks.gpu.subjects import Estimate, Subject, required
from benchmarks.timing import NoProgress
from evaluation.tasks.language_model import SharedContextLM
from evaluation.tasks.prefixes import families, strips
from evaluation.tasks.rows import Request, pack
from evaluation.text import divergence
from evaluation.text import scores as text_scores
from evaluation.text.scores import score_text
from evaluation.text.teacher import teacher_of
from matquant.algorithms import gptq, minmax, omniquant, qat, range_searched
from matquant.algorithms.progress import Layers
from matquant.codes.code_choice import code_choice
from matquant.codes.extra_precision import effective_bits
from matquant.codes.nested import materialize
from matquant.config.cell import ForeignModel, GPTQBase, MinMaxBase, OmniQuantBase, QATBase, RandomModel, SearchBase
from matquant.models.foreign import loading as foreign_loading
from matquant.models.random_model import random_config
from matquant.notation import Plan, Slice
from matquant.search.fitness import Fitness
from matquant.serving.load import reread
from matquant.serving.nested.folder import NestedFolder
from matquant.serving.nested.places import nested_folder
from matquant.serving.nested.reading import read_into
from slurm.estimate import text_bytes
from slurm.jobs import Job
from tests.fake_card import Account, fake_card
from tests.gpu.test_gpu_without_a_card import prepared
from tests.nested_folders import quantized, written

CPU = torch.device("cpu")
CODES = 4 * 256
"""The numbers of a small table: those of all codes of a parent are made on the CPU, once for a layer."""
OPTIONS = {
    "omniquant": [
        ("scope=ffn_attention", "distill=8to2", "extra_bit=on"),
        ("slicing=floor", "base.clipping_init=search", "base.clipping_reach=1.5", "base.importance=inputs"),
        ("slicing=centre", "base.transformation=published", "base.loss=relative_l2", "base.slice_clamp=value"),
        ("base.student_input=parent", "base.transformation=true", "base.schedule=cosine", "grid=group_32"),
    ],
    "qat": [
        ("scope=ffn_attention", "distill=8to2", "extra_bit=on"),
        ("slicing=floor", "base.train_scales=true"),
        ("slicing=centre", "base.slice_clamp=value", "distill=only_8to2", "base.temperature=2"),
    ],
    "gptq": [
        ("scope=ffn_attention", "extra_bit=on"),
        ("slicing=floor",),
        ("base.act_order=true", "base.true_sequential=true", "scope=ffn_attention", "base.student_input=int4"),
    ],
    "search": [("slicing=centre", "base.importance=inputs")],
    "minmax": [("scope=ffn_attention", "grid=group_32"), ("grid.zero=aligned_int2", "grid.headroom=int4")],
}
CASES = [(base, options) for base, of_base in OPTIONS.items() for options in of_base]


def fitted(account: Account, subject: Subject, job: Job) -> Layers:
    """The layers of a fit without a step, or with one that has no gradient."""
    model, progress = subject.model(job), NoProgress()
    tokens = torch.empty(0, 0, dtype=torch.long) if job.cell.data is None else subject.tokens(job)
    objective, scope, grid = required(job.cell)
    account.start()
    match job.cell.base:
        case OmniQuantBase() as base:
            return omniquant.fit(model, tokens, omniquant.Settings(base, objective, scope, grid, 0), progress)
        case GPTQBase() as base:
            return gptq.fit(model, tokens, gptq.Settings(base, objective, scope, grid), progress)
        case SearchBase() as base:
            return range_searched.fit(model, tokens, range_searched.Settings(base, objective, scope, grid), progress)
        case MinMaxBase():
            return minmax.fit(model, parent_bits=8, scope=scope, grid=grid, progress=progress)
        case QATBase() as base:
            training = qat.Training(model, tokens, qat.Settings(base, objective, scope, grid, 0))
            training._backward()
            return training.layers()
    raise AssertionError(job.cell.base)


@pytest.mark.parametrize(
    ("base", "options"), CASES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value
)
def test_a_fit_and_what_is_read_of_it_stay_on_the_gpu(base, options, monkeypatch):
    name = f"{base}_paper" if base in ("omniquant", "qat", "gptq") else base
    steps = {"omniquant": ["base.num_steps=1"], "qat": ["base.num_steps=1", "base.batch_size=2"]}.get(base, [])
    bits = ["bits=int8", "weights=uniform"] if base == "minmax" else []
    subject, job = prepared("cuda", f"base={name}", *steps, *bits, *options)
    if isinstance(job.cell.base, GPTQBase):
        code_choice(required(job.cell)[0], job.cell.base.residual)  # kept for later calls
    monkeypatch.setattr(torch.Tensor, "backward", lambda _: None)
    monkeypatch.setattr(omniquant, "finite", lambda loss, layers: loss.isfinite())
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda _: None)
    with fake_card("cuda") as account:
        layers = fitted(account, subject, job)
        assert layers
        strays = {place for place, number in account.largest.items() if number > CODES and not is_text(place)}
        assert not strays, strays
        with torch.no_grad():
            for nested in layers.values():
                assert nested.codes.is_cuda
                assert all(part.is_cuda for part in nested.grid)
        account.start()
        materialize(subject.model(job), layers, Plan.parse("int2+ep" if "extra_bit=on" in options else "int3_floor"))
        assert not account.elsewhere
        assert not account.waits


def is_text(place: str) -> bool:
    """True for the text, which is on the CPU until a batch of it is asked for."""
    return any(word in place for word in ("batch", "tokens", "elsewhere"))


# --- read-outs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def card() -> Iterator[Account]:
    with fake_card("cuda") as account:
        yield account


def model_on(_: Account) -> Any:
    """The tiny model, made on the GPU: fake tensors of the CPU do not move there as parameters."""
    spec = RandomModel(kind="random", name="tiny", architecture="llama", config=dict(TINY))
    opened: Any = AutoModelForCausalLM
    with torch.device("cuda"):
        return opened.from_config(random_config(spec)).requires_grad_(False).eval()


class Bar:
    def update(self, n: int = 1, /) -> None:
        """Nothing to see."""


def scored(monkeypatch, model: Any, text: Tensor, *, batch_size: int) -> None:
    """Log perplexity and divergence of a text; numbers that are made up are not looked at."""
    monkeypatch.setattr(torch.Tensor, "any", lambda _: False)  # no logits are far apart
    monkeypatch.setattr(divergence, "_require_alike", lambda *_: None)
    monkeypatch.setattr(text_scores, "summarized", lambda blocks, teacher: ({"kl": 0.0}, {}))
    teacher = teacher_of(model, text, content=None, batch_size=batch_size, cache=None)  # pyright: ignore
    assert not teacher.hidden.is_cuda
    score_text(model, text, teacher, batch_size=batch_size, description="it", bar=Bar())


def test_a_text_is_compared_on_the_gpu_and_waited_for_by_batch_and_by_block(card, monkeypatch):
    waits = []
    for blocks in (4, 8):
        model, text = model_on(card), torch.zeros(blocks, 16, dtype=torch.long)
        card.start()
        scored(monkeypatch, model, text, batch_size=4)
        waits.append(sum(card.waits.values()))
    assert waits[1] - waits[0] == TEACHER_WAITS + BATCH_WAITS + 4 * BLOCK_WAITS, card.waits


def test_the_estimate_of_the_memory_of_a_text_holds_at_a_vocabulary_of_256_thousand(monkeypatch):
    words = ("readout.dtype=bfloat16", "readout.perplexity.sequence_length=2048", "base=gptq_paper")
    subject, job = prepared("cpu", *words, small=False)
    expected = text_bytes(job.setup.readout, Estimate(job).size)
    with fake_card("cpu") as account:
        model, text = subject.model(job), torch.zeros(3, 2048, dtype=torch.long)
        before = account.start()
        scored(monkeypatch, model, text, batch_size=16)
        assert (account.peak - before) / 1e9 == pytest.approx(expected / 1e9, rel=0.15)


TEACHER_WAITS, BATCH_WAITS, BLOCK_WAITS = 2, 1, 4
"""Its hidden states and nats; the nats of a batch; four numbers of every token of a block."""


def scorer(model: Any) -> Any:
    lm: Any = object.__new__(SharedContextLM)
    lm._model, lm._device, lm.softmax_dtype, lm.micro_batch_size = model, torch.device("cuda"), None, 8
    lm.shares_contexts = lm.keeps_beginnings = True
    return lm


def answers(documents: int, *, examples: int) -> list[Request]:
    beginning = tuple(range(examples))
    return [
        Request((*beginning, *range(60 + document, 75 + document), *range(answer, answer + 4)), (answer, 1))
        for document in range(documents)
        for answer in range(3)
    ]


@pytest.mark.parametrize("examples", [0, 40])
def test_answers_are_scored_on_the_gpu_and_waited_for_once_a_batch(card, examples):
    lm, requests = scorer(model_on(card)), answers(4, examples=examples)
    rows = pack(requests, [number // 3 for number in range(len(requests))])
    found = families(rows)
    assert bool(found[0].beginning) == bool(examples)
    card.start()
    lm._score_families(requests, found)
    batches = sum(1 for family in found for _ in strips(family, batch_size=8)) if examples else 2
    assert sum(card.waits.values()) == 2 * batches, card.waits  # the scores, and whether they are greedy
    tensors = {place: number for place, number in card.elsewhere.items() if "language_model" in place}
    assert set(tensors) <= {place for place in tensors if "scores" in place or "targets" in place or "of_span" in place}


def test_the_search_for_widths_waits_once_for_a_loss_however_many_batches_it_has(card):
    model = model_on(card)
    layers = quantized(model)
    waits = []
    for sequences in (2, 6):
        fitness = Fitness(model, layers, torch.zeros(sequences, 16, dtype=torch.long), top_k=4, batch_size=2)
        card.start()
        fitness.loss(dict.fromkeys(layers, Slice(4)))
        waits.append(sum(card.waits.values()))
    assert waits == [1, 1], card.waits


def test_effective_bits_are_counted_on_the_gpu(card, monkeypatch):
    # Without values the number of counts is not known, though no code is above the last.
    counts = partial(torch.Tensor.new_zeros, dtype=torch.int64)
    monkeypatch.setattr(torch, "bincount", lambda codes, minlength: counts(codes, minlength))
    layers = quantized(model_on(card))
    card.start()
    effective_bits(layers, Plan.parse("int2+ep"))
    assert not card.elsewhere


# --- models that are served or were quantized elsewhere ---------------------------------------------------------------


class Fake:
    """A file whose tensors are fake, as they come from a disk: on the CPU."""

    def __init__(self, file: Any) -> None:
        self.get_slice, self.metadata = file.get_slice, file.metadata

    def get_tensor(self, name: str) -> Tensor:
        here = self.get_slice(name)
        return torch.empty(here.get_shape(), dtype={"U8": torch.uint8, "F32": torch.float32}[here.get_dtype()])


@pytest.mark.parametrize("packed", [False, True])
def test_a_nested_folder_is_read_onto_the_gpu_and_again_at_another_width(packed, tmp_path, monkeypatch):
    here = loaded(CPU, TINY)
    folder = nested_folder(written(tmp_path / "nested", here, quantized(here.model)))
    monkeypatch.setattr(NestedFolder, "_open", lambda _, stack, path: Fake(stack.enter_context(safe_open(path, "pt"))))
    with fake_card("cuda") as account, torch.no_grad():
        model: Any = model_on(account)
        read_into(model, folder, folder.plan("int3"), packed=packed)
        reread(model, "int2+ep")
        assert model(input_ids=torch.zeros(1, 8, dtype=torch.long, device="cuda")).logits.is_cuda
        assert all(tensor.is_cuda for tensor in (*model.parameters(), *model.buffers()) if tensor.numel())


def test_a_foreign_model_is_written_where_it_is(card, monkeypatch):
    model = model_on(card)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "mlp" in name]
    widths = dict.fromkeys(names, 4)
    monkeypatch.setattr(foreign_loading, "opened", lambda spec: (None, Stub()))
    monkeypatch.setattr(foreign_loading, "ForeignTensors", lambda files, foreign: Stub(model))
    monkeypatch.setattr(foreign_loading, "_bits_of", lambda plan, foreign: widths)
    card.start()
    foreign_loading.read_foreign(model, ForeignModel.model_construct(), Plan.parse("int4"))
    assert not card.waits
    assert all(parameter.is_cuda for parameter in model.parameters())


class Stub:
    """A file that holds weights of two widths, as they come from a disk: on the CPU."""

    widths = (2, 4)

    def __init__(self, model: Any = None) -> None:
        self.model = model

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def weight(self, name: str, bits: int) -> Tensor:
        return torch.empty(self.model.get_submodule(name).weight.shape)
