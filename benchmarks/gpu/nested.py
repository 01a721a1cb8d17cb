"""The nested folder on this GPU: bytes, seconds and memory of every width, the same logits, and decoded tokens.

    python -m benchmarks.gpu.nested [--device cuda] [--small]

Four blocks of Llama-3.1-8B with random weights (and fewer words than it knows) are rounded to int8 in groups of 64,
written to a temporary folder and loaded from there.  Files are in the page cache, so that seconds are those of reading
from memory.  Decoding is that of four blocks: ratios between dense, expanded and packed say more than the numbers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

import matquant
from benchmarks.gpu.guard import free, guarded
from benchmarks.gpu.lines import Line, Peak, Scale, estimated, holds, run_part
from benchmarks.gpu.made import LLAMA_3_1_8B, TINY, model_of, word_tokenizer
from matquant.codes.nested import NestedWeight, materialize, nest
from matquant.codes.quantizers import minmax_grid
from matquant.config.cell import GridSpec
from matquant.models.layers.families import block_name, blocks, linears
from matquant.notation import Plan
from matquant.serving.nested.folder import GRIDS
from matquant.serving.nested.packed import PackedLinear
from matquant.serving.nested.reading import reading_of
from matquant.serving.nested.writer import write_nested

PLANS = ("int8", "int6", "int4", "int3", "int2", "int2+ep")
FEW = ("int8", "int3", "int2")
"""Those of a small run."""
WAYS = {"expanded": False, "packed": True}
SHAPES = {**LLAMA_3_1_8B, "num_hidden_layers": 4, "vocab_size": 32768, "tie_word_embeddings": True}
LOGITS = 0.02  # of the largest: bfloat16 has eight bits
GROUP_SIZE = 64
MB = 1e6


def nested(scale: Scale) -> Iterator[Line]:
    """The part."""
    model = model_of(TINY if scale.small else SHAPES, scale, torch.bfloat16)
    layers = rounded(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "nested"
        folder.mkdir()
        seconds, _ = timed(lambda: write(folder, model, layers), scale.device)
        size = sum(path.stat().st_size for path in folder.iterdir())
        yield Line("writing the folder", seconds, "s", note=f"{size / MB:.0f} MB")
        yield from guarded("the same logits", lambda: same_logits(folder, model, layers, scale))
        for plan in plans_of(scale):
            for way in WAYS:
                yield from guarded(f"loading {plan}, {way}", partial(loading, folder, plan, way, scale))
        yield from guarded("loaded on the CPU, then moved", lambda: moved(folder, scale))
        yield from guarded("decoding", lambda: decoding(folder, model, scale))


def plans_of(scale: Scale) -> tuple[str, ...]:
    return FEW if scale.small else PLANS


def rounded(model: PreTrainedModel) -> dict[str, NestedWeight]:
    """All linear layers of the blocks, rounded to nearest."""
    spec = GridSpec(group_size=GROUP_SIZE)
    with torch.no_grad():
        return {
            f"{block_name(model, index)}.{name}": nest(linear.weight, minmax_grid(linear.weight, 8, spec), 8)
            for index, block in enumerate(blocks(model))
            for name, linear in linears(block, "ffn_attention").items()
        }


def write(folder: Path, model: PreTrainedModel, layers: Mapping[str, NestedWeight]) -> None:
    write_nested(
        folder, model, word_tokenizer(), layers, scale_dtype="float32", facts={"cell_id": "made on the spot"}, plans={}
    )


def timed(action: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Wall time, and the answer."""
    wait_for(device)
    start = time.perf_counter()
    found = action()
    wait_for(device)
    return time.perf_counter() - start, found


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def load(folder: Path, plan: str, *, packed: bool, device: torch.device) -> PreTrainedModel:
    return matquant.load(folder, plan, packed=packed, device_map=str(device))[0].eval()


def tokens_for(model: PreTrainedModel, *, length: int = 64) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(1, 200, (2, length), generator=draw).to(model.device)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=tokens_for(model), use_cache=False).logits


# --- what is measured -------------------------------------------------------------------------------------------------


