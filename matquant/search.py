"""Search for the widths of a checkpoint's layers under a budget, by how far its logits leave the unquantized model's.

    python -m matquant.search 3 --strategy evolution base=gptq bits=matquant

The checkpoint has to be trained already.  Writes a plan, <paths.out>/plans/<cell id>/<strategy>@<budget>.json, that a
read-out names by its path:

    python run.py base=gptq bits=matquant 'readout.plans=[int4, "out/plans/.../evolution@3.json"]'

The loss is a Kullback-Leibler divergence on calibration text, per token, to the unquantized model's next-token
distribution as its `top_k` most likely tokens and one bucket for all others show it.  Remembering that takes 8 top_k
bytes a token (at 64: 8 MB for 16k tokens, whatever the vocabulary); the logits of one batch are in memory besides.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from matquant.cell import Cell
from matquant.checkpoint import has_checkpoint, load_checkpoint
from matquant.config import load_study
from matquant.data import token_blocks
from matquant.errors import UserError
from matquant.extra_precision import overflow_share
from matquant.mixnmatch import block_number
from matquant.models import input_names, load_model
from matquant.nested import NestedWeight, write_layer
from matquant.notation import Slice
from matquant.runs import RunDir, read_json, write_json
from matquant.setup import Setup
from matquant.train import pick_device
from matquant.widths import Choices, Evolution, Levels, dynamic_program, evolve, pyramid

Strategy = Literal["pyramid", "dynamic_program", "evolution"]
Granularity = Literal["block", "linear"]
WIDTHS = (2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Search:
    """What a search is told."""

    strategy: Strategy
    budget: float
    granularity: Granularity = "block"
    """A unit is all quantized layers of a block, or one of them, fused ones (q, k, v and gate, up) together."""
    num_sequences: int = 32
    """Of the cell's calibration text."""
    batch_size: int = 4
    top_k: int = 64
    generations: int = 20
    offspring: int = 64
    seed: int = 0

    @property
    def name(self) -> str:
        linear = "_linear" if self.granularity == "linear" else ""
        return f"{self.strategy}{linear}@{self.budget:g}"

    def state_of(self, checksum: str) -> str:
        """A name for what is measured on the way: of the very same search, or for any budget where it is not asked."""
        facts = asdict(self) | {"checksum": checksum}
        if self.strategy == "dynamic_program":
            facts |= dict.fromkeys(("budget", "generations", "offspring", "seed"))
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.strategy}-{digest}"


class Teacher(NamedTuple):
    """The unquantized model's most likely next tokens and their log-probabilities, for every token of the text."""

    log_probabilities: Float[Tensor, "sequences tokens top"]
    tokens: Int[Tensor, "sequences tokens top"]


class Fitness:
    """Measures assignments of slices to layers in one model, of which it rewrites only the layers that change."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, NestedWeight],
        text: Int[Tensor, "sequences tokens"],
        *,
        top_k: int,
        batch_size: int,
    ) -> None:
        """`model` still has its own weights."""
        self.model, self.layers, self.text, self.batch_size = model, layers, text, batch_size
        self.written: dict[str, Slice] = {}
        batches = [_most_likely(self._logits(batch), top_k) for batch in text.split(batch_size)]
        self.teacher = Teacher(*(torch.cat(parts) for parts in zip(*batches, strict=True)))

    def switch(self, slices: Mapping[str, Slice]) -> int:
        """Writes the layers whose slice is not the one in the model; returns how many."""
        changed = [name for name in self.layers if self.written.get(name) != slices[name]]
        for name in changed:
            write_layer(self.model, name, self.layers[name], slices[name])
            self.written[name] = slices[name]
        return len(changed)

    def forget(self) -> None:
        """Lets the next assignment be written whole, whatever is thought to be in the model."""
        self.written.clear()

    @torch.no_grad()
    def loss(self, slices: Mapping[str, Slice], share: float = 1.0) -> float:
        """The mean divergence per token, on the first `share` of the sequences."""
        self.switch(slices)
        number = max(1, math.ceil(share * len(self.text)))
        total = 0.0
        for start in range(0, number, self.batch_size):
            part = slice(start, min(start + self.batch_size, number))
            teacher = Teacher(*(kept[part] for kept in self.teacher))
            total += divergence(teacher, self._logits(self.text[part])).sum().item()
        return total / self.text[:number].numel()

    @torch.no_grad()
    def _logits(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocabulary"]:
        device = next(self.model.parameters()).device
        return self.model(input_ids=tokens.to(device), use_cache=False).logits


def _most_likely(logits: Float[Tensor, "batch tokens vocabulary"], top_k: int) -> Teacher:
    """The teacher's part for one batch, on the CPU."""
    rows = [row.float().log_softmax(-1).topk(min(top_k, row.shape[-1])) for row in logits]
    return Teacher(
        torch.stack([row.values for row in rows]).cpu(), torch.stack([row.indices for row in rows]).int().cpu()
    )


