"""The estimated work of a stage, in floating point operations.  The arithmetic of docs/experiments.md.

Good to a factor of two on a machine that nobody has measured, and to a third on one that has (`forecast`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from evaluation.asked import asked_tasks, num_fewshot
from evaluation.planning.known_models import stand_in
from evaluation.planning.text_size import sequences_of
from evaluation.results.metrics import LOG_PPLX
from evaluation.sources.table import PAPER_TASKS
from matquant.config.cell import Cell, ForeignBase, GPTQBase, MinMaxBase, NoBase, OmniQuantBase, QATBase, SearchBase
from matquant.config.setup import Readout, SearchSpec
from matquant.errors import UserError
from matquant.models.layers.experts import active_weights, is_of_expert
from matquant.models.layers.families import block_name, blocks, linears
from matquant.models.loading import skeleton
from matquant.notation import Plan
from matquant.search.request import Granularity, Search
from matquant.search.strategies import TOURNAMENT

DOCUMENTS_OF_ANOTHER_TASK = 5000
TOKENS_OF_ANOTHER_TASK = 150
ANSWERS_OF_A_DOCUMENT = 3
COMPARISON_OF_A_LOGIT = 300
"""The operations of comparing two distributions, for each token of the vocabulary, and of the head that makes the
teacher's anew: with SmolLM2 on a CPU a divergence makes log perplexity 1.26 times as long."""
SEARCH_OF_A_WEIGHT = 30_000
"""A search for ranges takes a microsecond a weight on a CPU, the time of so many operations of a product."""


@dataclass(frozen=True)
class Size:
    """The size of a model: all weights, those in scope, those in scope of the largest block; and its dimensions.

    Memory holds all weights; a token is multiplied by the `active` ones, which are fewer in a mixture of experts.
    `moments`: the numbers in the second moments of the experts of the largest block.
    `columns`: the input channels of all layers in scope, those that several layers of a module share counted once.
    """

    weights: int
    active: float
    in_scope: int
    active_in_scope: float
    in_block: int
    moments: int
    columns: int
    hidden: int
    layers: int
    vocabulary: int


_SIZES: dict[tuple[str, str | None], Size] = {}


def size_of(cell: Cell, cache: Path) -> Size:
    """The size of a cell's model, which is built without weights once for each scope."""
    key = (cell.model.model_dump_json(), cell.scope)
    if key not in _SIZES:
        try:
            model = skeleton(cell.model, cache=cache)
        except UserError:
            if (alike := stand_in(cell.model)) is None:
                raise
            model = skeleton(alike, cache=cache)
        found = [linears(block, cell.scope) if cell.scope else {} for block in blocks(model)]
        in_blocks = [sum(linear.weight.numel() for linear in of_block.values()) for of_block in found]
        config = model.config.get_text_config()
        active = active_weights(model, config)
        named = [
            f"{block_name(model, index)}.{path}.weight" for index, of_block in enumerate(found) for path in of_block
        ]
        _SIZES[key] = Size(
            weights=sum(parameter.numel() for parameter in model.parameters()),
            active=sum(active.values()),
            in_scope=sum(in_blocks),
            active_in_scope=sum(active[path] for path in named),
            in_block=max(in_blocks),
            moments=max(
                sum(linear.in_features**2 for path, linear in of_block.items() if is_of_expert(path))
                for of_block in found
            ),
            columns=sum(
                features
                for of_block in found
                for _, features in {(path.rpartition(".")[0], linear.in_features) for path, linear in of_block.items()}
            ),
            hidden=config.hidden_size,
            layers=len(in_blocks),
            vocabulary=config.vocab_size,
        )
    return _SIZES[key]


def searches_for_ends(cell: Cell) -> bool:
    """True if the ends of a cell's grids are searched for, to stay there or to start there."""
    match cell.base:
        case NoBase() | ForeignBase() | MinMaxBase():
            return False
        case SearchBase():
            return True
        case OmniQuantBase() | QATBase() as base:
            return base.clipping_init == "search"
        case GPTQBase() as base:
            return base.clipping == "search"
        case _:
            assert_never(cell.base)


def training_operations(cell: Cell, size: Size) -> float:
    """The operations that make a cell's checkpoint."""
    search = SEARCH_OF_A_WEIGHT * size.in_scope if searches_for_ends(cell) else 0.0
    return search + _fitting_operations(cell, size)


def _fitting_operations(cell: Cell, size: Size) -> float:
    """The operations on text."""
    match cell.base:
        case NoBase() | ForeignBase() | MinMaxBase():
            return 0.0
        case SearchBase() as base:
            return 0.0 if base.importance == "plain" else 2 * size.active * calibration_tokens(cell)
        case OmniQuantBase() as base:
            assert cell.data is not None
            trained = base.num_steps * base.batch_size * cell.data.sequence_length
            # Forward and backward of the layers in scope; then every block's output on the calibration text, for the
            # teacher and for each slice.
            steps = 4.7 * size.active_in_scope * trained * num_slices(cell)
            return steps + 2 * size.active * calibration_tokens(cell) * (num_slices(cell) + 1)
        case QATBase() as base:
            assert cell.data is not None
            tokens = base.num_steps * base.batch_size * cell.data.sequence_length
            return (8 if base.activation_checkpointing else 6) * size.active * tokens * num_slices(cell)
        case GPTQBase():
            # Two passes through every block, and the second moments of its inputs: where a feed-forward network is four
            # times as wide as its input, 1.4 x 2 operations a weight and token.  The solve is small beside them.
            return 4 * size.active * calibration_tokens(cell) + moment_operations(cell, size)
        case _:
            assert_never(cell.base)


