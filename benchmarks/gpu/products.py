"""Matrix products with r-bit weights on this GPU: Humming's kernels and our packed layer, beside bfloat16.

    python -m benchmarks.gpu.products [--device cuda] [--small]

Each number is the median time of one product in a CUDA graph, so that launches do not count.  A graph goes through
copies of the weights that are together larger than the cache of the GPU: a model's weights come from memory as well.
GB/s counts codes, scales and zeros (or bfloat16 weights) once.

Humming compiles a kernel for each shape and width (NVRTC, or nvcc if that fails) and is skipped where it is not
installed: pip install humming-kernels
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.guard import guarded, sentence
from benchmarks.gpu.lines import Line, Scale, run_part, seconds_of
from matquant.codes.nested import nest
from matquant.codes.quantizers import Grid, minmax_grid
from matquant.codes.sliced import SlicedWeight, sliced
from matquant.config.cell import GridSpec
from matquant.notation import Slice
from matquant.serving.engines.humming_layout import schema_of, tensors_of
from matquant.serving.nested.packed import PackedLinear

WIDTHS = (8, 4, 3, 2)
GROUP_SIZE = 64
BEYOND_CACHE = 200e6
"""Bytes that no cache of a GPU holds."""
MOST_COPIES = 48
ERROR = 0.02
"""The relative error that sums in bfloat16 explain: its last digit is 0.8%, a wrong product is 100% off."""
COMPILING_S = 60.0
MICRO = 1e6

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """A square weight, and so many inputs at a time."""

    size: int
    batch: int

    def __str__(self) -> str:
        return f"{self.size} x {self.size}, batch {self.batch}"


@dataclass(frozen=True)
class Measured:
    """The time of a product in seconds, the bytes of its weights, and its answer."""

    seconds: float
    weight_bytes: int
    answer: Tensor
    note: str = ""


def products(scale: Scale) -> Iterator[Line]:
    """The part."""
    sizes, batches = ((128,), (1, 4)) if scale.small else ((4096, 8192), (1, 16, 256))
    weights = {(size, bits): weight for size in sizes for bits, weight in weights_of(size, scale.device).items()}
    rivals: dict[tuple[int, int, int], Measured] = {}
    for (size, bits), weight in weights.items():
        for batch in batches:
            what = f"bfloat16, {Shape(size, batch)}"
            for line in guarded(what, partial(rival, what, rivals, weight, batch, scale)):
                if bits == WIDTHS[0] or line.failed:  # the time is that of all widths
                    yield line
            if (size, batch, bits) in rivals:
                what = f"packed int{bits}, {Shape(size, batch)}"
                measure = partial(ours, weight, batch, scale)
                yield from guarded(what, partial(beside, what, measure, rivals[size, batch, bits]))
    yield from humming(weights, batches, rivals, scale)


def weights_of(size: int, device: torch.device) -> dict[int, SlicedWeight]:
    """Slices of random int8 weights; scales and zeros have the digits of bfloat16, as the kernels take them."""
    draw = torch.Generator(device).manual_seed(size)
    weight = torch.randn(size, size, generator=draw, device=device) * size**-0.5
    nested = nest(weight, minmax_grid(weight, 8, GridSpec(group_size=GROUP_SIZE)), 8)
    found = {bits: sliced(nested, Slice(bits)) for bits in WIDTHS}
    return {
        bits: one._replace(grid=Grid(*(part.to(torch.bfloat16).float() for part in one.grid)))
        for bits, one in found.items()
    }


def inputs(size: int, batch: int, device: torch.device) -> Tensor:
    draw = torch.Generator(device).manual_seed(batch)
    return torch.randn(batch, size, generator=draw, device=device).to(torch.bfloat16)


# --- bfloat16 and our packed layer ------------------------------------------------------------------------------------


def rival(
    what: str,
    rivals: dict[tuple[int, int, int], Measured],
    weight: SlicedWeight,
    batch: int,
    scale: Scale,
) -> Iterator[Line]:
    """The product of expanded weights in bfloat16, which is kept to compare with."""
    expanded = weight.affine().weight.to(torch.bfloat16)
    size = len(expanded)
    copies = [expanded, *(expanded.clone() for _ in range(copies_of(2 * expanded.numel(), scale) - 1))]
    x = inputs(size, batch, scale.device)
    found = measured([partial(F.linear, weight=one) for one in copies], x, 2 * expanded.numel(), scale)
    rivals[size, batch, weight.part.bits] = found
    gigabytes = found.weight_bytes / found.seconds / 1e9
    operations = 2 * batch * size**2 / found.seconds / 1e12
    note = "; ".join(filter(None, (f"{gigabytes:.0f} GB/s", f"{operations:.3g} TFLOP/s", found.note)))
    yield Line(what, MICRO * found.seconds, "us", note=note)


def ours(weight: SlicedWeight, batch: int, scale: Scale) -> Measured:
    """Our packed layer, which expands its weights in every product."""
    size = len(weight.codes)
    linear = nn.Linear(size, size, bias=False, device=scale.device, dtype=torch.bfloat16)
    layer = PackedLinear(linear, weight)
    # Expanding goes through more memory than a cache holds.
    return measured([layer], inputs(size, batch, scale.device), layer.num_bytes, scale)


def beside(what: str, measure: Callable[[], Measured], against: Measured) -> Iterator[Line]:
    """A product beside that in bfloat16: seconds, GB/s, and the relative error."""
    found = measure()
    error = float((found.answer.float() - against.answer.float()).norm() / against.answer.float().norm())
    speed = f"{found.weight_bytes / found.seconds / 1e9:.0f} GB/s"
    note = "; ".join(filter(None, (speed, f"relative error {error:.2g}", found.note)))
    failed = "" if error <= ERROR else f"relative error {error:.3g}, more than {ERROR:g}"
    yield Line(what, MICRO * found.seconds, "us", MICRO * against.seconds, "bfloat16", note, failed)


# --- Humming ----------------------------------------------------------------------------------------------------------


def humming(
    weights: Mapping[tuple[int, int], SlicedWeight],
    batches: Sequence[int],
    rivals: Mapping[tuple[int, int, int], Measured],
    scale: Scale,
) -> Iterator[Line]:
    """Humming's products, after all of its kernels have been compiled at the same time."""
    if reason := why_not(scale):
        yield Line("Humming's kernels", note=f"skipped: {reason}")
        return
    compiled: dict[tuple[int, int], Compiled] = {}
    yield from guarded("compiling Humming's kernels", partial(compiling, compiled, weights, batches, scale))
    for (size, bits), one in compiled.items():
        for batch in batches:
            what = f"humming int{bits}, {Shape(size, batch)}"
            if (against := rivals.get((size, batch, bits))) is None:
                continue
            measure = partial(theirs, one, batch, scale)
            yield from guarded(what, partial(beside, what, measure, against))


