"""Every family: its blocks one by one, every base, and each number beside that of `transformers` or lm-eval alone."""

from __future__ import annotations

import pytest
import torch

from matquant.algorithms.calibration import Shelf, attend, block_outputs, capture, run_chain, suited_to
from matquant.codes.nested import materialize
from matquant.codes.quantizers import DTYPES
from matquant.config.cell import Cell
from matquant.models.families import FAMILIES, blocks
from matquant.models.loading import load_model
from matquant.notation import Objective, Plan
from matquant.runs.checkpoint import load_checkpoint
from matquant.runs.folder import RunDir
from matquant.runs.tracking import NoTracker
from matquant.training.train import train
from tests.families import MODELS, loaded, spec_of
from tests.mixtures import MIXTURES
from tests.plain_reading import plain_model

TOKENS = torch.randint(0, 256, (3, 16), generator=torch.Generator().manual_seed(0))
BLOCK_WISE = [name for name, tiny in MODELS.items() if not FAMILIES[tiny.family or tiny.architecture].not_block_wise]


def test_every_family_of_the_table_has_a_tiny_model():
    tinies = {**MODELS, **MIXTURES}.values()
    assert {tiny.family or tiny.architecture for tiny in tinies} == set(FAMILIES)


# --- block by block --------------------------------------------------------------------------------------------------


@torch.no_grad()
def last_hidden_states(model: torch.nn.Module) -> torch.Tensor:
    """What the last block returns in an ordinary forward pass."""
    seen = []
    handle = blocks(model)[-1].register_forward_hook(lambda *_: seen.append(_[2]))
    model(input_ids=TOKENS, use_cache=False)
    handle.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


@torch.no_grad()
def walk(model: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """What the last block returns where blocks run one by one, each from its remembered attention on."""
    how = {"batch_size": 2, "dtype": dtype, "shelf": Shelf()}
    hidden, arguments = capture(model, TOKENS, **how)
    for block, keywords in zip(blocks(model), arguments, strict=True):
        with suited_to(block, dtype):
            chain = attend(block, hidden, keywords, **how)
            whole = block_outputs(block, hidden, keywords, **how)
            remembered = run_chain(block, chain.batch(torch.arange(2)), keywords, dtype=dtype)
            assert torch.equal(remembered, whole.states[:2])
        hidden = whole
    return hidden.states


@pytest.mark.parametrize("name", BLOCK_WISE)
def test_blocks_one_by_one_give_the_models_own_hidden_states_in_every_dtype(name):
    model = loaded(name).model
    expected = last_hidden_states(model)
    for stored in DTYPES:
        narrow = model if stored == "float32" else loaded(name, stored).model
        for dtype in DTYPES.values():
            distance = (walk(narrow, dtype) - expected).abs().max() / expected.abs().max()
            assert distance <= (1e-6 if stored == "float32" and dtype == torch.float32 else 0.03), (stored, dtype)


# --- every base ------------------------------------------------------------------------------------------------------

NESTED = Objective.parse(8, {"int8": 1.0, "int4": 1.0, "int2": 1.0})
BASES = {
    "minmax": ({"kind": "minmax"}, Objective.parse(8, {"int8": 1.0})),
    "omniquant": (
        {"kind": "omniquant", "num_steps": 2, "batch_size": 2, "clipping_lr": 0.1, "transformation": True},
        NESTED,
    ),
    "gptq": ({"kind": "gptq", "batch_size": 2}, NESTED),
    "qat": (
        {"kind": "qat", "num_steps": 1, "batch_size": 2, "lr": 1e-3, "warmup_steps": 0, "compute_dtype": "float32"},
        NESTED,
    ),
}
DATA = {"kind": "embedded", "num_sequences": 4, "sequence_length": 16}


def cell_of(name: str, base: str, **model) -> Cell:
    settings, objective = BASES[base]
    return Cell.model_validate(
        {
            "model": spec_of(name).model_copy(update=model),
            "base": settings,
            "objective": objective,
            "grid": {},
            "scope": "ffn_attention",
            "data": DATA,
        }
    )


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_is_what_a_second_reading_of_it_says(name, base, tiny_study):
    setup = tiny_study().setup
    cell = cell_of(name, base)
    if name not in BLOCK_WISE and base in ("omniquant", "gptq"):
        return
    train(cell, setup, NoTracker())
    folder = RunDir(setup.paths.runs, cell.id).checkpoint
    model = load_model(cell.model, cache=setup.paths.cache, dtype="float32", device=torch.device("cpu")).model
    layers = load_checkpoint(folder, cell).layers
    for bits in (8, 2):
        read = materialize(model, layers, Plan.parse(f"int{bits}"))
        plain = plain_model(MODELS[name].architecture, MODELS[name].config, folder, bits)
        with torch.no_grad():
            ours, theirs = (one(input_ids=TOKENS).logits for one in (read, plain))
        assert torch.allclose(ours, theirs, atol=1e-5)