def moment_operations(cell: Cell, size: Size) -> float:
    """The operations of GPTQ's second moments, which are products in float32."""
    return 3 * size.active_in_scope * calibration_tokens(cell)


def reading_operations(readout: Readout, size: Size, num_plans: float) -> float:
    """The operations that read a cell at so many plans: all tasks, and the held-out text."""
    return 2 * size.active * num_plans * tokens_of_plan(readout)


def comparing_operations(cell: Cell, readout: Readout, size: Size, num_plans: float) -> float:
    """The operations of the divergence from the unquantized model at so many plans, and of its own pass.

    The pass is done once for a text and a model; a file of it that is there already is not looked for.
    """
    if not compares(cell, readout):
        return 0.0
    of_a_token = (2 * size.hidden + COMPARISON_OF_A_LOGIT) * size.vocabulary
    return tokens_of_task(readout, LOG_PPLX) * (num_plans * of_a_token + 2 * size.active)


def compares(cell: Cell, readout: Readout) -> bool:
    """True if read-outs of a cell are compared with the unquantized model on held-out text."""
    return cell.objective is not None and readout.perplexity is not None and readout.divergence is not False


def searching_operations(cell: Cell, readout: Readout, size: Size, plans: Sequence[Plan]) -> float:
    """The operations of the searches for some plans; the unquantized model reads the text once for all."""
    if not plans or cell.data is None:
        return 0.0
    tokens = readout.search.num_sequences * cell.data.sequence_length
    return 2 * size.active * tokens * (1 + passes_of_searches(readout.search, size, plans))


def tokens_of_plan(readout: Readout) -> int:
    """The tokens that are run through a model for one plan."""
    tasks = [*asked_tasks(readout).leaves, *([] if readout.perplexity is None else [LOG_PPLX])]
    return sum(tokens_of_task(readout, task) for task in tasks)


def tokens_of_task(readout: Readout, task: str) -> int:
    """The tokens of a task's documents, or of the held-out text."""
    if task == LOG_PPLX:
        assert readout.perplexity is not None
        return sequences_of(readout.perplexity) * readout.perplexity.sequence_length
    if (leaf := asked_tasks(readout).leaves.get(task)) is None:
        return 0  # a group, whose tasks are counted
    known = PAPER_TASKS.get(task) if leaf.kind == "paper" else None
    tokens = known.num_tokens if known else TOKENS_OF_ANOTHER_TASK
    return documents_of_task(readout, task) * tokens * (1 + num_fewshot(leaf, readout))


def documents_of_task(readout: Readout, task: str) -> int:
    """The documents of a task that are read."""
    known = PAPER_TASKS.get(task)
    documents = known.num_documents if known else DOCUMENTS_OF_ANOTHER_TASK
    return min(readout.limit or documents, documents)


def batches_of_plan(readout: Readout) -> float:
    """The batches of answers that are run through a model for one plan, and those of the held-out text."""
    answers = ANSWERS_OF_A_DOCUMENT * sum(documents_of_task(readout, task) for task in asked_tasks(readout).leaves)
    text = 0 if readout.perplexity is None else sequences_of(readout.perplexity)
    return (answers + text) / readout.batch_size


def passes_of_searches(spec: SearchSpec, size: Size, plans: Sequence[Plan]) -> float:
    """The number of times that searches for some plans read their text."""
    evolution = 1 + spec.generations * sum(
        survivors * share for survivors, (_, share) in zip((spec.offspring, 16, 4), TOURNAMENT, strict=True)
    )
    passes, measured = 0.0, set[Granularity]()
    for search in (Search.of(plan, spec) for plan in plans if plan.strategy is not None):
        match search.strategy:
            case "evolution":
                passes += evolution
            case "dynamic_program":
                measured.add(search.granularity)
            case "pyramid":
                pass
            case _:
                assert_never(search.strategy)
    return passes + sum(size.layers * _passes_of_a_block(granularity) for granularity in measured)


def _passes_of_a_block(granularity: Granularity) -> int:
    """The passes of a dynamic program: every unit at every width below int8, once for all budgets."""
    match granularity:
        case "block":
            return 4
        case "linear":
            return 8  # about two units of fused layers in each block
        case _:
            assert_never(granularity)


def num_slices(cell: Cell) -> int:
    assert cell.objective is not None
    return len(cell.objective.slices)


def calibration_tokens(cell: Cell) -> int:
    assert cell.data is not None
    assert cell.data.num_sequences is not None
    return cell.data.num_sequences * cell.data.sequence_length
