"""An OmniQuant step by its parts, from a shelf in host memory, and through torch.compile."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu.lines import Line, seconds_of
from benchmarks.gpu.subjects import Estimate, Said
from benchmarks.gpu.watched import synchronize
from matquant.algorithms import pinned
from matquant.algorithms.calibration import Activations, Chain, Shelf
from matquant.algorithms.omniquant import BlockFit, LearnableLayer
from slurm.estimate import MEMORY_BYTES_PER_S, READING_BYTES


class Step:
    """The gradient of one block on one batch, again and again."""

    def __init__(self, fitting: BlockFit) -> None:
        self.fitting = fitting
        self.layers: dict[str, LearnableLayer] = fitting.learnable()
        self.batch = torch.arange(fitting.settings.base.batch_size)

    def __call__(self) -> None:
        for layer in self.layers.values():
            layer.zero_grad()
        self.fitting.backward(self.layers, self.batch, None)

    def read(self) -> None:
        """The slices of all layers and the gradient of what is learned, without a product."""
        slices = self.fitting.settings.objective.slices
        read = [affine.weight for layer in self.layers.values() for affine in layer.read(slices).values()]
        torch.autograd.backward(read, [weight.detach() for weight in read])


def parts_of_a_step(said: Said, fitting: BlockFit, estimate: Estimate, operations: float) -> Iterator[Line]:
    """A step without what is around it, and its two halves; `operations` are those of a step."""
    repeats, device, step = (2 if said.scale.small else 8), said.scale.device, Step(fitting)

    def seconds(action: Callable[[], object]) -> float:
        return seconds_of(action, repeats=repeats, device=device, warm_up=2)

    whole, read = seconds(step), seconds(step.read)
    traffic = READING_BYTES * estimate.size.in_block
    yield said.seconds("a step without optimizer and log", whole, operations=operations)
    line = said.seconds("of it, reading the slices", read, traffic / MEMORY_BYTES_PER_S)
    yield replace(line, note=f"{traffic / read / 1e12:.3g} TB/s of the estimated traffic")
    rest = max(whole - read, 1e-9)
    yield said.seconds("of it, the rest", rest, operations / estimate.speed, operations=operations)
    yield from host_lines(said, fitting, whole, seconds)


def host_lines(
    said: Said, fitting: BlockFit, on_device: float, seconds: Callable[[Callable[[], object]], float]
) -> Iterator[Line]:
    """The step with its activations in host memory: pinned, and ordinary for comparison where there is a GPU."""
    moved = on_host(fitting)
    is_pinned = moved.target.states.is_pinned()
    num_bytes = sum(kept.states[:1].nbytes for kept in _shelved(moved)) * moved.settings.base.batch_size

    def line(what: str, taken: float) -> Line:
        note = f"{num_bytes / 1e6:.3g} MB a step"
        if taken > on_device:
            note += f", {num_bytes / (taken - on_device) / 1e9:.3g} GB/s of the time that it adds"
        return Line(f"{said.about}: a step from {what}", taken, "s", on_device, "on the device", note)

    yield line(f"{'pinned' if is_pinned else 'ordinary'} host memory", seconds(Step(moved)))
    if is_pinned:
        with mock.patch.object(pinned, "SHARE", 0.0):
            moved = on_host(fitting)
        yield line("ordinary host memory", seconds(Step(moved)))


def _shelved(fitting: BlockFit) -> list[Activations]:
    """All activations that a step reads: the target, and the input and the attention of each slice."""
    of_chains = [kept for chain in fitting.chains.values() for kept in chain if kept is not None]
    return [fitting.target, *of_chains]


def on_host(fitting: BlockFit) -> BlockFit:
    """The same problem with its activations in host memory."""
    size, shelf = fitting.settings.base.batch_size, Shelf(fitting.settings.shelf.dtype, "host")
    moved: dict[int, Activations] = {}

    def move(kept: Activations) -> Activations:
        if id(kept) not in moved:
            moved[id(kept)] = shelf.keep(kept.batches(size), len(kept))
        return moved[id(kept)]

    chains = {
        part: Chain(move(chain.hidden), None if chain.attended is None else move(chain.attended))
        for part, chain in fitting.chains.items()
    }
    return replace(fitting, chains=chains, target=move(fitting.target))


def compiled_lines(said: Said, fitting: BlockFit) -> Iterator[Line]:
    """The block's forward through `torch.compile`, against the step as it is; the time of compiling stands apart."""
    device, step = said.scale.device, Step(fitting)
    options = {"repeats": 2 if said.scale.small else 8, "device": device}
    eager = seconds_of(step, **options)
    gradients = gradients_of(step)
    forward = fitting.block.forward
    fitting.block.forward = torch.compile(forward, backend="eager" if device.type == "cpu" else "inductor")
    try:
        start = time.perf_counter()
        with warnings.catch_warnings():  # the compiler looks at gradients of tensors that keep none
            warnings.simplefilter("ignore")
            step()
            synchronize(device)
            first = time.perf_counter() - start
            compiled = seconds_of(step, **options)
    finally:
        fitting.block.forward = forward
    yield said.seconds("compiling the block's step", first)
    differ = max((a - b).norm() / b.norm().clamp(min=1e-30) for a, b in zip(gradients_of(step), gradients, strict=True))
    note = f"gradients differ by {differ.item():.2g} of their size"
    yield Line(f"{said.about}: a compiled step", compiled, "s", eager, "as it is", note)


def gradients_of(step: Step) -> list[Tensor]:
    """The gradients after one more step."""
    step()
    parameters = [parameter for layer in step.layers.values() for parameter in layer.parameters()]
    return [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
