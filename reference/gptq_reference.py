"""Slow, obvious twins of `matquant.codes.code_choice` and `matquant.codes.column_solve`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

from matquant.notation import Objective, Slice
from reference.slicing_reference import slice_code


def cost_of(code: int, position: float, objective: Objective) -> int:
    """sum over terms of lambda (u - S(q, r))^2, exactly: in units that make weights and position whole numbers."""
    numerator, unit = position.as_integer_ratio()
    return sum(
        weight * (numerator - value * unit) ** 2
        for weight, value in zip(whole_weights(objective), slices_of(code, objective), strict=True)
    )


def best_code(position: float, objective: Objective) -> int:
    """Tries all codes; of those that cost the same it takes smaller slices, and of equal slices the nearest code."""

    def order(code: int) -> tuple[object, ...]:
        return cost_of(code, position, objective), slices_of(code, objective), abs(Fraction(position) - code), code

    return min(range(2**objective.parent_bits), key=order)


@cache
def whole_weights(objective: Objective) -> list[int]:
    exact = [Fraction(term.weight) for term in objective.terms]
    unit = math.lcm(*(weight.denominator for weight in exact))
    return [int(weight * unit) for weight in exact]


@cache
def slices_of(code: int, objective: Objective) -> list[int]:
    return [slice_of(code, term.slice, objective.parent_bits) for term in objective.terms]


def slice_of(code: int, part: Slice, parent_bits: int) -> int:
    extra = part.extra_precision
    return slice_code(code, part.bits, parent_bits=parent_bits, extra_precision=extra, rule=part.rule)


def textbook(weight: Tensor, hessian: Tensor, scale: Tensor, zero: Tensor, *, bits: int, damping: float) -> Tensor:
    """GPTQ word for word (arXiv:2210.17323, Eq. 2 and 3), in float64: after each column the inverse loses a row.

    `scale` and `zero` hold one number for every weight.
    """
    weight = weight.double().clone()
    damped = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(len(hessian))
    inverse = torch.linalg.inv(damped)
    codes = torch.empty_like(weight)
    for j in range(weight.shape[1]):
        codes[:, j] = torch.clamp(torch.round(weight[:, j] / scale[:, j] + zero[:, j]), 0, 2**bits - 1)
        quantized = scale[:, j] * (codes[:, j] - zero[:, j])
        error = (weight[:, j] - quantized) / inverse[j, j]
        weight -= error[:, None] * inverse[None, j]
        inverse = inverse - inverse[:, [j]] @ inverse[[j]] / inverse[j, j]
    return codes.to(torch.uint8)


Factors = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def best_factors(
    weight: Tensor, squares: Tensor, objective: Objective, candidates: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The pair of factors with the least weighted error of each row, of all pairs and all codes of each weight."""
    top, table = 2**objective.parent_bits - 1, slice_table(objective)
    lambdas = torch.tensor([term.weight for term in objective.terms])
    least = torch.full((len(weight),), math.inf)
    found = [torch.ones(len(weight)), torch.ones(len(weight))]
    for of_low in candidates:
        for of_high in candidates:
            low, high = of_low * weight.amin(1), of_high * weight.amax(1)
            scale = (high - low) / top
            read = scale[:, None, None] * (table - (-low / scale)[:, None, None])  # [out, terms, codes]
            cost = sum(
                (lambdas[:, None] * (weight[:, j, None, None] - read).square()).sum(1).amin(1) * squares[j]
                for j in range(weight.shape[1])
            )
            better = cost < least
            least = torch.where(better, cost, least)
            found = [torch.where(better, one, other) for one, other in zip((of_low, of_high), found, strict=True)]
    return found[0], found[1]


