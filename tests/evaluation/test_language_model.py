"""Shared contexts change no score: all are held against those of lm-eval's own model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from threading import Barrier, get_ident
from types import SimpleNamespace

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evaluation.tasks.language_model import SharedContextLM
from matquant.config.cell import RandomModel
from matquant.errors import UserError
from matquant.models.loading import load_model
from tests.mixtures import MIXTURES

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
ARCHITECTURES = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0},
    "phi3": {"pad_token_id": 0},
    # Outputs with router logits; experts by a choice for each token, and sorted.
    **{
        MIXTURES[name].architecture: MIXTURES[name].config
        for name in ("qwen3_moe", "mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "llama4")
    },
}
QUESTIONS = ["Is the sea blue?", "Which of these is red: a stone, a jar, or the lid of a jar?", "Who?", ""]
ANSWERS = [" yes", " no", " the stone", " a blue lid, or a jar"]


def requests() -> list[Instance]:
    return [
        Instance("loglikelihood", {}, (question, answer), index, metadata=("made", document, 1))
        for document, question in enumerate(QUESTIONS)
        for index, answer in enumerate(ANSWERS)
    ]


def loaded(architecture: str = "llama", *, dtype: str = "float32", device: str | torch.device = "cpu", **config):
    spec = RandomModel(
        kind="random",
        name="tiny",
        architecture=architecture,
        config={**SIZES, **ARCHITECTURES[architecture], **config},
    )
    return load_model(spec, cache=Path(), dtype=dtype, device=torch.device(device))


def both(model, *, batch_size: int = 4) -> tuple[SharedContextLM, list, list]:
    options = {"pretrained": model.model, "tokenizer": model.tokenizer, "batch_size": batch_size, "max_length": 40}
    ours = SharedContextLM(**options)
    return ours, ours.loglikelihood(requests()), HFLM(**options).loglikelihood(requests(), disable_tqdm=True)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_likelihoods_are_lm_evals_own(architecture, batch_size, device):
    lm, ours, theirs = both(loaded(architecture, device=device), batch_size=batch_size)
    assert lm.shares_contexts
    for (score, greedy), (their_score, their_greedy) in zip(ours, theirs, strict=True):
        assert score == pytest.approx(their_score, abs=1e-4)
        assert greedy == their_greedy


LONG = {"max_position_embeddings": 256, "initializer_range": 0.3}


@pytest.mark.parametrize(
    ("architecture", "config", "shares"),
    [
        # All reaches are longer than the made-up texts that a model is tried with when it is loaded.
        ("mistral", {"sliding_window": 48}, True),
        ("llama4_text", {"attention_chunk_size": 48, "layer_types": ["chunked_attention", "full_attention"]}, True),
        # A key that Llama does not look at.
        ("llama", {"sliding_window": 48}, True),
        # Nobody named it: it compresses what lies behind its window, by places in a row.
        ("deepseek_v4", {**MIXTURES["deepseek_v3"].config, "sliding_window": 48}, False),
    ],
)
def test_log_likelihoods_of_long_rows_are_lm_evals_own(architecture, config, shares):
    config = {**SIZES, **ARCHITECTURES.get(architecture, {}), **config, **LONG}
    spec = RandomModel(kind="random", name="tiny", architecture=architecture, config=config)
    model, tokenizer = load_model(spec, cache=Path(), dtype="float32", device=torch.device("cpu"))
    options = {"pretrained": model, "tokenizer": tokenizer, "batch_size": 4, "max_length": 200}
    asked = [
        Instance("loglikelihood", {}, (question * 5, answer), index, metadata=("made", document, 1))
        for document, question in enumerate(QUESTIONS[:2])
        for index, answer in enumerate(ANSWERS)
    ]
    ours, theirs = SharedContextLM(**options), HFLM(**options).loglikelihood(asked, disable_tqdm=True)
    assert ours.shares_contexts == shares
    assert [score for score, _ in ours.loglikelihood(asked)] == pytest.approx([s for s, _ in theirs], abs=1e-3)


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_threads_with_a_batch_each_change_no_score(architecture, four_threads):
    model = loaded(architecture)
    expected = SharedContextLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=4, max_length=40)
    expected.batches_at_once = 1
    lm = SharedContextLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=4, max_length=40)
    assert lm.batches_at_once == 4
    inside, turn, threads = Barrier(2), count(), set[int]()

    def meet(*_: object) -> None:
        threads.add(get_ident())
        if next(turn) < 2:
            inside.wait()  # two batches are in the model at once

    meeting = model.model.get_input_embeddings().register_forward_pre_hook(meet)
    scores = lm.loglikelihood(requests())
    meeting.remove()
    assert len(threads) > 1
    for (score, greedy), (alone, greedy_alone) in zip(scores, expected.loglikelihood(requests()), strict=True):
        assert score == pytest.approx(alone, abs=1e-4)
        assert greedy == greedy_alone
    assert torch.get_num_threads() == 4


def test_batches_that_are_large_go_through_the_model_one_by_one(four_threads, monkeypatch):
    model = loaded()
    lm = SharedContextLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=4, max_length=40)
    monkeypatch.setattr("evaluation.tasks.language_model.TOKENS_AT_ONCE", 100)
    monkeypatch.setattr(SharedContextLM, "_score_side_by_side", lambda *_: 1 / 0)
    assert len(lm.loglikelihood(requests())) == len(requests())


def test_what_goes_wrong_in_a_thread_is_said_as_without_threads(four_threads, monkeypatch):
    model = loaded()
    lm = SharedContextLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=4, max_length=40)
    monkeypatch.setattr(SharedContextLM, "_hidden_states", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lm.loglikelihood(requests())
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    ],
)
def test_a_model_that_keeps_something_of_a_text_reads_one_after_the_other(rope, four_threads):
    model = loaded(rope_parameters={"rope_theta": 10000.0, "original_max_position_embeddings": 64, **rope})
    lm = SharedContextLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=4, max_length=40)
    assert lm.batches_at_once == 1


def test_half_precision_scores_stay_close():
    lm, ours, theirs = both(loaded(dtype="bfloat16"))
    assert lm.shares_contexts
    for (score, _), (their_score, _) in zip(ours, theirs, strict=True):
        assert score == pytest.approx(their_score, rel=0.02)


def test_greedy_answers_are_recognized():
    model = loaded()
    text = model.tokenizer.encode("Is the sea blue?")
    grown = model.model.generate(torch.tensor([text]), max_new_tokens=3, do_sample=False, pad_token_id=0)[0].tolist()
    lm = SharedContextLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=4)
    others = [grown[len(text) :], [*grown[len(text) : -1], (grown[-1] + 1) % 257]]
    greedy = [is_greedy for _, is_greedy in lm._loglikelihood_tokens([(None, text, other) for other in others])]
    assert greedy == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equally_likely_tokens_the_first_is_the_greedy_one_as_for_lm_eval(dtype, monkeypatch):
    model = loaded()
    lm = SharedContextLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=4)
    logits = torch.randint(0, 3, (64, 257), generator=torch.Generator().manual_seed(0)).to(dtype)
    monkeypatch.setattr(lm, "_head", lambda _: logits)
    for targets in (logits.argmax(-1), logits.flip(-1).argmax(-1)):
        _, greedy = lm._log_probabilities(logits, targets)
        assert torch.equal(greedy, logits.argmax(-1) == targets)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_in_float32_sharing_contexts_changes_no_answer(architecture):
    _, ours, theirs = both(loaded(architecture), batch_size=16)
    chosen = [
        [max(range(len(ANSWERS)), key=lambda answer: scores[start + answer][0]) for start in range(0, len(scores), 4)]
        for scores in (ours, theirs)
    ]
    assert chosen[0] == chosen[1]
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_rolling_log_likelihoods_are_lm_evals_own():
    model = loaded()
    texts = [Instance("loglikelihood_rolling", {}, (text * 3,), 0, metadata=("made", 0, 1)) for text in QUESTIONS[:3]]
    options = {"pretrained": model.model, "tokenizer": model.tokenizer, "batch_size": 2, "max_length": 30}
    ours = SharedContextLM(**options).loglikelihood_rolling(texts, disable_tqdm=True)
    theirs = HFLM(**options).loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_sharing_saves_tokens():
    model, seen = loaded(), []
    model.model.model.embed_tokens.register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    both(model, batch_size=64)
    *_, ours, theirs = seen
    assert ours < 0.6 * theirs


def test_a_model_that_ignores_our_mask_is_scored_without_it(caplog):
    model = loaded()
    body = model.model.model
    original = body.forward
    body.forward = lambda **keywords: original(**{**keywords, "attention_mask": None, "position_ids": None})
    lm, ours, theirs = both(model)
    assert not lm.shares_contexts
    assert "scores shared contexts differently" in caplog.text
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-4)


@pytest.mark.parametrize("fits", [2, 7])
def test_out_of_memory_halves_the_batch_and_changes_no_score(fits, monkeypatch, caplog):
    model = loaded()
    _, expected, _ = both(model, batch_size=16)
    lm = SharedContextLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=16, max_length=40)
    original = SharedContextLM._hidden_states

    def small(self, rows):
        if sum(len(row.scored) for row in rows) > fits and len(rows) > 1:
            raise torch.OutOfMemoryError
        return original(self, rows)

    monkeypatch.setattr(SharedContextLM, "_hidden_states", small)
    scores = lm.loglikelihood(requests())
    assert [score for score, _ in scores] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert "out of memory: going on with" in caplog.text
    assert lm.micro_batch_size <= 8


def test_a_single_row_that_does_not_fit_is_refused_in_words(monkeypatch):
    model = loaded()
    lm = SharedContextLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=16)

    def full(*_: object) -> SimpleNamespace:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(SharedContextLM, "_hidden_states", full)
    with pytest.raises(UserError, match=r"a single row of \d+ tokens does not fit .* readout.dtype=bfloat16"):
        lm.loglikelihood(requests())
