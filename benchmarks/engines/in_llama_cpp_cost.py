"""llama.cpp, asked from inside its own environment: seconds to open a file, memory, and the speed of decoding."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

from in_llama_cpp import Model


def kernel_says(field: str) -> int:
    (kib,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kib)


def tokens_per_second(model: Model, count: int) -> float:
    """The speed by the processor's clock."""
    start = time.process_time()
    model.tokens_per_second(count)
    return count / (time.process_time() - start)


def answer(*, file: str, threads: int, decode: int) -> dict[str, float]:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, start = kernel_says("VmRSS"), time.process_time()
    model = Model(file, decode + 8, threads, in_float32=False)
    seconds = time.process_time() - start
    speed = max(tokens_per_second(model, decode) for _ in range(3))
    return {
        "load_s": seconds,
        # The file is mapped, and read as it is used: what is resident is known after the first tokens.
        "resident": kernel_says("VmRSS") - before,
        "peak": kernel_says("VmHWM") - before,
        "held": Path(file).stat().st_size,
        "tokens_per_s": speed,
    }


if __name__ == "__main__":
    print(json.dumps(answer(**json.load(sys.stdin))))
