"""The best code where each width has a target of its own: `residual=dual`.

MatGPTQ carries one error to the columns on the right, a mean over the widths, so that all widths are to read the same
changed weights: none of them makes up for its own error.  Here each width r carries its own,

    e_r = (w_r - deq_r(q)) / U_jj          w_r,k <- w_r,k - e_r U_jk   for k > j

and the one code of a column serves the targets w_r as they have come apart:

    q_j = argmin over q of  sum over r of  lambda_r (w_r,j - deq_r(q))^2

With one width this is GPTQ.  With several, sum over j of e_r,j^2 is width r's error (W - W_r) H (W - W_r)^T exactly,
and so what a column adds to the objective is what is minimized, as in GPTQ for one width.

Of all codes with the same narrow slices (19 runs for {8, 4, 2}, 23 for {8, 4, 3}) the parent wants the nearest to its
own target.  So runs are compared rather than all 256 codes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from matquant.codes.slicing import slice_codes
from matquant.notation import Objective, Slice


@dataclass(frozen=True)
class OwnTargets:
    """The runs of codes that no narrow slice tells apart, with what each slice of the objective reads.

    The positions of a column's weights come stacked, all of one target after all of another, in the order of terms.
    """

    lambdas: Float[Tensor, " targets"]
    """The weights of the terms, which sum to 1."""
    first: Float[Tensor, " runs"]
    last: Float[Tensor, " runs"]
    narrow: Float[Tensor, "targets runs"]
    """The value of each run at each slice that is narrower than the parent; of the parent, zeros."""
    read: Float[Tensor, "targets codes"]
    """The value of each code at each slice."""
    parent: int | None
    """The place of the term that reads the whole parent, if one does."""
    widest: int
    """The place of the widest term: of codes that cost the same, the nearest to its target is taken."""

    @property
    def num_targets(self) -> int:
        return len(self.lambdas)

    def places_like(self, position: Float[Tensor, "some stacked"]) -> Tensor:
        """An empty tensor for the places of some weights, which are their codes."""
        outputs = position.shape[1] // self.num_targets
        return torch.empty(len(position), outputs, dtype=torch.int32, device=position.device)

    def place(self, position: Float[Tensor, " stacked"], out: Shaped[Tensor, " weights"]) -> Tensor:
        """The best code of every weight, from its position on the grid in each target."""
        positions = position.view(self.num_targets, -1)
        inside = positions.clamp(0, self.read.shape[1])
        cost = position.new_zeros(len(self.first), positions.shape[1])
        for number, (weight, target) in enumerate(zip(self.lambdas, inside, strict=True)):
            value = self._nearest(target) if number == self.parent else self.narrow[number, :, None]
            left = target - value
            # (u - S)^2 less the same for all codes, so that a far position leaves the small differences: with u = t + d
            # and t inside it is (t - S) (t - S + 2 d).
            cost += left.mul_(left + 2 * (positions[number] - target)).mul_(weight)
        run = cost.argmin(0)
        nearest = _half_down(positions[self.widest])
        nearest.clamp_(self.first.index_select(0, run), self.last.index_select(0, run))
        return out.copy_(nearest).clamp_(0, self.read.shape[1] - 1)  # NaN gets a wrong place; `solve` refuses it

    def _nearest(self, target: Float[Tensor, " weights"]) -> Float[Tensor, "runs weights"]:
        return _half_down(target).clamp(self.first[:, None], self.last[:, None])

    def value(self, place: Shaped[Tensor, " weights"]) -> Float[Tensor, " stacked"]:
        """The value that each slice reads of the best code, stacked as positions are."""
        return self.read.index_select(1, place).flatten()

    def codes(self, place: Shaped[Tensor, "*shape"], position: Tensor) -> UInt8[Tensor, "*shape"]:
        """The codes of some places, which they are."""
        return place.to(torch.uint8)

    def joined(self, errors: Float[Tensor, " stacked"]) -> Float[Tensor, " out"]:
        """One error of each output: the mean over targets that the terms weigh."""
        return self.lambdas @ errors.view(self.num_targets, -1)

    def to(self, device: torch.device) -> OwnTargets:
        names = ("lambdas", "first", "last", "narrow", "read")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def _half_down(position: Float[Tensor, " weights"]) -> Float[Tensor, " weights"]:
    """The nearest whole number; of two that are equally near, the smaller."""
    return (position - 0.5).ceil_()


@cache
def own_targets(objective: Objective) -> OwnTargets:
    """The runs of codes of an objective, and what its slices read."""
    codes = torch.arange(2**objective.parent_bits)
    parts = [term.slice for term in objective.terms]
    whole = Slice(objective.parent_bits)
    read = torch.stack([slice_codes(codes, part, parent_bits=objective.parent_bits) for part in parts]).float()
    narrow = read.clone()
    narrow[[part == whole for part in parts]] = 0.0
    columns = [tuple(column) for column in narrow.T.tolist()]
    runs = [[code for code, _ in run] for _, run in groupby(enumerate(columns), key=lambda numbered: numbered[1])]
    first, last = ([run[end] for run in runs] for end in (0, -1))
    lambdas = torch.tensor([term.weight for term in objective.terms])
    return OwnTargets(
        lambdas=lambdas / lambdas.sum(),
        first=torch.tensor(first, dtype=torch.float32),
        last=torch.tensor(last, dtype=torch.float32),
        narrow=narrow[:, first],
        read=read,
        parent=parts.index(whole) if whole in parts else None,
        widest=parts.index(max(parts)),
    )