def same_logits(
    folder: Path, model: PreTrainedModel, layers: Mapping[str, NestedWeight], scale: Scale
) -> Iterator[Line]:
    """Logits of packed and expanded models, read again in place: those of `materialize` to the last bit."""
    held = {way: load(folder, "int8", packed=packed, device=scale.device) for way, packed in WAYS.items()}
    for plan in plans_of(scale):
        seconds = {way: timed(partial(matquant.reread, one, plan), scale.device)[0] for way, one in held.items()}
        expected = logits(materialize(model, layers, Plan.parse(plan)))
        # Products of equal weights may differ in their last bit: cuBLAS chooses its way by where a tensor lies.
        difference = max(float((logits(one) - expected).abs().max() / expected.abs().max()) for one in held.values())
        unequal = sum(differs(model, one, name) for one in held.values() for name in layers)
        yield holds(f"{plan}: layers, packed and expanded, unlike those of materialize", unequal, 0)
        yield holds(f"{plan}: their logits, relative difference", difference, LOGITS)
        yield Line(f"reread at {plan}", seconds["expanded"], "s expanded", seconds["packed"], "packed")


def differs(model: nn.Module, other: nn.Module, name: str) -> bool:
    """True if a layer's weights are not those of the other model, to the last bit."""
    ours, theirs = (one.get_submodule(name).weight for one in (model, other))
    assert isinstance(ours, Tensor)
    assert isinstance(theirs, Tensor)
    return not torch.equal(ours.to(theirs.device), theirs)


def loading(folder: Path, plan: str, way: str, scale: Scale) -> Iterator[Line]:
    """Seconds of two loads, bytes of planes and grids read, and memory held."""
    first, model = timed(lambda: load(folder, plan, packed=WAYS[way], device=scale.device), scale.device)
    del model
    free()
    peak = Peak(scale.device)
    before = allocated(scale.device)
    second, model = timed(lambda: load(folder, plan, packed=WAYS[way], device=scale.device), scale.device)
    yield Line(f"loading {plan}, {way}", second, "s", first, "the first time")
    reading = reading_of(model)
    expected = reading.folder.num_bytes(reading.plan) + (folder / GRIDS).stat().st_size
    yield Line(
        f"read for {plan}, {way}", reading.folder.read.num_bytes / MB, "MB", expected / MB, "planes and file of grids"
    )
    free()
    if before is None:
        return
    held = (allocated(scale.device) or 0) - before
    highest = (peak.bytes() or 0) - before
    yield estimated(
        f"memory of {plan}, {way}",
        held / MB,
        bytes_of(model) / MB,
        "MB",
        scale=scale,
        note=f"{highest / MB:.0f} MB at most while loading",
    )


def allocated(device: torch.device) -> int | None:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def bytes_of(model: nn.Module) -> int:
    """The bytes of all weights as tensors."""
    packed = sum(layer.num_bytes for layer in model.modules() if isinstance(layer, PackedLinear))
    return packed + sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())


def moved(folder: Path, scale: Scale) -> Iterator[Line]:
    """A packed model that is loaded on the CPU and then moved, beside one that is loaded onto the GPU."""
    there = load(folder, "int3", packed=True, device=scale.device)
    here: Any = load(folder, "int3", packed=True, device=torch.device("cpu"))
    here = here.to(scale.device)
    # transformers computes rotary frequencies where it loads: in their last digit a CPU's may be others than a GPU's.
    unequal = sum(
        differs(there, here, name) for name, layer in there.named_modules() if isinstance(layer, PackedLinear)
    )
    distance = float((logits(here) - logits(there)).float().norm() / logits(there).float().norm())
    yield holds("layers that differ if loaded on the CPU and moved", unequal, 0)
    yield holds("logits if loaded on the CPU and moved: relative difference", distance, LOGITS)


def decoding(folder: Path, model: PreTrainedModel, scale: Scale) -> Iterator[Line]:
    """Tokens a second of one sequence: dense, expanded and packed at each width."""
    count = 2 if scale.small else 32
    dense = tokens_a_second(model, count, scale)
    yield Line("decoded tokens a second, dense bfloat16", dense, "/s")
    held = load(folder, "int4", packed=False, device=scale.device)
    yield Line("decoded tokens a second, expanded", tokens_a_second(held, count, scale), "/s", dense, "dense")
    del held
    packed = load(folder, "int8", packed=True, device=scale.device)
    for plan in plans_of(scale):
        matquant.reread(packed, plan)
        yield Line(
            f"decoded tokens a second, packed {plan}", tokens_a_second(packed, count, scale), "/s", dense, "dense"
        )


def tokens_a_second(model: Any, count: int, scale: Scale) -> float:
    """The speed of greedy decoding after one run that does not count."""
    prompt = tokens_for(model, length=8)[:1]

    def decode() -> None:
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            min_new_tokens=count,
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )

    timed(decode, scale.device)
    return count / timed(decode, scale.device)[0]


def main() -> None:
    transformers.logging.disable_progress_bar()  # it writes into the lines of the part
    run_part(nested, __doc__)


if __name__ == "__main__":
    main()
