"""Ready for this GPU?  Every part of `benchmarks/gpu`, one after the other, and a page of what was found.

    make gpu-check                                     all parts; under eight minutes on an H100 with 16 cores
    python -m benchmarks.gpu.check fits nested         only those that are named
    python -m benchmarks.gpu.check --small --device cpu      tiny models on a CPU: that the check itself works

No network: models have real shapes and random weights, and are made on the spot.  Each part is a process of its own,
so that a crash or a full memory costs one part.  Estimates stand beside measurements; one that is off by more than a
factor of two is a failure, as is a result that differs from the CPU's.  Written: out/gpu_check.json, out/gpu_check.md.
The exit status is 1 if something failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.gpu.lines import PREFIX, Line
from matquant.checkout import PROJECT

PARTS = {
    "tests": "the test suite's `device` tests",
    "agreement": "every algorithm on the tiny model: twice the same, and as on the CPU",
    "fits": "OmniQuant, QAT and GPTQ on two blocks of real shapes",
    "evaluation": "scoring beside lm-eval's HFLM",
    "sharded": "FSDP2 with one rank",
    "nested": "the nested folder at every width",
    "products": "r-bit matrix products beside bfloat16",
}
"""The parts in the order in which they run, each a module of this folder with `main`."""
TOTAL_S = 475.0
"""Seconds of the whole check on a GPU: a part that they do not reach to is said to be left out."""
LIMIT_S = 150.0
"""Seconds after which a part is ended: none may keep the others from an answer."""
SHORTEST_S = 15.0
"""Seconds that a part needs to say anything."""
LAST_WORDS = 1500
"""Characters of a failed part's output that are kept."""


@dataclass
class Found:
    """The lines of one part, and its end."""

    part: str
    lines: list[Line] = field(default_factory=list)
    seconds: float = 0.0
    failed: str = ""

    @property
    def failures(self) -> list[str]:
        own = [f"{self.part}: {self.failed}"] if self.failed else []
        return [*own, *(f"{self.part}: {line.what}: {line.failed}" for line in self.lines if line.failed)]


def run(part: str, options: Sequence[str], *, limit_s: float = LIMIT_S) -> Found:
    """Runs one part in a process of its own, and prints its lines as they come."""
    found, start, others = Found(part), time.monotonic(), []
    command = [sys.executable, "-u", "-m", f"benchmarks.gpu.{part}", *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        [*timeout(limit_s), *command],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for text in process.stdout:
            if text.startswith(PREFIX):
                found.lines.append(Line(**json.loads(text.removeprefix(PREFIX))))
                print(f"  {in_words(found.lines[-1])}", flush=True)
            else:
                others.append(text)
    found.seconds = time.monotonic() - start
    if process.returncode:
        ended = f"no end after {limit_s:.0f} s" if process.returncode in (124, 137) else "ended"
        found.failed = f"{ended} with status {process.returncode}: {''.join(others)[-LAST_WORDS:].strip()}"
        print(f"  FAILED: {found.failed}", flush=True)
    return found


def timeout(limit_s: float) -> list[str]:
    """GNU's command, which also ends what a part has started."""
    return ["timeout", "--kill-after=5", f"{limit_s:.0f}"]


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def in_words(line: Line) -> str:
    """One line of the terminal."""
    text = f"{line.what}: {number(line.value)} {line.unit}".rstrip(": ")
    if line.against is not None:
        text += f" ({line.against_what} {number(line.against)}{f', {line.ratio:.2f}x' if line.ratio else ''})"
    text += f"; {line.note}" if line.note else ""
    return f"{text}; FAILED: {line.failed}" if line.failed else text


def machine(device: str) -> dict[str, str]:
    """The card, and the versions that the numbers hang on."""
    import transformers

    there = device == "cuda"
    return {
        "device": torch.cuda.get_device_name(0) if there else "CPU",
        "memory": f"{torch.cuda.get_device_properties(0).total_memory / 1e9:.1f} GB" if there else "",
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def page(all_found: Sequence[Found], about: dict[str, str]) -> str:
    """The page: the machine, a table for each part, and what failed."""
    return "\n".join(_page(all_found, about)) + "\n"


def _page(all_found: Sequence[Found], about: dict[str, str]) -> Iterator[str]:
    yield f"# GPU check: {about['device']}"
    yield ""
    yield ", ".join(f"{name} {value}" for name, value in about.items() if name != "device" and value)
    for found in all_found:
        yield ""
        yield f"## {PARTS[found.part][0].upper()}{PARTS[found.part][1:]} ({found.seconds:.0f} s)"
        yield ""
        if found.lines:
            yield "| | measured | | against | ratio | |"
            yield "|---|--:|---|--:|--:|---|"
        for line in found.lines:
            against = f"{line.against_what} {number(line.against)}" if line.against is not None else ""
            ratio = f"{line.ratio:.2f}" if line.ratio is not None else ""
            words = f"**FAILED**: {line.failed}" if line.failed else line.note
            yield f"| {line.what} | {number(line.value)} | {line.unit} | {against} | {ratio} | {words} |"
        if found.failed:
            yield f"**FAILED**: {found.failed.splitlines()[-1]}"
    yield ""
    yield "## What failed"
    yield ""
    failures = [failure for found in all_found for failure in found.failures]
    yield from (f"- {failure.splitlines()[0]}" for failure in failures)
    if not failures:
        yield "Nothing."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {name:12} {words}" for name, words in PARTS.items()),
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="tiny models")
    parser.add_argument("--out", type=Path, default=PROJECT / "out", help="folder of both files (default: out)")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; there are: {', '.join(PARTS)}")
    small = options.small or options.device == "cpu"
    if options.device == "cpu":
        print("no GPU here: every part runs small, on the CPU")
    about, all_found, start = machine(options.device), [], time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.parts or PARTS:
        print(f"{name}: {PARTS[name]}", flush=True)
        left = LIMIT_S if small else TOTAL_S - (time.monotonic() - start)
        asked = [f"--device={options.device}", *(["--small"] if small else [])]
        if left < SHORTEST_S:
            all_found.append(Found(name, failed=f"left out: {max(0, left):.0f} s were left; name it to run it alone"))
        else:
            all_found.append(run(name, asked, limit_s=min(LIMIT_S, left)))
        # After every part: what was measured outlives whatever ends the next one.
        write(options.out, all_found, about)
    failures = [failure for found in all_found for failure in found.failures]
    print(f"\n{options.out / 'gpu_check.md'}\n{options.out / 'gpu_check.json'}")
    print("\n".join(["failed:", *failures]) if failures else "nothing failed")
    return 1 if failures else 0


def write(folder: Path, all_found: Sequence[Found], about: dict[str, str]) -> None:
    """Both files, as far as the check has come."""
    content = {"machine": about, "parts": [asdict(found) for found in all_found]}
    (folder / "gpu_check.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / "gpu_check.md").write_text(page(all_found, about), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