def divergence(teacher: Teacher, logits: Float[Tensor, "batch tokens vocabulary"]) -> Float[Tensor, "batch tokens"]:
    """KL of two distributions over the teacher's most likely tokens and one bucket for all others; never negative.

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


# --- what can be chosen ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """The choices of one checkpoint, and which layers each unit stands for."""

    choices: Choices
    members: Mapping[str, Sequence[str]]
    parts: Mapping[int, Slice]
    """How each width is read: with its overflow bucket where the codes were trained with it."""

    def slices(self, levels: Sequence[int]) -> dict[str, Slice]:
        """The slice of every layer under an assignment."""
        named = self.choices.named(levels)
        return {name: self.parts[bits] for unit, bits in named.items() for name in self.members[unit]}


def space_of(
    layers: Mapping[str, NestedWeight], *, budget: float, granularity: Granularity, extra_precision: bool
) -> Space:
    """Units of layers with their cost at every width their parent contains; UserError for a budget out of reach."""
    parent_bits = min(nested.parent_bits for nested in layers.values())
    widths = tuple(width for width in WIDTHS if width <= parent_bits)
    inputs = input_names(layers)
    members: dict[str, list[str]] = {}
    for name in layers:
        unit = f"block {block_number(name)}" if granularity == "block" else inputs[name]
        members.setdefault(unit, []).append(name)

    parts = {width: Slice(width, extra_precision=extra_precision and width < parent_bits) for width in widths}

    def cost(names: Sequence[str], part: Slice) -> float:
        return sum(layers[name].codes.numel() * (part.bits + overflow_share(layers[name], part)) for name in names)

    choices = Choices(
        units=tuple(members),
        blocks=tuple(block_number(names[0]) for names in members.values()),
        widths=widths,
        costs=tuple(tuple(cost(names, part) for part in parts.values()) for names in members.values()),
        num_weights=sum(nested.codes.numel() for nested in layers.values()),
        budget=budget,
    )
    return Space(choices, members, parts)


# --- strategies on a model -------------------------------------------------------------------------------------------


def find(space: Space, fitness: Fitness, search: Search, state: Path) -> Levels:
    """The assignment of one strategy; `state` is a file that an interrupted search goes on from."""
    match search.strategy:
        case "pyramid":
            return pyramid(space.choices)
        case "dynamic_program":
            return dynamic_program(space.choices, sensitivities(space, fitness, state))
        case "evolution":
            return _evolved(space, fitness, search, state)


def sensitivities(space: Space, fitness: Fitness, state: Path) -> list[list[float]]:
    """What each unit's width alone adds to the loss, with all others at their widest; kept as measured."""
    choices, measured = space.choices, dict(read_json(state)) if state.exists() else {}
    widest = (choices.top,) * len(choices.units)
    jobs = [(unit, level) for unit in range(len(choices.units)) for level in range(choices.top)]
    with tqdm(desc="loss of each unit at each width", total=len(jobs) + 1, initial=len(measured)) as bar:

        def loss(name: str, levels: Levels) -> float:
            if name not in measured:
                measured[name] = fitness.loss(space.slices(levels))
                write_json(state, measured)
                bar.update()
            return measured[name]

        least = loss("widest", widest)
        return [
            [
                loss(f"{choices.units[unit]} at int{width}", (*widest[:unit], level, *widest[unit + 1 :])) - least
                for level, width in enumerate(choices.widths[:-1])
            ]
            + [0.0]
            for unit in range(len(choices.units))
        ]


