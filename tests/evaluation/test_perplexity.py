"""Log perplexity in nats, against the definition."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from evaluation.text.perplexity import block_nats, blocks_at_once, log_perplexity
from matquant.models.loading import load_model
from tests.models.test_models import tiny


@torch.no_grad()
def test_the_nats_of_a_block_are_the_mean_negative_log_probability_of_its_next_tokens():
    model = load_model(tiny(), cache=Path(), dtype="float32", device=torch.device("cpu")).model
    blocks = torch.randint(0, 257, (5, 12), generator=torch.Generator().manual_seed(0))
    measured = torch.cat(list(block_nats(model, blocks, batch_size=2)))
    for block, nats in zip(blocks, measured, strict=True):
        probabilities = model(input_ids=block[None]).logits[0].double().softmax(-1)
        expected = -sum(math.log(probabilities[i, block[i + 1]]) for i in range(11)) / 11
        assert nats.item() == pytest.approx(expected, abs=1e-5)


def test_the_summary_is_the_mean_and_its_standard_error_over_blocks():
    summary = log_perplexity(torch.tensor([1.0, 2.0, 3.0]).double(), 10)
    assert summary.mean == 2.0
    assert summary.stderr == pytest.approx(1 / math.sqrt(3))
    assert summary.num_tokens == 30


def test_a_batch_has_no_more_logits_than_fit():
    with torch.device("meta"):
        gemma, small = nn.ModuleDict({"lm_head": nn.Linear(8, 262144)}), nn.ModuleDict({"lm_head": nn.Linear(8, 49152)})
    assert blocks_at_once(gemma, 256) == 4
    assert blocks_at_once(gemma, 8192) == 1
    assert blocks_at_once(small, 256) >= 16
