"""The price of a width: bytes read, seconds to load, memory, and decoded tokens per second, by the way it is served.

    python -m benchmarks.serving                          SmolLM2-135M rounded to nearest, some minutes
    python -m benchmarks.serving CELL [paths.runs=DIR]    a trained cell, by its id
    python -m benchmarks.serving model=tiny grid=group_32    the same of another model, by overrides
    python -m benchmarks.serving --widths int4 int2 --dtype float32 --repeats 3

The rival, in the same run, is the dense model in 16 bits.  Each measurement is a process of its own, and they take
turns.  Seconds are those of the processor, of all threads together, so that other processes do not count.  Read: the
bytes of files that came off the disk, counted by the kernel in the first round.  Load: the best time, of files that are
in the page cache.  Held: the bytes of all weights in memory, as tensors.  Resident and peak: the growth of the process
after decoding, and at most while it loads and decodes.  Linux only.

llama.cpp is installed into an environment of its own, or named as skipped.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.engines.environment import Environment, NotThere
from benchmarks.page_cache import bytes_in_memory, forget
from matquant.errors import UserError

DENSE, EXPANDED, PACKED, GGUF = "dense", "expanded", "packed", "gguf"
WAYS = {EXPANDED: "nested, expanded", PACKED: "nested, packed", GGUF: "GGUF, llama.cpp"}
"""The ways beside the rival, and what the table calls them."""
WIDTHS = ("int8", "int4", "int3", "int2")


@dataclass(frozen=True)
class Served:
    """One way of serving one width, and the folder that it is read from."""

    way: str
    plan: str
    folder: Path

    @property
    def name(self) -> str:
        return "dense (rival)" if self.way == DENSE else f"{self.plan} {WAYS[self.way]}"

    @property
    def files(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_file()]


Numbers = dict[str, float]


# --- in the process of one measurement --------------------------------------------------------------------------------


def measure(served: Served, *, threads: int, decode: int) -> Numbers:
    """Loads and decodes in this process."""
    import torch
    from transformers import AutoModelForCausalLM

    import matquant
    from matquant.serving.nested.packed import PackedLinear

    torch.set_num_threads(threads)
    _warm_up(AutoModelForCausalLM)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, start = _kernel_says("VmRSS"), time.process_time()
    model: Any
    if served.way == DENSE:
        model = AutoModelForCausalLM.from_pretrained(served.folder)
    else:
        model, _ = matquant.load(served.folder, served.plan, packed=served.way == PACKED)
    seconds = time.process_time() - start
    prompt = torch.tensor([[1, 2, 3, 4]])
    speeds = []
    for _ in range(3):
        start = time.process_time()
        model.generate(prompt, min_new_tokens=decode, max_new_tokens=decode, do_sample=False, pad_token_id=0)
        speeds.append(decode / (time.process_time() - start))
    gc.collect()
    # Not before: files are mapped, and a weight is resident when it is first used.
    resident = _kernel_says("VmRSS") - before
    packed = sum(layer.num_bytes for layer in model.modules() if isinstance(layer, PackedLinear))
    dense = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    return {
        "load_s": seconds,
        "resident": resident,
        "peak": _kernel_says("VmHWM") - before,
        "held": dense + packed,
        "tokens_per_s": max(speeds),
    }


def _warm_up(models: Any) -> None:
    """Imports what the first model of a process imports: it is no part of loading."""
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with tempfile.TemporaryDirectory() as name:
        LlamaForCausalLM(small).save_pretrained(name)
        models.from_pretrained(name)


def _kernel_says(field: str) -> int:
    (kib,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kib)


def llama_cpp() -> Environment:
    """That of the round trip; imported here, since what measures must not hold its libraries."""
    from benchmarks.engines.llama_cpp import LLAMA_CPP

    return LLAMA_CPP


# --- all measurements -------------------------------------------------------------------------------------------------


def measured(served: Served, *, threads: int, decode: int) -> Numbers:
    """One measurement, in a process of its own."""
    if served.way == GGUF:
        (file,) = served.folder.glob("*.gguf")
        program = Path(__file__).parent / "engines" / "in_llama_cpp_cost.py"
        return llama_cpp().ask(program, {"file": str(file), "threads": threads, "decode": decode})
    command = [sys.executable, "-m", "benchmarks.serving", "--measure", served.way, served.plan, str(served.folder)]
    command += [f"--threads={threads}", f"--decode={decode}"]
    # Freed memory goes back to the kernel, or its count would not come down.
    small = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env={**os.environ, **small}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{served.name} ended with status {done.returncode}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def all_measured(found: Sequence[Served], *, repeats: int, threads: int, decode: int) -> dict[str, Numbers]:
    """The best of some rounds; in the first one the bytes are counted that come off the disk."""
    best: dict[str, Numbers] = {}
    left = list(found)
    for number in range(repeats):
        for served in tqdm([*left], desc=f"round {number + 1} of {repeats}", unit="way"):
            if not number:
                forget(served.files)
            try:
                numbers = measured(served, threads=threads, decode=decode)
            except RuntimeError as error:
                if served.way == DENSE:
                    raise  # nothing can be compared with it
                tqdm.write(f"failed: {served.name}: {str(error).strip().splitlines()[-1]}")
                left.remove(served)
                best.pop(served.name, None)
                continue
            if not number:
                best[served.name] = {**numbers, "read": bytes_in_memory(served.files)}
                continue
            known = best[served.name]
            for name, value in numbers.items():
                known[name] = (max if name == "tokens_per_s" else min)(known[name], value)
    return best


def print_table(numbers: dict[str, Numbers]) -> None:
    rival = next(iter(numbers.values()))
    heads = ("read", "load", "held", "resident", "peak", "tokens/s")
    print(f"  {'':24}" + "".join(f"{head:>17}" for head in heads))
    for name, found in numbers.items():
        keys = ("read", "load_s", "held", "resident", "peak", "tokens_per_s")
        texts = [
            f"{found[key] / (1 if key in ('load_s', 'tokens_per_s') else 1e6):8.2f}{_unit(key)}"
            f"{found[key] / rival[key]:6.2f}x"
            for key in keys
        ]
        print(f"  {name:24}" + "".join(f"{text:>17}" for text in texts))


def _unit(key: str) -> str:
    return {"load_s": " s ", "tokens_per_s": "   "}.get(key, " MB")


# --- the folders ------------------------------------------------------------------------------------------------------


def folders(
    place: Path,
    words: Sequence[str],
    overrides: Sequence[str],
    *,
    widths: Sequence[str],
    ways: Sequence[str],
    dtype: str,
) -> Iterator[Served]:
    """Exports of a cell, or of one that is made here; a way that cannot be had is named and left out."""
    from matquant.notation import Plan
    from matquant.runs.tracking import NoTracker
    from matquant.serving.export import export_nested, export_readout, find_trained, format_named
    from matquant.training.train import train

    if words:
        trained = find_trained(words, overrides)
    else:
        paths = [f"paths.{name}={place / name}" for name in ("runs", "results", "out")]
        trained = find_trained([], ["base=minmax", "bits=int8", "tracking=none", *paths, *overrides])
        train(trained.cell, trained.setup, NoTracker())
    print(f"{trained.cell.id}, everything else in {dtype}")
    export_readout(trained, format_named("dense"), Plan.parse(widths[0]), place / "dense", dtype=dtype)
    yield Served(DENSE, widths[0], place / "dense")
    if EXPANDED in ways or PACKED in ways:
        export_nested(trained, place / "nested", dtype=dtype)
    if GGUF in ways:
        try:
            llama_cpp().python()
        except NotThere as missing:
            print(f"skipped: {missing}")
            ways = [way for way in ways if way != GGUF]
    for width in widths:
        for way in (EXPANDED, PACKED):
            if way in ways:
                yield Served(way, width, place / "nested")
        if GGUF in ways:
            folder = place / f"gguf-{width}"
            try:
                export_readout(trained, format_named("gguf"), Plan.parse(width), folder, dtype=dtype)
            except UserError as error:
                print(f"skipped: {width} {WAYS[GGUF]}: {error}")
            else:
                yield Served(GGUF, width, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="CELL", help="the id of a trained cell, and overrides of paths")
    parser.add_argument("--widths", nargs="+", default=WIDTHS, help="any plans (default: %(default)s)")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="besides the rival (default: all)")
    parser.add_argument("--dtype", default="bfloat16", help="of everything that is not quantized, and of the rival")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--decode", type=int, default=32, help="tokens that are decoded (default: 32)")
    parser.add_argument("--repeats", type=int, default=2, help="rounds, of which the best counts (default: 2)")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = {"threads": options.threads, "decode": options.decode}
    if options.measure:
        way, plan, folder = options.measure
        print(json.dumps(measure(Served(way, plan, Path(folder)), **sizes)))
        return
    overrides = [word for word in options.words if "=" in word]
    cell = [word for word in options.words if word not in overrides]
    with tempfile.TemporaryDirectory() as name:
        chosen = {"widths": options.widths, "ways": options.ways, "dtype": options.dtype}
        found = list(folders(Path(name), cell, overrides, **chosen))
        print(f"{options.threads} thread{'s' * (options.threads > 1)}, {options.decode} tokens decoded")
        print_table(all_measured(found, repeats=options.repeats, **sizes))


if __name__ == "__main__":
    main()
