"""Block by block equals the whole model at once, on every architecture we name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from matquant.algorithms import pinned
from matquant.algorithms.block_arguments import for_batch
from matquant.algorithms.calibration import (
    Activations,
    Shelf,
    attend,
    block_outputs,
    capture,
    run_block,
    run_chain,
)
from matquant.algorithms.pinned import rows_of
from matquant.config.cell import RandomModel
from matquant.models.layers.families import blocks, linears
from matquant.models.loading import load_model

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ARCHITECTURES = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "qwen3": {"head_dim": 8},
    # Alternating sliding and full attention, four norms, soft-capping.
    "gemma2": {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
}
EXACT, SHELF = torch.float32, Shelf()


@pytest.fixture(params=ARCHITECTURES, ids=str)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    config = {**SIZES, **ARCHITECTURES[request.param]}
    spec = RandomModel(kind="random", name="tiny", architecture=request.param, config=config)
    return load_model(spec, cache=Path(), dtype="float32", device=torch.device("cpu")).model


TOKENS = torch.randint(0, 257, (4, 16), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_walking_through_the_blocks_gives_the_models_own_hidden_states(model):
    hidden, arguments = capture(model, TOKENS, batch_size=2, dtype=EXACT, shelf=SHELF)
    assert len(arguments) == 4
    for block, keywords in zip(blocks(model), arguments, strict=True):
        hidden = block_outputs(block, hidden, keywords, batch_size=2, dtype=EXACT, shelf=SHELF)
    expected = model.model(input_ids=TOKENS).last_hidden_state
    assert torch.allclose(model.model.norm(hidden.states), expected, atol=1e-5)


def test_sliding_and_full_blocks_have_arguments_of_their_own():
    spec = RandomModel(kind="random", name="tiny", architecture="gemma2", config={**SIZES, **ARCHITECTURES["gemma2"]})
    model = load_model(spec, cache=Path(), dtype="float32", device=torch.device("cpu")).model
    _, arguments = capture(model, TOKENS, batch_size=2, dtype=EXACT, shelf=SHELF)
    masks = [for_batch(keywords["attention_mask"], 2) for keywords in arguments]
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


@torch.no_grad()
def test_a_remembered_attention_output_changes_nothing(model):
    hidden, arguments = capture(model, TOKENS, batch_size=2, dtype=EXACT, shelf=SHELF)
    block, keywords = blocks(model)[0], arguments[0]
    chain = attend(block, hidden, keywords, batch_size=2, dtype=EXACT, shelf=SHELF)
    whole = run_block(block, hidden.states, keywords, dtype=EXACT)
    batch = chain.batch(torch.arange(len(TOKENS)))
    assert torch.allclose(run_chain(block, batch, keywords, dtype=EXACT), whole, atol=1e-6)
    # Nothing of the replacement stays behind.
    assert torch.equal(run_block(block, hidden.states, keywords, dtype=EXACT), whole)


@torch.no_grad()
def test_replaced_weights_are_used_and_the_blocks_own_are_left_alone(model):
    hidden, arguments = capture(model, TOKENS, batch_size=2, dtype=EXACT, shelf=SHELF)
    block, keywords = blocks(model)[0], arguments[0]
    hidden = hidden.states
    before = run_block(block, hidden, keywords, dtype=EXACT)
    zeros = {f"{name}.weight": torch.zeros_like(linear.weight) for name, linear in linears(block, "ffn").items()}
    assert not torch.allclose(run_block(block, hidden, keywords, dtype=EXACT, weights=zeros), before)
    assert torch.equal(run_block(block, hidden, keywords, dtype=EXACT), before)


# --- where activations are kept --------------------------------------------------------------------------------------

BATCHES = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0)).split(2)


def keep(shelf: Shelf) -> Activations:
    return shelf.keep(iter(BATCHES), 5)


@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_the_place_changes_no_bit_and_leaves_no_file(place, tmp_path):
    kept = keep(Shelf(torch.float32, place, tmp_path))
    assert torch.equal(kept.states, torch.cat(BATCHES))
    assert torch.equal(kept.batch(torch.tensor([4, 0])), torch.cat(BATCHES)[[4, 0]])
    assert torch.equal(torch.cat(list(kept.batches(3))), torch.cat(BATCHES))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrower_dtype_rounds_what_is_kept_and_hands_it_out_as_it_came(dtype):
    kept = keep(Shelf(dtype))
    assert kept.states.dtype == dtype
    batch = kept.batch(torch.tensor([1]))
    assert batch.dtype == torch.float32
    assert torch.equal(batch, torch.cat(BATCHES)[[1]].to(dtype).float())


def test_what_is_narrower_already_is_kept_as_it_is():
    kept = Shelf(torch.float32).keep((batch.bfloat16() for batch in BATCHES), 5)
    assert kept.states.dtype == torch.bfloat16


def test_host_memory_is_pinned_where_a_gpu_reads_it_and_changes_no_bit(device):
    kept = Shelf(torch.float32, "host").keep((batch.to(device) for batch in BATCHES), 5)
    assert kept.states.device.type == "cpu"
    assert kept.states.is_pinned() == (device.type == "cuda")
    assert torch.equal(kept.states, torch.cat(BATCHES))
    assert torch.equal(kept.batch(torch.tensor([4, 0, 4])).cpu(), torch.cat(BATCHES)[[4, 0, 4]])
    assert torch.equal(torch.cat(list(kept.batches(3))).cpu(), torch.cat(BATCHES))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_copied_one_by_one_are_those_of_an_index(dtype):
    states = torch.cat(BATCHES).to(dtype)
    index = torch.tensor([3, 0, 3])
    assert torch.equal(rows_of(states, index, torch.device("cpu")), states[index])


def test_memory_that_cannot_be_pinned_is_ordinary_and_that_is_said(monkeypatch, caplog):
    def refused(shape, dtype):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(pinned, "pinned", refused)
    found = pinned.host_memory((2, 3), torch.bfloat16, device=torch.device("cuda"))
    assert (found.shape, found.dtype, found.device.type) == ((2, 3), torch.bfloat16, "cpu")
    assert "ordinary host memory" in caplog.text
    caplog.clear()
    pinned.host_memory((2, 3), torch.bfloat16, device=torch.device("cpu"))
    assert not caplog.text


def test_no_more_is_pinned_than_half_of_the_memory_that_is_free(monkeypatch):
    asked = []
    monkeypatch.setattr(pinned, "pinned", lambda shape, dtype: asked.append(shape) or torch.empty(shape, dtype=dtype))
    monkeypatch.setattr(pinned.psutil, "virtual_memory", lambda: SimpleNamespace(available=64))
    for numbers in (8, 9):  # 32 bytes, and 36 that take 64
        pinned.host_memory((numbers,), torch.float32, device=torch.device("cuda"))
    assert asked == [(8,)]
