"""The MatQuant objective (Eq. 7): a weighted sum over slices, whatever the base algorithm's own loss is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from matquant.notation import Objective, Slice


class Losses(NamedTuple):
    """The weighted sum that is minimized, and each term before weighting, detached, for the log."""

    total: Tensor
    terms: dict[str, Tensor]


def nested_loss(
    objective: Objective,
    outputs: Mapping[Slice, Tensor],
    task_loss: Callable[[Slice, Tensor], Tensor],
    distill_loss: Callable[[Tensor, Tensor], Tensor],
) -> Losses:
    """sum over terms t of lambda_t * L(F(S(Q(theta, c), r_t), x), target_t).

    `outputs` holds the model's (or block's) output for every slice of the objective.  A term without a teacher is
    compared with the base algorithm's own target; a term with one is compared with the teacher's output, detached, so
    that a wider slice is never pulled towards a narrower one (Section 5.2).
    """
    terms = {}
    for term in objective.terms:
        output = outputs[term.slice]
        teacher = None if term.teacher is None else outputs[term.teacher].detach()
        terms[str(term)] = task_loss(term.slice, output) if teacher is None else distill_loss(output, teacher)
    total = torch.stack([term.weight * terms[str(term)] for term in objective.terms]).sum()
    return Losses(total, {name: loss.detach() for name, loss in terms.items()})
