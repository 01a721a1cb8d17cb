"""Activations, block by block: the input of each transformer block, without ever running the whole model.

Block-wise algorithms walk through a model once.  At every block they hold the hidden states of all calibration
sequences, [sequences, tokens, hidden], for the unquantized model (the teacher's chain) and for each quantized read-out
(the student's chains).  `Shelf` says where they lie: on the GPU, in host memory or on disk.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from matquant.algorithms.block_arguments import block_arguments, for_batch
from matquant.algorithms.pinned import host_memory, rows_of
from matquant.config.cell import Place
from matquant.disk import writing
from matquant.errors import UserError
from matquant.models.layers.families import around_blocks, attention, backbone, blocks, forward_replaced, has_attention

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
        if self.states.is_pinned():
            return rows_of(self.states, index, self.device).to(self.dtype)
        return self.states[index.to(self.states.device)].to(self.device, self.dtype)

    def batches(self, batch_size: int) -> Iterator[Float[Tensor, "batch tokens hidden"]]:
        """All sequences in order."""
        for batch in self.states.split(batch_size):
            yield batch.to(self.device, non_blocking=self.states.is_pinned()).to(self.dtype)


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
            # Narrowed where it was computed.  Into pinned memory the copy goes on while the next batch is computed.
            states[done : done + len(batch)].copy_(batch.to(states.dtype), non_blocking=states.is_pinned())
            done += len(batch)
        assert done == num_sequences
        if states.is_pinned():
            torch.cuda.synchronize(device)  # the CPU, too, may read it from here on
        return Activations(states, device, dtype)

    def _empty(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        dtype = min(like.dtype, self.dtype, key=lambda dtype: dtype.itemsize)
        match self.place:
            case "device":
                return torch.empty(shape, dtype=dtype, device=like.device)
            case "host":
                return host_memory(shape, dtype, device=like.device)
            case "disk":
                # A mapped file without a name: the system takes it back when the tensor goes, even if the process is
                # killed.
                with tempfile.NamedTemporaryFile(dir=self.folder) as file:
                    num_elements = torch.Size(shape).numel()
                    _reserve(file.fileno(), file.name, num_elements * dtype.itemsize)
                    return torch.from_file(file.name, shared=True, size=num_elements, dtype=dtype).view(shape)
            case _:
                assert_never(self.place)


def _reserve(number: int, name: str, num_bytes: int) -> None:
    """Makes a file as long as it will be, or raises OSError where there is no room.

    A process that writes to a mapped file is killed by the system where the disk turns out to be full.
    """
    with writing(Path(name)):
        os.posix_fallocate(number, 0, max(1, num_bytes))


@contextmanager
def suited_to(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Holds the weights of a module in float32 that products in `dtype` need in it, and narrows them again afterwards.

    For narrower products autocast converts weights on the way, but on a CPU not those of layer norms, whose input is in
    float32.  For products in float32 nothing converts a weight.  Widening and narrowing again gives back the same bits.
    """
    wide = [module] if dtype == torch.float32 else [part for part in module.modules() if isinstance(part, nn.LayerNorm)]
    tensors = [tensor for part in wide for tensor in (*part.parameters(), *part.buffers())]
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


class Reached(Exception):  # noqa: N818 -- no error: it ends a forward pass that has given what was asked for
    """The value that a forward pass was run for; what would come after it is not computed."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


@torch.no_grad()
def capture(
    model: nn.Module, tokens: Int[Tensor, "sequences tokens"], *, batch_size: int, dtype: torch.dtype, shelf: Shelf
) -> BlockInputs:
    """Runs a model up to its first block, and keeps what each block is called with.

    With products in float32 the embedding of a narrower model is widened meanwhile, so that the blocks get what a
    widened model gives them, positions included.
    """
    device = next(model.parameters()).device
    with ExitStack() as stack:
        for part in around_blocks(model) if dtype == torch.float32 else ():
            stack.enter_context(suited_to(part, dtype))
        arguments = block_arguments(model, tokens[:1].to(device))
        hidden = (first_input(model, batch.to(device)) for batch in tokens.split(batch_size))
        return BlockInputs(shelf.keep(hidden, len(tokens)), arguments)


def first_input(model: nn.Module, tokens: Int[Tensor, "batch tokens"]) -> Hidden:
    """The hidden states that the first block is called with, in float32."""
    first = blocks(model)[0]
    bind = signature(first.forward).bind

    def reached(*positional: Any, **keywords: Any) -> None:
        raise Reached(next(iter(bind(*positional, **keywords).arguments.values())))

    with forward_replaced(first, reached):
        try:
            backbone(model)(input_ids=tokens, use_cache=False)
        except Reached as found:
            if found.value.ndim != 3:
                raise UserError(f"its hidden states have {found.value.ndim} dimensions") from None
            return found.value.float()
    raise UserError(f"{type(model).__name__} does not call its first block")


def run_block(
    block: nn.Module,
    hidden: Hidden,
    arguments: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    weights: Mapping[str, Tensor] | None = None,
) -> Hidden:
    """One block on one batch, with some of its weights replaced; matrix products in `dtype`, the rest in float32.

    A block whose own weights are narrower than float32 has to be `suited_to` the dtype.
    """
    keywords = {name: for_batch(value, len(hidden)) for name, value in arguments.items()}
    narrow = dtype != torch.float32
    with torch.autocast(hidden.device.type, dtype=dtype) if narrow else nullcontext():
        output = functional_call(block, dict(weights or {}), (hidden,), keywords)
    return (output[0] if isinstance(output, tuple) else output).float()


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
    """Computes the attention of a block once: with scope=ffn it is a constant of the block's optimization.

    What stands in the place of attention (`Family.mixers`) is computed again each time.
    """
    if not has_attention(block):
        return Chain(hidden)
    module = attention(block)
    original = module.forward

    def reached(*positional: Any, **keywords: Any) -> None:
        raise Reached(original(*positional, **keywords)[0])

    def outputs() -> Iterator[Tensor]:
        for batch in hidden.batches(batch_size):
            try:
                run_block(block, batch, arguments, dtype=dtype)
            except Reached as found:
                yield found.value
            else:
                raise UserError(f"the attention of {type(block).__name__} is not called as a module")

    with forward_replaced(module, reached):
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