def _evolved(space: Space, fitness: Fitness, search: Search, state: Path) -> Levels:
    start = None
    if state.exists():
        saved = read_json(state)
        start = Evolution(saved["generation"], tuple(saved["parent"]), saved["loss"])
    best = start
    with tqdm(desc=search.name, total=search.generations, initial=0 if start is None else start.generation) as bar:
        for best in evolve(
            space.choices,
            lambda levels, share: fitness.loss(space.slices(levels), share),
            generations=search.generations,
            offspring=search.offspring,
            seed=search.seed,
            start=start,
        ):
            write_json(state, asdict(best))
            bar.update(best.generation - bar.n)
            bar.set_postfix(loss=f"{best.loss:.5f}")
    assert best is not None
    return best.parent


def run_search(cell: Cell, setup: Setup, search: Search) -> Path:
    """Finds a plan for a trained cell and writes it, unless it is there; returns its path."""
    path = setup.paths.out / "plans" / cell.id / f"{search.name}.json"
    run = RunDir(setup.paths.runs, cell.id)
    if cell.objective is None or cell.data is None:
        raise UserError(f"cell {cell.id} has no nested checkpoint or no calibration text to search with")
    if not has_checkpoint(run.checkpoint):
        raise UserError(f"cell {cell.id} is not trained yet; run it with run.py first")
    device = pick_device(setup)
    checkpoint = load_checkpoint(run.checkpoint, cell, device=str(device))
    layers, asked = checkpoint.layers, {"search": asdict(search), "checksum": checkpoint.checksum}
    if path.exists() and read_json(path).items() >= asked.items():
        return path
    space = space_of(
        layers,
        budget=search.budget,
        granularity=search.granularity,
        extra_precision=cell.objective.uses_extra_precision,
    )
    model, tokenizer = load_model(cell.model, cache=setup.paths.cache, dtype=cell.model.dtype, device=device)
    data = cell.data.model_copy(update={"num_sequences": search.num_sequences})
    text = token_blocks(data, tokenizer, "train", seed=cell.seed, add_bos=cell.model.add_bos)
    fitness = Fitness(model, layers, text, top_k=search.top_k, batch_size=search.batch_size)
    with run.alone("search"):
        levels = find(space, fitness, search, run.search(search.state_of(checkpoint.checksum)))
    # Written whole before it is scored: what the search last tried is still in the model.
    fitness.forget()
    slices = space.slices(levels)
    facts = {
        "layers": {name: str(part) for name, part in slices.items()},
        "effective_bits": space.choices.bits(levels),
        "loss": fitness.loss(slices),
        "cell_id": cell.id,
        **asked,
    }
    write_json(path, facts)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("budget", type=float, help="effective bits of a quantized weight, on average")
    parser.add_argument("overrides", nargs="*", help="the cell, as run.py takes it: base=gptq bits=matquant")
    parser.add_argument("--strategy", choices=get_args(Strategy), default="evolution")
    parser.add_argument("--granularity", choices=get_args(Granularity), default=Search.granularity)
    for name in ("num_sequences", "batch_size", "top_k", "generations", "offspring", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Search, name))
    options = vars(parser.parse_intermixed_args())
    overrides = options.pop("overrides")
    try:
        study = load_study(overrides)
        if len(study.cells) != 1:
            raise UserError(f"this means {len(study.cells)} cells; name one, by base=... bits=...")
        path = run_search(study.cells[0], study.setup, Search(**options))
    except (UserError, ValueError) as error:
        sys.exit(f"error: {error}")
    found = read_json(path)
    print(f"{path}: {found['effective_bits']:.3f} bits, loss {found['loss']:.5f}")


if __name__ == "__main__":
    main()
