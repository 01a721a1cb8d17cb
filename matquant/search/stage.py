"""The stage that searches: widths for plans of a trained cell, each written as soon as it is found.

Evaluation reads the plans that lie here, and searches for none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import assert_never

from matquant.codes.nested import NestedWeight
from matquant.config.cell import Cell
from matquant.config.setup import Setup
from matquant.errors import UserError
from matquant.models.devices import pick_device, say_what_it_costs
from matquant.models.layers.coverage import check_layers
from matquant.models.loading import load_model
from matquant.models.text.tokens import search_tokens
from matquant.notation import Plan
from matquant.runs.bars import bar
from matquant.runs.checkpoint import load_checkpoint
from matquant.runs.files import read_json, write_json
from matquant.runs.folder import RunDir
from matquant.runs.sources import claim, present_sources, require_same
from matquant.runs.status import Beat, silent
from matquant.runs.stopping import give_way
from matquant.search.fitness import Fitness
from matquant.search.request import Search, found_plan, recorded_checksum, require_text
from matquant.search.space import Space, space_of
from matquant.search.strategies import Evolution, Levels, dynamic_program, evolve, pyramid


def search(cell: Cell, setup: Setup, plans: Sequence[Plan], beat: Beat = silent) -> dict[Plan, Path]:
    """Finds plans for a trained cell, unless they are there; returns the path of each.

    Checkpoint and model are loaded once for all of them, and the unquantized model reads the text once.  A budget that
    is out of reach keeps no other plan from being found: its UserError is raised at the end.
    """
    run, readout = RunDir(setup.paths.runs, cell.id), setup.readout
    require_text(cell)
    paths = {plan: run.plan(Search.of(plan, readout.search).label) for plan in plans}
    lacking = [plan for plan in plans if found_plan(run, readout, plan) is None]
    if not lacking:
        return paths
    device = pick_device(setup)
    say_what_it_costs(readout.dtype, device, "readout.dtype", "another search")
    run.require_trained()
    require_same(cell, setup)
    checkpoint = load_checkpoint(run.checkpoint, cell, device=str(device))
    spaces, refused = _spaces(cell, setup, checkpoint.layers, lacking)
    if spaces:
        fitness = _fitness(cell, setup, checkpoint.layers)
        for number, (plan, space) in enumerate(spaces.items(), start=1):
            mine = partial(beat, doing=f"{plan}, {number} of {len(spaces)}")
            _find_and_write(cell, setup, plan, space, fitness, mine)
            give_way(f"searching for {plan} of {cell.id}")
    if refused:
        raise refused[0]
    return paths


def find_plan(cell: Cell, setup: Setup, plan: Plan) -> Plan:
    """A plan with its widths, which are searched for first where it names a search."""
    plan = setup.readout.plan_of(cell, plan)
    return plan if plan.strategy is None else plan.found(read_json(search(cell, setup, [plan])[plan])["layers"])


def _spaces(
    cell: Cell, setup: Setup, layers: Mapping[str, NestedWeight], plans: Sequence[Plan]
) -> tuple[dict[Plan, Space], list[UserError]]:
    """The choices under each plan's budget, and the reasons why some plans have none."""
    assert cell.objective is not None
    spaces: dict[Plan, Space] = {}
    refused: list[UserError] = []
    for plan in plans:
        asked = Search.of(plan, setup.readout.search)
        try:
            spaces[plan] = space_of(
                layers,
                budget=asked.budget,
                granularity=asked.granularity,
                extra_precision=plan.extra_precision,
                rule=plan.rule,
            )
        except UserError as error:
            refused.append(error)
    return spaces, refused


def _fitness(cell: Cell, setup: Setup, layers: Mapping[str, NestedWeight]) -> Fitness:
    """The divergence of a checkpoint's read-outs from the unquantized model, which is loaded and run for it."""
    assert cell.data is not None
    readout, spec = setup.readout, setup.readout.search
    before = present_sources(cell, setup.paths.cache)
    # In the dtype that plans are read in: what is rounded there is rounded here.
    model, tokenizer = load_model(cell.model, cache=setup.paths.cache, dtype=readout.dtype, device=pick_device(setup))
    check_layers(cell, model, layers, RunDir(setup.paths.runs, cell.id).checkpoint)
    text = search_tokens(cell, spec, tokenizer)
    claim(cell, setup, before)
    return Fitness(model, layers, text, top_k=spec.top_k, batch_size=spec.batch_size)


def _find_and_write(cell: Cell, setup: Setup, plan: Plan, space: Space, fitness: Fitness, beat: Beat) -> None:
    """Finds one plan and writes it; waits for another process that searches for the same plan."""
    run, readout = RunDir(setup.paths.runs, cell.id), setup.readout
    wanted = Search.of(plan, readout.search)
    asked = wanted.facts(recorded_checksum(run), readout.dtype)
    with run.alone(f"search-{wanted.label}"):
        if found_plan(run, readout, plan) is not None:
            return
        levels = find(space, fitness, wanted, run.search(wanted.state_of(asked)), beat)
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
        write_json(run.plan(wanted.label), facts)


def find(space: Space, fitness: Fitness, search: Search, state: Path, beat: Beat = silent) -> Levels:
    """The assignment of one strategy; `state` is a file that an interrupted search goes on from."""
    match search.strategy:
        case "pyramid":
            return pyramid(space.choices)
        case "dynamic_program":
            return dynamic_program(space.choices, sensitivities(space, fitness, state, beat))
        case "evolution":
            return _evolved(space, fitness, search, state, beat)
        case _:
            assert_never(search.strategy)


def sensitivities(space: Space, fitness: Fitness, state: Path, beat: Beat = silent) -> list[list[float]]:
    """The loss that each unit adds at each width, with all other units at their widest; each is kept once measured."""
    choices, measured = space.choices, dict(read_json(state)) if state.exists() else {}
    widest = (choices.top,) * len(choices.units)
    jobs = [(unit, level) for unit in range(len(choices.units)) for level in range(choices.top)]
    with bar("loss of each unit at each width", total=len(jobs) + 1, unit="losses", initial=len(measured)) as shown:

        def loss(name: str, levels: Levels) -> float:
            if name not in measured:
                measured[name] = fitness.loss(space.slices(levels))
                write_json(state, measured)
                shown.update()
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
    first = 0 if start is None else start.generation
    with bar(search.label, total=search.spec.generations, unit="generations", initial=first) as shown:
        for best in evolve(
            space.choices,
            lambda levels, share: fitness.loss(space.slices(levels), share),
            generations=search.spec.generations,
            offspring=search.spec.offspring,
            seed=search.spec.seed,
            start=start,
        ):
            write_json(state, asdict(best))
            shown.set_postfix(refresh=False, loss=f"{best.loss:.5f}")
            shown.update(best.generation - shown.n)
            beat(best.generation, search.spec.generations)
            give_way(f"searching for {search.label}, after generation {best.generation}")
    assert best is not None
    return best.parent