def why_not(scale: Scale) -> str:
    """The reason why Humming cannot be measured here, if there is one."""
    if scale.device.type != "cuda":
        return "no GPU"
    if find_spec("humming") is None:
        return "not installed: pip install humming-kernels"
    return ""


@dataclass(frozen=True)
class Compiled:
    """A layer whose kernels are there, and the settings of the kernel for each number of inputs."""

    layer: Any
    settings: Mapping[int, str]
    weight_bytes: int
    note: str = ""


def compiling(
    compiled: dict[tuple[int, int], Compiled],
    weights: Mapping[tuple[int, int], SlicedWeight],
    batches: Sequence[int],
    scale: Scale,
) -> Iterator[Line]:
    """Compiles the kernels of all layers, each in a thread; those that fail or take too long are lines."""
    start = time.perf_counter()
    with suppress(Exception):  # without NVRTC there is nvcc
        let_nvrtc_find_its_parts()
    pool = ThreadPoolExecutor(max_workers=16)
    tasks = {pool.submit(compile_layer, weight, batches, scale): key for key, weight in weights.items()}
    wait(tasks, timeout=COMPILING_S)
    pool.shutdown(wait=False, cancel_futures=True)
    for task, (size, bits) in tasks.items():
        what = f"humming int{bits}, {size} x {size}: compiling"
        if task.cancelled() or not task.done():
            yield Line(what, failed=f"not compiled after {COMPILING_S:.0f} s")
        elif error := task.exception():
            yield Line(what, failed=sentence(error))
        else:
            compiled[size, bits] = task.result()
    notes = {one.note for one in compiled.values() if one.note}
    yield Line(
        "compiling Humming's kernels",
        time.perf_counter() - start,
        "s",
        note="; ".join([f"{len(compiled) * len(batches)} kernels", *sorted(notes)]),
    )


def let_nvrtc_find_its_parts() -> None:
    """Names the folder of NVRTC, which opens a second library by its bare name in a process that knows no Python."""
    from humming.utils.nvrtc import get_nvrtc_library_path  # pyright: ignore[reportMissingImports] -- no dependency

    known = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, (os.path.dirname(get_nvrtc_library_path()), known)))


