"""The column solve of GPTQ (arXiv:2210.17323), for one width or for several at once (MatGPTQ, arXiv:2602.03537).

For one linear layer with inputs x, the codes are to keep the layer's outputs: with H = 2 E[x x^T],

    min over codes of  sum over r of  lambda_r tr((W - W_r) H (W - W_r)^T)

Input channels are quantized one after the other.  Where H^-1 = U^T U with U upper triangular, the error that column j
leaves behind is made up for by the columns right of it:

    q_j = argmin over q of  sum over r of  lambda_r (w_j - deq_r(q))^2          (`code_choice`)
    e_j = mean over r of (w_j - deq_r(q_j)) / U_jj          w_k <- w_k - e_j U_jk   for k > j

With the one term {c} this is GPTQ.  The published code propagates the plain mean over r whatever the weights are, which
leaves lambda nearly without effect; `residual=weighted` takes the mean that lambda weighs.  With `residual=dual` each
width has an error and a target of its own (`own_targets`); targets are solved side by side, stacked along the outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, assert_never

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from matquant.codes.code_choice import CodeChoice, code_choice
from matquant.codes.own_targets import OwnTargets, own_targets
from matquant.codes.quantizers import Grid, minmax_grid
from matquant.codes.range_search import best_for_all, searched_grid
from matquant.config.cell import GPTQBase, GridSpec, Residual
from matquant.errors import NotFiniteError
from matquant.notation import Objective

RAISED = 10.0  # the factor of the damping at each retry


class Solution(NamedTuple):
    """The parent codes of a linear layer with their grid, in the natural order of its inputs, and the error left."""

    codes: UInt8[Tensor, "out in"]
    grid: Grid
    error: Float[Tensor, " out"]
    """For each output sum over j of e_j^2; with one term exactly (w - w_c) H (w - w_c)^T, damping included.

    With targets of their own it is the mean of that over the terms, as they weigh.
    """
    inverse: Inverse


class Inverse(NamedTuple):
    """A factor of a damped Hessian's inverse, H^-1 = U^T U, with the damping and the retries that it took."""

    upper: Float[Tensor, "in in"]
    order: Int[Tensor, " in"]
    """The input channels in the order they are solved in, which is the factor's."""
    dead: Bool[Tensor, " in"]
    """Input channels, in natural order, that no token activates."""
    damping: float
    retries: int


def solve(
    weight: Float[Tensor, "out in"],
    hessian: Float[Tensor, "in in"],
    *,
    objective: Objective,
    spec: GridSpec,
    base: GPTQBase,
) -> Solution:
    """The codes of one linear layer, or of several with the same input stacked along their outputs.

    Raises NotFiniteError for a Hessian or a weight that is not finite, or a Hessian singular after all retries.
    """
    if not weight.isfinite().all():
        raise NotFiniteError("its weights are not finite; mend the model's weights")
    inverse = invert(hessian, base)
    choice = choice_of(objective, base.residual).to(weight.device)
    # A dead input has no say in any output; zero keeps it from widening the grid (as in GPTQ's own code).
    weight = weight.detach().float().masked_fill(inverse.dead, 0.0)
    ends = _Ends(hessian.diagonal(), objective, base)
    solution = _solve_columns(weight, inverse, choice, ends, spec=spec, base=base)
    if not solution.error.isfinite().all():
        raise NotFiniteError("its errors outgrow float32; raise base.damping, or take grid.scale_dtype=float32")
    return solution


def choice_of(objective: Objective, residual: Residual) -> CodeChoice | OwnTargets:
    """The best codes of an objective; with one term a target of its own is the only one."""
    if residual == "dual":
        return own_targets(objective) if len(objective.terms) > 1 else code_choice(objective)
    return code_choice(objective, residual)


def invert(hessian: Float[Tensor, "in in"], base: GPTQBase) -> Inverse:
    """Damps a Hessian and factors its inverse; dead inputs are cut off from all others.

    H = R R^T with R upper triangular is the Cholesky factorization from the last column to the first, and U = R^-1: one
    factorization and one triangular solve, where Cholesky, inverse and Cholesky again take three times as long.
    """
    if not hessian.isfinite().all():
        raise NotFiniteError("the second moments of its inputs are not finite; set base.compute_dtype=float32")
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    # The mean over inputs that are alive: the 1 that stands in for a dead one says nothing about their size.
    mean = diagonal.sum() / (~dead).sum().clamp(min=1)
    order = torch.arange(len(hessian), device=hessian.device)
    if base.act_order:
        order = diagonal.argsort(descending=True, stable=True)
        hessian = hessian[order][:, order]
    filled = diagonal.masked_fill(dead, 1.0)[order]
    damping = base.damping
    for retry in range(base.max_damping_retries + 1):
        damped = hessian.clone()
        damped.diagonal().copy_(filled + damping * mean)
        if (upper := _upper_of_inverse(damped)) is not None:
            return Inverse(upper, order, dead, damping, retry)
        damping *= RAISED
    raise NotFiniteError(
        f"its Hessian is singular, with damping {damping / RAISED:g} of its mean diagonal after "
        f"{base.max_damping_retries} retries; raise base.damping, or take more calibration text"
    )


