"""Requests in rows: each finds its own text in its row, and sees nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.tasks.rows import LONGEST_ROW, PADDING, Reach, Request, attention_mask, batches_of, pack, shared_length
from matquant.errors import UserError

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=12).map(tuple)


@st.composite
def documents_of_requests(draw) -> tuple[list[Request], list[int]]:
    requests, documents = [], []
    for document in range(draw(st.integers(1, 3))):
        context = draw(TOKENS)
        for _ in range(draw(st.integers(1, 4))):
            requests.append(Request.of(context, draw(TOKENS), max_length=12))
            documents.append(document)
    return requests, documents


def seen_by(row, place: int) -> list[int]:
    """The tokens that the mask shows to a place of a row, in the order of their positions."""
    mask = attention_mask(torch.tensor([row.branches]), torch.tensor([row.positions]), Reach())[0, 0, place]
    shown = [index for index in range(len(row)) if mask[index]]
    return [row.tokens[index] for index in sorted(shown, key=lambda index: row.positions[index])]


@given(documents_of_requests())
@settings(max_examples=200, deadline=None)
def test_every_request_finds_its_own_text_and_nothing_else_in_its_row(made):
    requests, documents = made
    rows = pack(requests, documents)
    assert sorted(number for row in rows for number in row.scored) == list(range(len(requests)))
    for row in rows:
        for number, places in row.scored.items():
            inputs, targets = requests[number]
            assert len(places) == len(targets)
            for step, place in enumerate(places):
                visible = inputs[: len(inputs) - len(targets) + step + 1]
                assert seen_by(row, place) == list(visible)
                assert row.positions[place] == len(visible) - 1


@given(documents_of_requests(), st.integers(1, 6))
@settings(deadline=None)
def test_batches_hold_every_row_once_longest_first_and_no_more_requests_than_asked(made, batch_size):
    rows = pack(*made)
    batches = list(batches_of(rows, batch_size=batch_size))
    assert sorted(id(row) for batch in batches for row in batch) == sorted(map(id, rows))
    lengths = [len(row) for batch in batches for row in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(batch) == 1 or sum(len(row.scored) for row in batch) <= batch_size for batch in batches)


def test_answers_share_their_question():
    question = tuple(range(20))
    requests = [Request.of(question, answer, max_length=512) for answer in [(1, 2), (3, 4, 5), (1, 9)]]
    (row,) = pack(requests, [0, 0, 0])
    # The last token of an answer is never an input.
    assert len(row) == 20 + 1 + 2 + 1
    assert row.branches == (*[0] * 20, 1, 2, 2, 3)
    assert row.positions == (*range(20), 20, 20, 21, 20)
    assert row.scored == {0: (19, 20), 1: (19, 21, 22), 2: (19, 23)}


def test_answers_of_one_token_cost_nothing_beyond_their_question():
    requests = [Request.of(tuple(range(20)), (answer,), max_length=512) for answer in (1, 2)]
    (row,) = pack(requests, [0, 0])
    assert len(row) == 20


def test_texts_that_differ_from_the_start_stay_apart():
    requests = [Request.of((first, *range(20)), (1,), max_length=512) for first in (1, 2)]
    assert len(pack(requests, [0, 0])) == 2


def test_very_many_answers_are_spread_over_several_rows():
    requests = [Request.of(tuple(range(500)), (number,) * 100, max_length=2048) for number in range(20)]
    rows = pack(requests, [0] * 20)
    assert 2 < len(rows) < 20
    assert all(len(row) <= LONGEST_ROW for row in rows)


def test_a_text_too_long_is_cut_from_the_left_as_lm_eval_does():
    request = Request.of(range(100), (7, 8, 9), max_length=10)
    assert request.inputs == (*range(92, 100), 7, 8)
    assert request.targets == (7, 8, 9)


def test_an_answer_longer_than_the_model_takes_is_refused():
    with pytest.raises(UserError, match="an answer of 11 tokens is longer than the 10 tokens that the model takes"):
        Request.of((1,), range(11), max_length=10)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_the_shared_length_is_that_of_all(length):
    start = tuple(range(length))
    assert shared_length([(*start, 9, 1), (*start, 8), (*start, 9, 2)]) == length
    assert shared_length([start, start]) == length


def test_padding_sees_something_and_a_window_counts_positions():
    branches, positions = torch.tensor([[0, 0, 1, 2, PADDING]]), torch.tensor([[0, 1, 2, 2, 0]])
    mask = attention_mask(branches, positions, Reach(window=2))[0, 0]
    assert mask.any(-1).all()
    assert mask[3].tolist() == [False, True, False, True, False]
