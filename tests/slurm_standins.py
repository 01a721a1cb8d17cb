"""SLURM's commands as stand-ins: they print what they are told, filtered as the true ones do, and note each call.

A test either answers for them in its own process, which is fast, or puts them first on PATH as programs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

COMMANDS = ("squeue", "sacct", "scontrol", "scancel")
PROGRAM = "#!{python} -SE\nimport sys\nsys.path.insert(0, {project!r})\nfrom tests.slurm_standins import main\nmain()\n"
IN_QUEUE = ("id", "state", "reason", "user", "start", "account", "qos", "name")
IN_ACCOUNTS = ("id", "state", "user", "start", "account", "qos", "name")


class StandIns:
    """A folder of stand-ins, and what they tell: jobs, the cluster's configuration, and which commands are broken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = {"ClusterName": "home", "PrivateData": "none"}
        self.clusters: tuple[str, ...] = ("home",)
        folder.mkdir()
        self.tell()

    def tell(self, *jobs: Mapping[str, str], broken: Mapping[str, str] | None = None) -> None:
        told = {"jobs": jobs, "configuration": self.configuration, "clusters": self.clusters, "broken": broken or {}}
        (self.folder / "told.json").write_text(json.dumps(told))

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of every call of a command, so far."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [words for first, *words in map(json.loads, lines) if first == name]

    def programs(self) -> str:
        """Makes programs of them; the PATH that finds them first."""
        for name in COMMANDS:
            path = self.folder / name
            path.write_text(PROGRAM.format(python=sys.executable, project=str(Path(__file__).parents[1])))
            path.chmod(0o755)
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"

    def in_process(self) -> SimpleNamespace:
        """A replacement for the module `subprocess` that answers for them."""

        def run(command: Sequence[str], *, env: Mapping[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
            name, *words = command
            out = StringIO()
            try:
                with redirect_stdout(out):
                    answer(self.folder, name, words, env)
            except SystemExit as error:
                return subprocess.CompletedProcess(command, 1, out.getvalue(), str(error))
            return subprocess.CompletedProcess(command, 0, out.getvalue(), "")

        return SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)


def job(number: str, name: str, state: str, **fields: str) -> dict[str, str]:
    """A job as a stand-in tells of it; `on` names the command that does."""
    from matquant.runs.processes import user_name  # a program, which starts without packages, needs no user

    told = {"id": number, "name": name, "state": state, "reason": "None", "user": user_name(), "cluster": "home"}
    told |= {"start": "N/A", "end": "N/A", "account": "ours", "qos": "normal", "in": fields.pop("on", "squeue")}
    return told | fields


def main() -> None:
    program = Path(sys.argv[0])
    answer(program.parent, program.name, sys.argv[1:], os.environ)


def answer(folder: Path, name: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Prints what a command prints; SystemExit, with a message, where it fails."""
    with (folder / "calls").open("a") as file:
        file.write(json.dumps([name, *words]) + "\n")
    told = json.loads((folder / "told.json").read_text())
    if name in told["broken"]:
        raise SystemExit(f"{name}: error: {told['broken'][name]}")
    if name == "scontrol":
        print("\n".join(f"{key:24}= {text}" for key, text in told["configuration"].items()))
    elif name != "scancel":
        with_end = ("end",) if (value(words, "--format") or "").startswith("%e") else ()
        fields = IN_ACCOUNTS if name == "sacct" else (*with_end, *IN_QUEUE)
        for found in wanted(told, name, words, environment):
            print("|".join(found[field] for field in fields))


def wanted(told: Any, name: str, words: Sequence[str], environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The jobs that a command is asked for, by its options and, where they say nothing, by its variables."""
    states = (
        environment.get("SQUEUE_STATES" if name == "squeue" else "SACCT_STATE") or value(words, "--states") or "all"
    )
    cluster = value(words, "--clusters") or environment.get("SLURM_CLUSTERS") or told["configuration"]["ClusterName"]
    if cluster not in told["clusters"]:
        raise SystemExit(f"{name}: error: No cluster '{cluster}' known by database.")
    ids, names, user = (value(words, option) for option in ("--jobs", "--name", "--user"))
    mine = [one for one in told["jobs"] if one["in"] == name and one["cluster"] == cluster]
    numbers = {one["id"].partition("_")[0] for one in mine}
    if ids and name == "squeue" and "," not in ids and ids not in numbers:
        raise SystemExit("slurm_load_jobs error: Invalid job id specified")
    for one in mine:
        by_id = ids is None or one["id"].partition("_")[0] in ids.split(",")
        by_name = names is None or one["name"] in names.split(",")
        if by_id and by_name and user in (None, one["user"]) and states in ("all", one["state"], one["state"][0]):
            yield one


def value(words: Sequence[str], option: str) -> str | None:
    """The value of an option, written with or without an equals sign."""
    for index, word in enumerate(words):
        if word == option:
            return words[index + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None