def _upper_of_inverse(hessian: Float[Tensor, "in in"]) -> Float[Tensor, "in in"] | None:
    lower, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    if failed:
        return None
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    upper = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return upper if upper.isfinite().all() else None


@dataclass(frozen=True)
class _Ends:
    """The ends of grids: the extreme weights, or those that a search finds for the codes that the solve would take."""

    moments: Float[Tensor, " in"]
    """The diagonal of the Hessian: the squares of inputs."""
    objective: Objective
    base: GPTQBase

    def grid(self, weight: Float[Tensor, "out some"], first: int, spec: GridSpec) -> Grid:
        """The grid of some columns, from the `first` on, as their weights are now."""
        match self.base.clipping:
            case "none":
                return minmax_grid(weight, self.objective.parent_bits, spec)
            case "search":
                moments = self.moments[first : first + weight.shape[1]]
                return searched_grid(
                    weight.contiguous(),  # columns that lie side by side are searched in two thirds of the time
                    self.objective,
                    spec,
                    reach=self.base.clipping_reach,
                    importance=moments if self.base.importance == "inputs" else None,
                    codes=best_for_all(self.objective),
                )
            case _:
                assert_never(self.base.clipping)


def _solve_columns(
    weight: Float[Tensor, "out in"],
    inverse: Inverse,
    choice: CodeChoice | OwnTargets,
    ends: _Ends,
    *,
    spec: GridSpec,
    base: GPTQBase,
) -> Solution:
    num_inputs = weight.shape[1]
    group_size = spec.group_size or num_inputs
    of_group = spec.model_copy(update={"group_size": None})
    # Columns solved out of order meet their groups in pieces, so all grids are set beforehand ("static groups"): codes
    # and grid can then be stored in natural order, where a group is a run of neighbours.
    static = ends.grid(weight, 0, spec) if base.act_order else None
    group_of = (inverse.order // group_size).tolist()
    scales: dict[int, Float[Tensor, " out"]] = {}
    zeros: dict[int, Float[Tensor, " out"]] = {}
    if static is not None:
        scales, zeros = (dict(enumerate(part.T.contiguous())) for part in static)
    stacked: dict[int, Grid] = {}
    # Transposed, so that the values of one step lie side by side in memory.
    columns = weight.T[inverse.order].repeat(1, choice.num_targets)
    positions, places = torch.empty_like(columns), choice.places_like(columns)
    error = weight.new_zeros(columns.shape[1])
    diagonal = inverse.upper.diagonal().tolist()
    for start, stop in cuts(num_inputs, group_size=group_size, block_size=base.block_size):
        block, factor = columns[start:stop], inverse.upper[start:stop, start:stop]
        errors = torch.empty_like(block)
        for row in range(stop - start):
            column = start + row
            group = group_of[column]
            if group not in scales:
                # One grid for all targets: that of their mean, which is the one target of `residual=mean`.
                now = columns[column : column + group_size].unflatten(1, (choice.num_targets, -1))
                grid = ends.grid(now.mean(1).T, column, of_group)
                scales[group], zeros[group] = grid.scale.squeeze(1), grid.zero.squeeze(1)
            if group not in stacked:
                stacked[group] = Grid(*(part[group].repeat(choice.num_targets) for part in (scales, zeros)))
            scale, zero = stacked[group]
            position = torch.div(block[row], scale, out=positions[column]).add_(zero)
            value = choice.value(choice.place(position, out=places[column]))
            torch.sub(position, value, out=errors[row]).mul_(scale).div_(diagonal[column])
            block[row + 1 :].addr_(factor[row, row + 1 :], errors[row], alpha=-1)
        columns[stop:].addmm_(inverse.upper[start:stop, stop:].T, errors, alpha=-1)
        error += errors.square().sum(0)
    codes = torch.empty_like(places, dtype=torch.uint8)
    codes[inverse.order] = choice.codes(places, positions)
    numbers = range(num_inputs // group_size)
    grid = Grid(*(torch.stack([parts[number] for number in numbers], 1) for parts in (scales, zeros)))
    return Solution(codes.T.contiguous(), grid, choice.joined(error), inverse)


def cuts(num_inputs: int, *, group_size: int, block_size: int) -> Iterator[tuple[int, int]]:
    """Blocks of columns such that a group begins where a block does, or lies within one.

    So when a group's grid is set, all of its weights have received all errors of the columns before it.
    """
    if group_size <= block_size:
        block_size -= block_size % group_size
        group_size = num_inputs
    for begin in range(0, num_inputs, group_size):
        end = min(begin + group_size, num_inputs)
        for start in range(begin, end, block_size):
            yield start, min(start + block_size, end)