def compile_layer(weight: SlicedWeight, batches: Sequence[int], scale: Scale) -> Compiled:
    """A layer with its kernels, by NVRTC; by nvcc where that fails, as for want of a header."""
    try:
        return compile_with(weight, batches, scale)
    except Exception as error:  # of any kind: the other compiler may do
        os.environ["HUMMING_COMPILER"] = "nvcc"
        try:
            return replace(compile_with(weight, batches, scale), note=f"by nvcc, since {sentence(error)[:100]}")
        except Exception as second:  # of any kind: both reasons are said in one line
            raise RuntimeError(f"{sentence(error)}; with nvcc: {sentence(second)}") from second


def compile_with(weight: SlicedWeight, batches: Sequence[int], scale: Scale) -> Compiled:
    """The layer as `tests/serving/test_humming.py` builds it, and the kernels for so many inputs at a time alone.

    By itself the library compiles a kernel for every range of batch sizes, ten and more for a layer.
    """
    from humming.kernel.humming import HummingKernel  # pyright: ignore[reportMissingImports] -- no dependency
    from humming.layer import HummingLayer  # pyright: ignore[reportMissingImports] -- the same
    from humming.tune import get_heuristics_config  # pyright: ignore[reportMissingImports] -- the same

    rows, columns = weight.codes.shape
    tensors = tensors_of(weight, torch.bfloat16)
    schema = schema_of(weight.num_bits, GROUP_SIZE)
    with torch.cuda.device(torch.cuda.current_device()):
        layer: Any = HummingLayer(shape_n=rows, shape_k=columns, weight_config=schema, torch_dtype=torch.bfloat16)
        layer = layer.to(scale.device)
        layer.load_from_tensors(tensors)
        layer.transform()
        config = layer.humming_config
        settings = {}
        for batch in batches:
            found = get_heuristics_config(config, shape_m=batch)
            settings[batch] = json.dumps(found, default=int)
            HummingKernel.prepare_kernels(config.to_str(), None, settings[batch], torch.cuda.current_device())
    weight_bytes = sum(part.numel() * part.element_size() for part in tensors.values())
    return Compiled(layer, settings, weight_bytes)


def theirs(compiled: Compiled, batch: int, scale: Scale) -> Measured:
    """A product of Humming's."""
    count = copies_of(compiled.weight_bytes, scale)
    layers = [compiled.layer, *(copy_of(compiled.layer) for _ in range(count - 1))]
    x = inputs(compiled.layer.shape_k, batch, scale.device)
    run = [partial(layer, tuning_config=compiled.settings[batch]) for layer in layers]
    return measured(run, x, compiled.weight_bytes, scale)


def copy_of(layer: Any) -> Any:
    """A layer with tensors of its own, and the same settings."""
    twin = copy.copy(layer)
    twin._parameters = {
        name: nn.Parameter(part.detach().clone(), requires_grad=False) for name, part in layer._parameters.items()
    }
    twin._buffers = {name: part.clone() for name, part in layer._buffers.items()}
    return twin


# --- times ------------------------------------------------------------------------------------------------------------


def copies_of(weight_bytes: int, scale: Scale) -> int:
    """The copies of a weight that are together larger than a GPU's cache."""
    if scale.device.type != "cuda":
        return 1
    return max(1, min(MOST_COPIES, -(-int(BEYOND_CACHE) // weight_bytes)))


@torch.no_grad()
def measured(run: Sequence[Product], x: Tensor, weight_bytes: int, scale: Scale) -> Measured:
    """The time of one of some equal products, and the answer of the first."""
    answer = run[0](x)

    def all_of_them() -> None:
        for product in run:
            product(x)

    note, repeated = "", all_of_them
    if scale.device.type == "cuda":
        try:
            repeated = in_graph(all_of_them)
        except RuntimeError as error:
            torch.cuda.synchronize()
            note = f"launches included, since there is no graph ({sentence(error)[:80]})"
    repeats = 2 if scale.small else 9
    seconds = seconds_of(repeated, repeats=repeats, device=scale.device, warm_up=2) / len(run)
    return Measured(seconds, weight_bytes, answer, note)


def in_graph(action: Callable[[], None]) -> Callable[[], None]:
    """The same work as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        action()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        action()
    return graph.replay


def main() -> None:
    run_part(products, __doc__)


if __name__ == "__main__":
    main()
