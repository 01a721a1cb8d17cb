"""Activations, block by block: the input of each transformer block, without ever running the whole model.

Block-wise algorithms walk through a model once.  At every block they hold the hidden states of all calibration
sequences, [sequences, tokens, hidden], for the unquantized model (the teacher's chain) and for each quantized read-out
(the student's chains).  `Shelf` says where they lie: on the GPU, in host memory or on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from matquant.config.cell import Place
from matquant.models.families import attention, backbone, blocks, feed_forward, forward_replaced

Hidden = Float[Tensor, "sequences tokens hidden"]


@dataclass(frozen=True)
class Activations:
    """The hidden states of all sequences, kept anywhere; batches come back on the computing device."""

    states: Hidden
    device: torch.device
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.states)

    def batch(self, index: Int[Tensor, " batch"]) -> Float[Tensor, "batch tokens hidden"]:
        """Some sequences, on the device and in the dtype that they were computed in."""
        return self.states[index.to(self.states.device)].to(self.device, self.dtype)

    def batches(self, batch_size: int) -> Iterator[Float[Tensor, "batch tokens hidden"]]:
        """All sequences in order."""
        for batch in self.states.split(batch_size):
            yield batch.to(self.device, self.dtype)


@dataclass(frozen=True)
class Shelf:
    """A place for activations, in `dtype` or in their own dtype where that is narrower.

    The place changes nothing but time; the dtype rounds what one block hands to the next.
    """

    dtype: torch.dtype = torch.float32
    place: Place = "device"
    folder: Path | None = None

    def keep(self, batches: Iterable[Float[Tensor, "batch tokens hidden"]], num_sequences: int) -> Activations:
        """Keeps activations that are computed batch by batch; two copies are never in memory."""
        states, done = torch.empty(0), 0
        device, dtype = torch.device("cpu"), torch.float32
        for batch in batches:
            if not done:
                device, dtype = batch.device, batch.dtype
                states = self._empty((num_sequences, *batch.shape[1:]), batch)
            states[done : done + len(batch)] = batch.to(states.device, states.dtype)
            done += len(batch)
        assert done == num_sequences
        return Activations(states, device, dtype)

    def _empty(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        dtype = min(like.dtype, self.dtype, key=lambda dtype: dtype.itemsize)
        match self.place:
            case "device":
                return torch.empty(shape, dtype=dtype, device=like.device)
            case "host":
                return torch.empty(shape, dtype=dtype, device="cpu")
            case "disk":
                # A mapped file without a name: the system takes it back when the tensor goes, even if the process is
                # killed.
                with tempfile.NamedTemporaryFile(dir=self.folder) as file:
                    num_elements = torch.Size(shape).numel()
                    return torch.from_file(file.name, shared=True, size=num_elements, dtype=dtype).view(shape)
            case _:
                assert_never(self.place)


@contextmanager
def suited_to(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Holds a module's weights in float32 while its products are to be in float32, and narrows them again afterwards.

    For narrower products autocast converts weights on the way; nothing converts a bfloat16 weight for float32.
    Widening and narrowing again gives back the same bits.
    """
    tensors = [*module.parameters(), *module.buffers()] if dtype == torch.float32 else []
    before = [(tensor, tensor.dtype) for tensor in tensors if tensor.is_floating_point()]
    for tensor, _ in before:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, narrow in before:
            tensor.data = tensor.data.to(narrow)


class BlockInputs(NamedTuple):
    """The input of the first block, and the keyword arguments of every block.

    The arguments are kept per block: Gemma-2 alternates sliding and full attention masks.
    """

    hidden: Activations
    arguments: list[dict[str, Any]]


