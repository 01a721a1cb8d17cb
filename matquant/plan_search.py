"""Searching for a plan: what can be chosen of a checkpoint, by which strategy, and where the result is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from tqdm import tqdm

from matquant.codes.extra_precision import overflow_share
from matquant.codes.layouts import block_number
from matquant.codes.nested import NestedWeight
from matquant.config.cell import Cell, DType
from matquant.config.setup import SearchSpec, Setup
from matquant.errors import UserError
from matquant.fitness import Fitness
from matquant.models.devices import pick_device
from matquant.models.families import input_names
from matquant.models.loading import load_model
from matquant.models.tokens import token_blocks
from matquant.notation import STRATEGIES, Plan, Slice
from matquant.runs.checkpoint import has_checkpoint, load_checkpoint
from matquant.runs.files import read_json, write_json
from matquant.runs.folder import RunDir
from matquant.runs.stopping import give_way
from matquant.widths import Choices, Evolution, Levels, dynamic_program, evolve, pyramid

Strategy = Literal["pyramid", "dynamic_program", "evolution"]
Granularity = Literal["block", "linear"]
WIDTHS = (2, 3, 4, 6, 8)

Beat = Callable[[int, int], object]
"""Told how many steps of a search are done, and of how many."""


def _silent(done: int, total: int) -> None:
    """For a search that nobody but its progress bar watches."""


@dataclass(frozen=True)
class Search:
    """What a search is told."""

    label: str
    """The plan's, which names its file."""
    strategy: Strategy
    budget: float
    granularity: Granularity = "block"
    """A unit is all quantized layers of a block, or one of them, fused ones (q, k, v and gate, up) together."""
    spec: SearchSpec = field(default_factory=SearchSpec)

    @classmethod
    def of(cls, plan: Plan, spec: SearchSpec) -> Search:
        """The search that a plan such as `evolution_linear@3` asks for; UserError for one that asks for none."""
        name = plan.strategy or plan.layout or ""
        stem = name.removesuffix("_linear")
        if stem not in get_args(Strategy) or plan.budget is None:
            raise UserError(f"{plan} is not searched for; choose {', '.join((*STRATEGIES, 'pyramid'))} and @BITS")
        return cls(plan.label, cast("Strategy", stem), plan.budget, "block" if name == stem else "linear", spec)

    def facts(self, checksum: str, dtype: DType) -> dict[str, Any]:
        """Everything that decides what is found."""
        return {
            "checksum": checksum,
            "dtype": dtype,
            "strategy": self.strategy,
            "budget": self.budget,
            "granularity": self.granularity,
            **self.spec.model_dump(),
        }

    def state_of(self, facts: Mapping[str, Any]) -> str:
        """A name for what is measured on the way: of the very same search, or for any budget where it is not asked."""
        facts = dict(facts)
        if self.strategy == "dynamic_program":
            facts |= dict.fromkeys(("budget", "generations", "offspring", "seed"))
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.strategy}-{digest}"


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


def find(space: Space, fitness: Fitness, search: Search, state: Path, beat: Beat = _silent) -> Levels:
    """The assignment of one strategy; `state` is a file that an interrupted search goes on from."""
    match search.strategy:
        case "pyramid":
            return pyramid(space.choices)
        case "dynamic_program":
            return dynamic_program(space.choices, sensitivities(space, fitness, state, beat))
        case "evolution":
            return _evolved(space, fitness, search, state, beat)


def sensitivities(space: Space, fitness: Fitness, state: Path, beat: Beat = _silent) -> list[list[float]]:
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
                beat(len(measured), len(jobs) + 1)
                give_way(f"searching, with {name} measured")
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


def _evolved(space: Space, fitness: Fitness, search: Search, state: Path, beat: Beat) -> Levels:
    start = None
    if state.exists():
        saved = read_json(state)
        start = Evolution(saved["generation"], tuple(saved["parent"]), saved["loss"])
    best = start
    with tqdm(
        desc=search.label, total=search.spec.generations, initial=0 if start is None else start.generation
    ) as bar:
        for best in evolve(
            space.choices,
            lambda levels, share: fitness.loss(space.slices(levels), share),
            generations=search.spec.generations,
            offspring=search.spec.offspring,
            seed=search.spec.seed,
            start=start,
        ):
            write_json(state, asdict(best))
            bar.update(best.generation - bar.n)
            bar.set_postfix(loss=f"{best.loss:.5f}")
            beat(best.generation, search.spec.generations)
            give_way(f"searching for {search.label}, after generation {best.generation}")
    assert best is not None
    return best.parent


def run_search(cell: Cell, setup: Setup, plan: Plan, beat: Beat = _silent) -> Path:
    """Finds a plan for a trained cell and writes it, unless it is there; returns its path."""
    search, run = Search.of(plan, setup.readout.search), RunDir(setup.paths.runs, cell.id)
    path = run.plan(search.label)
    if cell.objective is None or cell.data is None:
        raise UserError(f"cell {cell.id} has no nested checkpoint or no calibration text to search with")
    if not has_checkpoint(run.checkpoint):
        raise UserError(f"cell {cell.id} is not trained yet; run it with run.py first")
    device = pick_device(setup)
    checkpoint = load_checkpoint(run.checkpoint, cell, device=str(device))
    # In the dtype that the plan is read in: what is rounded there is rounded here.
    dtype = setup.readout.dtype
    layers, asked = checkpoint.layers, search.facts(checkpoint.checksum, dtype)
    if path.exists() and read_json(path).get("search") == asked:
        return path
    space = space_of(
        layers,
        budget=search.budget,
        granularity=search.granularity,
        extra_precision=cell.objective.uses_extra_precision,
    )
    model, tokenizer = load_model(cell.model, cache=setup.paths.cache, dtype=dtype, device=device)
    data = cell.data.model_copy(update={"num_sequences": search.spec.num_sequences})
    text = token_blocks(data, tokenizer, "train", seed=cell.seed, add_bos=cell.model.add_bos)
    fitness = Fitness(model, layers, text, top_k=search.spec.top_k, batch_size=search.spec.batch_size)
    with run.alone(f"search-{search.label}"):
        levels = find(space, fitness, search, run.search(search.state_of(asked)), beat)
    # Written whole before it is scored: what the search last tried is still in the model.
    fitness.forget()
    slices = space.slices(levels)
    facts = {
        "layers": {name: str(part) for name, part in slices.items()},
        "effective_bits": space.choices.bits(levels),
        "loss": fitness.loss(slices),
        "cell_id": cell.id,
        "search": asked,
    }
    write_json(path, facts)
    return path


def found(cell: Cell, setup: Setup, plan: Plan) -> Plan:
    """A plan with its widths, which are searched for first where it names a search."""
    plan = setup.readout.searched(plan)
    return plan if plan.strategy is None else plan.found(read_json(run_search(cell, setup, plan))["layers"])
