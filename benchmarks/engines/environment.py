"""An environment of its own for an engine: made once, by pip, in the cache folder, and asked by way of JSON.

    LLAMA_CPP = Environment("llama_cpp", ("xllamacpp", "numpy"))
    answer = LLAMA_CPP.ask(Path(__file__).with_name("in_llama_cpp.py"), {"file": str(path), "tokens": tokens})

The program that is asked reads one JSON object from standard input and writes one as the last line of its standard
output: `print(json.dumps(answer(**json.load(sys.stdin))))`.  Engines pin other versions of torch and transformers than
this clone does, so it imports the engine's libraries and nothing of ours.

`NotThere` is raised, with one sentence, where pip cannot install the engine; a program that fails inside a finished
environment is a RuntimeError, since it is a fault and nothing to skip:

    with skipped():                     # prints "skipped: llama_cpp: ..." and goes on
        table = measure()

The environments lie in ~/.cache/matquant/engines, or in the folder that MATQUANT_ENGINES names.  One that was made for
other requirements, or was not finished, is made again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

FOLDER = "MATQUANT_ENGINES"
"""The variable that names another folder for environments."""
TORCH_CPU = "torch==2.13.0"
"""The torch of this clone's lock file; an unpinned one can be a build for CUDA, of several GB."""


class NotThere(Exception):  # noqa: N818 - no mistake of anybody's
    """An engine that cannot be had on this machine; the message is one sentence."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with an engine in it."""

    name: str
    requirements: Sequence[str]
    without: Sequence[str] = ()
    """Packages that the requirements bring along and that are uninstalled again."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Variables that its installation is told."""

    @property
    def folder(self) -> Path:
        return Path(os.environ.get(FOLDER) or "~/.cache/matquant/engines").expanduser() / self.name

    @property
    def bin(self) -> Path:
        """The folder of its programs, such as `vllm`."""
        return self.folder / "bin"

    def python(self) -> Path:
        """Its interpreter, after the environment was made if need be; NotThere if that is impossible."""
        stamp, wanted = self.folder / "requirements.json", [list(self.requirements), list(self.without)]
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.folder}.lock"):
            if not stamp.is_file() or json.loads(stamp.read_text()) != wanted:
                print(f"making {self.folder} with {' '.join(self.requirements)}, once", flush=True)
                shutil.rmtree(self.folder, ignore_errors=True)
                self._make()
                stamp.write_text(json.dumps(wanted))
        return self.bin / "python"

    def _make(self) -> None:
        self._run([sys.executable, "-m", "venv", str(self.folder)])
        pip = [str(self.bin / "python"), "-m", "pip", "--disable-pip-version-check"]
        self._run([*pip, "install", "--quiet", "--retries", "2", *self.requirements])
        if self.without:
            self._run([*pip, "uninstall", "--quiet", "--yes", *self.without])

    def _run(self, command: Sequence[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **self.environ})
        if done.returncode:
            raise NotThere(f"{self.name}: {' '.join(self.requirements)} cannot be installed ({_last_line(done)})")

    def ask(
        self,
        program: Path,
        question: Mapping[str, Any],
        *,
        environ: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """The answer of a program inside the environment: JSON in, JSON out; RuntimeError if it fails."""
        try:
            done = subprocess.run(
                [str(self.python()), str(program)],
                input=json.dumps(question),
                capture_output=True,
                text=True,
                env={**_clean(os.environ), **(environ or {})},
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{self.name}: {program.name} took more than {timeout_s:g} s") from error
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            raise RuntimeError(
                f"{self.name}: {program.name} ended with status {done.returncode}:\n{done.stderr[-4000:]}"
            )
        return json.loads(lines[-1])


@contextmanager
def skipped() -> Iterator[None]:
    """Prints the name and the reason of what is not there, and goes on."""
    try:
        yield
    except NotThere as missing:
        print(f"skipped: {missing}", flush=True)


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment variables without those that would lead another interpreter to this clone's packages."""
    return {name: value for name, value in environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[-1].strip()
