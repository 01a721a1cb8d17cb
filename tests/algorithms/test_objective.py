"""Eq. 7: the weighted sum, and teachers that are not taught by their students."""

from __future__ import annotations

import torch

from matquant.algorithms.objective import nested_loss
from matquant.notation import Objective, Slice


def distance(output, target):
    return (output - target).square().mean()


def losses(objective, outputs):
    return nested_loss(objective, outputs, lambda _, output: output.square().mean(), distance)


def leaves(objective):
    return {part: torch.full((3,), float(part.bits), requires_grad=True) for part in objective.slices}


def test_the_loss_is_the_weighted_sum_of_its_terms():
    objective = Objective.parse(8, {"int8": 0.1, "int4": 0.25, "int2": 1.0})
    result = losses(objective, leaves(objective))
    assert {name: loss.item() for name, loss in result.terms.items()} == {"int8": 64.0, "int4": 16.0, "int2": 4.0}
    assert torch.isclose(result.total, torch.tensor(0.1 * 64 + 0.25 * 16 + 4.0))


def test_every_trained_width_receives_a_gradient():
    objective = Objective.parse(8, {"int8": 0.1, "int4": 0.1, "int2": 1.0})
    outputs = leaves(objective)
    losses(objective, outputs).total.backward()
    assert all(output.grad is not None and (output.grad != 0).all() for output in outputs.values())


def test_teacher_receives_no_gradient_from_its_student():
    objective = Objective.parse(8, {"8->2": 1.0})
    outputs = leaves(objective)
    losses(objective, outputs).total.backward()
    assert outputs[Slice(8)].grad is None
    student = outputs[Slice(2)].grad
    assert student is not None
    assert (student != 0).all()
