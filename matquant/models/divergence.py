"""Kullback-Leibler divergence of next-token distributions: over the whole vocabulary, or over the most likely tokens.

Over the whole vocabulary, with x the teacher's logits, y the other model's, and p = softmax(x), q = softmax(y):

    KL = sum p log(p / q) = log(1 + sum p (e^t - 1 - t)),     t = y - x - sum p (y - x)

In the second form no term is negative, so that nothing cancels: of two models that are nearly equal it has six digits
in float32, where the first one has rounding errors of 1e-6 nats, some of them below zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

AT_ONCE = 2**18
"""The most logits that are compared at once: what is computed from them then stays in a processor's cache."""
FAR = 60.0
"""The largest |t| that is computed in float32; e^t is in float64 beyond it, where models collapse."""


class TokenDivergence(NamedTuple):
    """Two distributions compared at each position, and the log probability that each gives to the right token."""

    kl: Float[Tensor, " positions"]
    same_top: Bool[Tensor, " positions"]
    """True where both find the same token most likely."""
    log_p: Float[Tensor, " positions"]
    log_q: Float[Tensor, " positions"]


def compare(
    expected: Float[Tensor, "positions vocabulary"],
    given: Float[Tensor, "positions vocabulary"],
    targets: Int[Tensor, " positions"],
) -> TokenDivergence:
    """The divergence of the distribution of some logits from the expected one; `targets` are the right tokens."""
    rows = max(1, AT_ONCE // expected.shape[-1]) if expected.device.type == "cpu" else len(expected)
    pieces = zip(expected.split(rows), given.split(rows), targets.split(rows), strict=True)
    found = [_compare(*piece) for piece in pieces]
    return TokenDivergence(*map(torch.cat, zip(*found, strict=True)))


def _compare(expected: Tensor, given: Tensor, targets: Tensor) -> TokenDivergence:
    """The same for as many positions as fit into a cache; every row is computed by itself, whatever their number."""
    expected, given, right = expected.float(), given.float(), targets.unsqueeze(-1)
    top = expected.amax(-1, keepdim=True)
    p = (expected - top).exp_()
    total = p.sum(-1, keepdim=True)
    p.div_(total)
    t = given - expected
    t.sub_((p * t).sum(-1, keepdim=True))
    kl = torch.log1p((p * (t.expm1() - t)).sum(-1)).clamp_(min=0)
    log_p = (expected.gather(-1, right) - top - total.log()).squeeze(-1)
    log_q = log_p + t.gather(-1, right).squeeze(-1) - kl
    far = ~(t.abs().amax(-1) <= FAR)  # also where logits are infinite
    if far.any():
        log_ps, log_qs = (logits[far].double().log_softmax(-1) for logits in (expected, given))
        terms = log_ps.exp() * (log_ps - log_qs)
        kl[far] = terms.where(log_ps.exp() > 0, 0.0).sum(-1).clamp(min=0).float()
        log_p[far], log_q[far] = (logs.gather(-1, right[far]).squeeze(-1).float() for logs in (log_ps, log_qs))
    return TokenDivergence(kl, expected.argmax(-1) == given.argmax(-1), log_p, log_q)


class TopTokens(NamedTuple):
    """The teacher's most likely next tokens and their log-probabilities, for every token of a text."""

    log_probabilities: Float[Tensor, "sequences tokens top"]
    tokens: Int[Tensor, "sequences tokens top"]


def most_likely(logits: Float[Tensor, "batch tokens vocabulary"], top_k: int) -> TopTokens:
    """The teacher's part for one batch, on the CPU."""
    rows = [row.float().log_softmax(-1).topk(min(top_k, row.shape[-1])) for row in logits]
    return TopTokens(
        torch.stack([row.values for row in rows]).cpu(), torch.stack([row.indices for row in rows]).int().cpu()
    )


def bucketed(teacher: TopTokens, logits: Float[Tensor, "batch tokens vocabulary"]) -> Float[Tensor, "batch tokens"]:
    """KL over the teacher's most likely tokens and one bucket for all others; never negative.

    With all tokens among the most likely it is the full divergence; with fewer a lower bound of it.
    """
    rows = []
    for expected, index, row in zip(teacher.log_probabilities, teacher.tokens, logits, strict=True):
        expected = expected.to(row.device).double()
        given = row.float().log_softmax(-1).gather(-1, index.to(row.device).long()).double()
        kept = (expected.exp() * (expected - given)).sum(-1)
        rest, given_rest = (_rest(one) for one in (expected, given))
        rows.append(kept + rest.exp() * (rest - given_rest))
    return torch.stack(rows).float()


def _rest(log_probabilities: Float[Tensor, "tokens top"]) -> Float[Tensor, " tokens"]:
    """log(1 - sum p), held above the rounding of float32."""
    return torch.log((1 - log_probabilities.exp().sum(-1)).clamp(min=1e-7))