@torch.no_grad()
def capture(
    model: nn.Module, tokens: Int[Tensor, "sequences tokens"], *, batch_size: int, dtype: torch.dtype, shelf: Shelf
) -> BlockInputs:
    """Runs a model with its blocks skipped, and keeps what each block was called with.

    With products in float32 the embedding of a narrower model is widened meanwhile, so that the blocks get what a
    widened model gives them, positions included.
    """
    arguments: list[dict[str, Any]] = []
    device, body = next(model.parameters()).device, backbone(model)

    def record(hidden: Tensor, **keywords: Any) -> Tensor:
        arguments.append({**keywords, "past_key_values": None, "use_cache": False})
        return hidden

    # With blocks that pass their input on and without the final norm, the model's output is its first block's input.
    with ExitStack() as stack:
        for block in blocks(model):
            stack.enter_context(forward_replaced(block, record))
        stack.enter_context(forward_replaced(body.get_submodule("norm"), lambda states: states))
        stack.enter_context(suited_to(body.get_submodule("embed_tokens"), dtype))
        body(input_ids=tokens[:1].to(device), use_cache=False)
        kept = arguments.copy()
        hidden = (
            body(input_ids=batch.to(device), use_cache=False).last_hidden_state.float()
            for batch in tokens.split(batch_size)
        )
        return BlockInputs(shelf.keep(hidden, len(tokens)), kept)


def run_block(
    block: nn.Module,
    hidden: Hidden,
    arguments: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    weights: Mapping[str, Tensor] | None = None,
) -> Hidden:
    """One block on one batch, with some of its weights replaced; matrix products in `dtype`, the rest in float32.

    A block whose own weights are narrower than `dtype` has to be `suited_to` it.
    """
    with torch.autocast(hidden.device.type, dtype=dtype, enabled=dtype != torch.float32):
        return functional_call(block, dict(weights or {}), (hidden,), dict(arguments)).float()


@torch.no_grad()
def block_outputs(
    block: nn.Module,
    hidden: Activations,
    arguments: Mapping[str, Any],
    *,
    batch_size: int,
    dtype: torch.dtype,
    shelf: Shelf,
) -> Activations:
    """One block on all sequences."""
    outputs = (run_block(block, batch, arguments, dtype=dtype) for batch in hidden.batches(batch_size))
    return shelf.keep(outputs, len(hidden))


class ChainBatch(NamedTuple):
    """The input of a block for some sequences under one read-out."""

    hidden: Hidden
    attended: Hidden | None = None


class Chain(NamedTuple):
    """The hidden states that enter a block under one read-out and, where it is a constant, its attention's output."""

    hidden: Activations
    attended: Activations | None = None

    def batch(self, index: Int[Tensor, " batch"]) -> ChainBatch:
        return ChainBatch(self.hidden.batch(index), None if self.attended is None else self.attended.batch(index))


@torch.no_grad()
def attend(
    block: nn.Module,
    hidden: Activations,
    arguments: Mapping[str, Any],
    *,
    batch_size: int,
    dtype: torch.dtype,
    shelf: Shelf,
) -> Chain:
    """Computes the attention of a block once: with scope=ffn it is a constant of the block's optimization."""
    kept: list[Tensor] = []
    module = attention(block)
    original = module.forward

    def record(*positional: Any, **keywords: Any) -> Any:
        output, *rest = original(*positional, **keywords)
        kept.append(output)
        return output, *rest

    def outputs() -> Iterator[Tensor]:
        for batch in hidden.batches(batch_size):
            run_block(block, batch, arguments, dtype=dtype)
            yield kept.pop()

    with forward_replaced(module, record), forward_replaced(feed_forward(block), lambda states: states):
        return Chain(hidden, shelf.keep(outputs(), len(hidden)))


def run_chain(
    block: nn.Module,
    chain: ChainBatch,
    arguments: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    weights: Mapping[str, Tensor] | None = None,
) -> Hidden:
    """A block, from its remembered attention output on if there is one."""
    if chain.attended is None:
        return run_block(block, chain.hidden, arguments, dtype=dtype, weights=weights)
    with forward_replaced(attention(block), lambda *positional, **keywords: (chain.attended, None)):
        return run_block(block, chain.hidden, arguments, dtype=dtype, weights=weights)