def brute_force(
    weight: Tensor,
    hessian: Tensor,
    objective: Objective,
    *,
    group_size: int | None,
    symmetric: bool,
    damping: float,
    weighted: bool = False,
    block_size: int = 128,
    factors: Factors | None = None,
) -> dict[str, Tensor]:
    """MatGPTQ as in its authors' code: in blocks of columns, with all 2^c codes tried for every weight.

    `factors` shrinks or stretches the ends of a group, given its weights as they are when its grid is set, and the
    diagonal of the Hessian beside them.

    Their code reads every code at every slice once, compares each weight of a column with all of them, and carries the
    plain mean of the slices' errors on.  Returns codes, scale and zero.
    """
    num_outputs, num_inputs = weight.shape
    group_size = group_size or num_inputs
    weight, top = weight.clone().float(), 2**objective.parent_bits - 1
    lambdas = torch.tensor([term.weight for term in objective.terms])
    counts = lambdas / lambdas.sum() if weighted else torch.full_like(lambdas, 1 / len(lambdas))
    table = slice_table(objective)  # [terms, codes]
    lower = torch.linalg.cholesky(hessian + damping * hessian.diagonal().mean() * torch.eye(num_inputs))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    codes = torch.empty(num_outputs, num_inputs, dtype=torch.uint8)
    scale, zero = (torch.empty(num_outputs, num_inputs // group_size) for _ in range(2))
    for start in range(0, num_inputs, block_size):
        stop = min(start + block_size, num_inputs)
        errors = torch.zeros(num_outputs, stop - start)
        for j in range(start, stop):
            group = j // group_size
            if j % group_size == 0:
                part = weight[:, j : j + group_size].clone()
                # The part of a group behind the block has not received the block's errors yet.
                if j + group_size > stop:
                    part[:, stop - j :] -= errors[:, : j - start] @ upper[start:j, stop : j + group_size]
                high, low = part.amax(1), part.amin(1)
                if symmetric:
                    high = torch.maximum(high.abs(), low.abs())
                    low = -high
                if factors is not None:
                    of_low, of_high = factors(part, hessian.diagonal()[j : j + group_size])
                    low, high = of_low * low, of_high * high
                scale[:, group] = (high - low) / top
                zero[:, group] = (top + 1) / 2 if symmetric else -low / scale[:, group]
            s, z = scale[:, group], zero[:, group]
            read = s[:, None, None] * (table - z[:, None, None])  # [out, terms, codes]
            cost = (lambdas[:, None] * (weight[:, j, None, None] - read).square()).sum(1)
            best = cost.argmin(1)
            codes[:, j] = best.to(torch.uint8)
            chosen = read.gather(2, best[:, None, None].expand(-1, len(lambdas), 1)).squeeze(2)
            error = ((weight[:, j, None] - chosen) * counts).sum(1) / upper[j, j]
            weight[:, j + 1 : stop] -= error[:, None] * upper[j, j + 1 : stop]
            errors[:, j - start] = error
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return {"codes": codes, "scale": scale, "zero": zero}


def slice_table(objective: Objective) -> Tensor:
    """The value that every code reads at the slice of every term."""
    codes = range(2**objective.parent_bits)
    return torch.tensor(
        [[float(slice_of(q, term.slice, objective.parent_bits)) for q in codes] for term in objective.terms]
    )


def output_error(weight: Tensor, hessian: Tensor, read: Tensor) -> float:
    """tr((W - W_r) H (W - W_r)^T), in float64."""
    difference = (weight - read).double()
    return ((difference @ hessian.double()) * difference).sum().item()


def best_code_of_targets(positions: Sequence[float], objective: Objective) -> int:
    """Tries all codes for a weight that is at another position for each term (`residual=dual`).

    Of those that cost the same it takes smaller slices, and of equal slices the nearest to the widest term's position.
    """
    exact = [Fraction(position) for position in positions]
    widest = max(range(len(exact)), key=lambda number: objective.terms[number].slice)

    def order(code: int) -> tuple[object, ...]:
        slices = slices_of(code, objective)
        return cost_of_targets(code, positions, objective), slices, abs(exact[widest] - code), code

    return min(range(2**objective.parent_bits), key=order)


def cost_of_targets(code: int, positions: Sequence[float], objective: Objective) -> Fraction:
    """sum over terms of lambda_r (u_r - S(q, r))^2, exactly."""
    slices = slices_of(code, objective)
    parts = zip(objective.terms, positions, slices, strict=True)
    return sum((Fraction(term.weight) * (Fraction(u) - value) ** 2 for term, u, value in parts), Fraction(0))


def brute_force_of_targets(
    weight: Tensor, hessian: Tensor, objective: Objective, *, group_size: int | None, symmetric: bool, damping: float
) -> dict[str, Tensor]:
    """`residual=dual` word for word, in float64: a copy of the weights for each term, all 2^c codes for every weight.

    As in `textbook` the inverse loses a row after each column, and nothing is put off to the end of a block.
    """
    num_inputs, top = weight.shape[1], 2**objective.parent_bits - 1
    group_size = group_size or num_inputs
    targets = [weight.double().clone() for _ in objective.terms]
    lambdas, table = [term.weight for term in objective.terms], slice_table(objective).double()
    damped = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(num_inputs)
    inverse = torch.linalg.inv(damped)
    codes, scales, zeros = torch.empty(weight.shape, dtype=torch.uint8), [], []
    for j in range(num_inputs):
        if j % group_size == 0:
            part = torch.stack(targets).mean(0)[:, j : j + group_size]
            high, low = part.amax(1), part.amin(1)
            if symmetric:
                high = torch.maximum(high.abs(), low.abs())
                low = -high
            scales.append((high - low) / top)
            zeros.append(torch.full_like(high, (top + 1) / 2) if symmetric else -low / scales[-1])
        read = scales[-1][:, None, None] * (table - zeros[-1][:, None, None])  # [out, terms, codes]
        costs = [lambdas[r] * (target[:, j, None] - read[:, r]).square() for r, target in enumerate(targets)]
        cost = torch.stack(costs).sum(0)
        codes[:, j] = cost.argmin(1)
        for r, target in enumerate(targets):
            chosen = read[:, r].gather(1, codes[:, [j]].long()).squeeze(1)
            target -= ((target[:, j] - chosen) / inverse[j, j])[:, None] * inverse[None, j]
        inverse = inverse - inverse[:, [j]] @ inverse[[j]] / inverse[j, j]
    return {"codes": codes, "scale": torch.stack(scales, 1), "zero": torch.stack(zeros, 1)}
