"""Beginnings that are kept change no score: families are checked by themselves, scores against lm-eval's own model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evaluation.tasks import prefixes
from evaluation.tasks.language_model import SharedContextLM
from evaluation.tasks.prefixes import families, strip_mask, strips
from evaluation.tasks.rows import Reach, Request, pack
from tests.evaluation.test_language_model import ARCHITECTURES, loaded

BEGINNINGS = st.sampled_from([(), (1,) * 4, (1, 1, 2, 2, 3), (1, 1, 2, 2, 3, 0, 1)])
TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple)


@st.composite
def documents_that_begin_alike(draw) -> tuple[list[Request], list[int]]:
    requests, documents = [], []
    for document in range(draw(st.integers(1, 8))):
        context = draw(BEGINNINGS) + draw(TOKENS)
        for _ in range(draw(st.integers(1, 3))):
            requests.append(Request.of(context, draw(TOKENS), max_length=40))
            documents.append(document)
    return requests, documents


@pytest.fixture(autouse=True)
def _short_beginnings(monkeypatch):
    monkeypatch.setattr(prefixes, "SHORTEST", 3)


def seen_by(strip, beginning: tuple[int, ...], place: int, reach: Reach) -> list[int]:
    """The tokens that the mask shows to a place of a strip, in the order of their positions."""
    mask = strip_mask(strip, len(beginning), reach, torch.device("cpu"))[0, 0, place]
    tokens = [*beginning, *strip.row.tokens]
    positions = [*range(len(beginning)), *strip.row.positions]
    shown = [index for index in range(len(tokens)) if mask[index]]
    return [tokens[index] for index in sorted(shown, key=lambda index: positions[index])]


@given(documents_that_begin_alike(), st.integers(1, 5), st.sampled_from([None, 1, 3]))
@settings(max_examples=60, deadline=None)
def test_every_request_sees_its_own_text_in_a_strip_and_nothing_else(made, batch_size, window):
    requests, documents = made
    rows = pack(requests, documents)
    found = families(rows)
    assert sorted(id(row) for family in found for row in family.rows) == sorted(map(id, rows))
    for family in (family for family in found if family.beginning):
        for strip in strips(family, batch_size=batch_size):
            for number, places in strip.row.scored.items():
                inputs, targets = requests[number]
                for step, place in enumerate(places):
                    visible = list(inputs[: len(inputs) - len(targets) + step + 1])
                    seen = seen_by(strip, family.beginning, place, Reach(window=window))
                    assert seen == (visible if window is None else visible[-window:])


@given(documents_that_begin_alike())
@settings(max_examples=60, deadline=None)
def test_families_save_what_any_one_beginning_would_save(made):
    rows = pack(*made)
    kept = [family for family in families(rows) if family.beginning]
    saved = sum(len(family.beginning) * (len(family.rows) - 1) for family in kept)
    shareable = [prefixes._shareable(row) for row in rows]
    for length in range(3, 12):
        for beginning in {context[:length] for context in shareable if len(context) >= length}:
            alone = length * (sum(context[:length] == beginning for context in shareable) - 1)
            assert saved >= alone or alone < prefixes.WORTH_KEEPING * sum(map(len, rows))


def test_questions_without_examples_are_left_as_they_are():
    requests = [Request.of((number, *range(60)), (1, 2), max_length=512) for number in range(8)]
    (family,) = families(pack(requests, range(8)))
    assert family.beginning == ()


def test_a_few_documents_with_other_examples_do_not_undo_the_beginning_of_the_rest():
    contexts = [*((7,) * 60 + (number,) for number in range(9)), (5, 6, 7)]
    requests = [Request.of(context, (1,), max_length=512) for context in contexts]
    kept, rest = families(pack(requests, range(10)))
    assert (len(kept.beginning), len(kept.rows), len(rest.rows)) == (60, 9, 1)


def examples_before(*questions: str) -> list[Instance]:
    shared = "".join(f"Question: {number} jars\nAnswer: {number * 7}\n\n" for number in range(3))
    return [
        Instance("loglikelihood", {}, (f"{shared}Question: {question}\nAnswer:", answer), 0, ("task", doc, 1))
        for doc, question in enumerate(questions)
        for answer in (" one", " two or three", " 4")
    ]


KEPT = {"llama", "gemma2", "mistral", "qwen3", "phi3"}
"""Some of the architectures whose beginnings are kept."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_after_examples_are_lm_evals_own(architecture, monkeypatch):
    model = loaded(architecture, max_position_embeddings=512)
    options = {"pretrained": model.model, "tokenizer": model.tokenizer, "batch_size": 4}
    ours, theirs, instances = SharedContextLM(**options), HFLM(**options), examples_before("sea", "a lid", "a red sea")
    counted, taken, after = [], [], ours._after
    monkeypatch.setattr(ours, "on_scored", counted.append)
    monkeypatch.setattr(ours, "_after", lambda kept, length, strip: taken.append(length) or after(kept, length, strip))
    for mine, other in zip(ours.loglikelihood(instances), theirs.loglikelihood(instances), strict=True):
        assert mine[0] == pytest.approx(other[0], abs=1e-4)
        assert mine[1] == other[1]
    assert min(taken, default=0) > 50 or architecture not in KEPT
    assert sum(counted) == len(instances)


def test_where_memory_is_too_small_for_a_kept_beginning_documents_are_scored_without(monkeypatch):
    model = loaded("llama", max_position_embeddings=512)
    ours = SharedContextLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=1)
    instances = examples_before("sea", "a lid")
    expected = [score for score, _ in ours.loglikelihood(instances)]
    after, calls = ours._after, []

    def too_large(*given):
        calls.append(1)
        if len(calls) > 1:
            raise torch.OutOfMemoryError
        return after(*given)

    monkeypatch.setattr(ours, "_after", too_large)
    assert [score for score, _ in ours.loglikelihood(instances)] == pytest.approx(expected, rel=1e-5)
    assert len(calls) == 2
