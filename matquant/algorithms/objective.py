"""The MatQuant objective (Eq. 7): a weighted sum over slices, whatever the base algorithm's own loss is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
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


def backward_per_slice(
    objective: Objective,
    reading: Callable[[Slice], AbstractContextManager[object]],
    forward: Callable[[], Tensor],
    task_loss: Callable[[Slice, Tensor], Tensor],
    distill_loss: Callable[[Tensor, Tensor], Tensor],
    *,
    share: float = 1.0,
) -> Losses:
    """The gradient of `nested_loss`, times `share`, with one graph in memory: forward and backward slice by slice.

    `reading(part)` makes the model read one slice; it surrounds the backward pass too, because activation checkpointing
    runs the model again there.  Wider slices come first, so a teacher's output is there when its student needs it.
    """
    teachers = {term.teacher for term in objective.terms}
    remembered: dict[Slice, Tensor] = {}
    terms: dict[str, Tensor] = {}
    for part in objective.slices:
        mine = [term for term in objective.terms if term.slice == part]
        with reading(part), torch.set_grad_enabled(bool(mine)):
            output = forward()
            if part in teachers:
                remembered[part] = output.detach()
            losses = {
                term: task_loss(part, output)
                if term.teacher is None
                else distill_loss(output, remembered[term.teacher])
                for term in mine
            }
            if mine:
                torch.stack([share * term.weight * loss for term, loss in losses.items()]).sum().backward()
        terms |= {str(term): loss.detach() for term, loss in losses.items()}
    total = torch.stack([term.weight * terms[str(term)] for term in objective.terms]).sum()
    return Losses(total, terms)
