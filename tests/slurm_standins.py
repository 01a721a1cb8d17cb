"""SLURM's commands as stand-ins: they print what a file says, filtered as the true ones filter it, and note each call.

The jobs are lines of JSON with the fields of squeue; `squeue` and `sacct` see those that are theirs.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from matquant.runs.processes import user_name

PROGRAM = """#!{python} -SE
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
name, words = pathlib.Path(__file__).name, sys.argv[1:]
with (here / "calls").open("a") as file:
    file.write(json.dumps([name, *words]) + "\\n")
told = json.loads((here / "told.json").read_text())
if name in told["broken"]:
    sys.exit(f"{{name}}: error: {{told['broken'][name]}}")
def value(option):
    for index, word in enumerate(words):
        if word == option:
            return words[index + 1]
        if word.startswith(option + "="):
            return word.partition("=")[2]
if name == "scontrol":
    for key, text in told["configuration"].items():
        print(f"{{key:24}}= {{text}}")
    sys.exit()
if name == "scancel":
    sys.exit()
jobs = [job for job in told["jobs"] if job["in"] == name]
states = os.environ.get("SQUEUE_STATES" if name == "squeue" else "SACCT_STATE") or value("--states") or "all"
if (cluster := value("--clusters")) is not None and cluster not in told["clusters"]:
    sys.exit(f"{{name}}: error: No cluster '{{cluster}}' known by database.")
home = cluster or told["configuration"].get("ClusterName")
jobs = [job for job in jobs if job["cluster"] == home and (states == "all" or job["state"] == states)]
ids = None if value("--jobs") is None else value("--jobs").split(",")
if ids is not None:
    jobs = [job for job in jobs if job["id"].partition("_")[0] in ids]
    if name == "squeue" and not jobs and len(ids) == 1:
        sys.exit("slurm_load_jobs error: Invalid job id specified")
if (names := value("--name")) is not None:
    jobs = [job for job in jobs if job["name"] in names.split(",")]
if (user := value("--user")) is not None:
    jobs = [job for job in jobs if job["user"] == user]
for job in jobs:
    if name == "sacct":
        fields = ("id", "state", "user", "start", "account", "qos", "name")
    else:
        fields = ("id", "state", "reason", "user", "start", "account", "qos", "name")
        if value("--format").startswith("%e"):
            fields = ("end", *fields)
    print("|".join(job[field] for field in fields))
"""


@dataclass
class StandIns:
    """A folder of stand-ins, which a test puts first on PATH, and what they tell."""

    folder: Path
    configuration: dict[str, str]
    clusters: tuple[str, ...] = ("home",)

    def tell(self, *jobs: dict[str, str], broken: dict[str, str] | None = None) -> None:
        told = {"jobs": jobs, "configuration": self.configuration, "clusters": self.clusters, "broken": broken or {}}
        (self.folder / "told.json").write_text(json.dumps(told))

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of every call of a command, so far."""
        path = self.folder / "calls"
        lines: Iterable[str] = path.read_text().splitlines() if path.exists() else ()
        return [words for first, *words in map(json.loads, lines) if first == name]


def job(number: str, name: str, state: str, **fields: str) -> dict[str, str]:
    """A job as a stand-in tells of it; `on` names the command that does."""
    told = {"id": number, "name": name, "state": state, "reason": "None", "user": user_name(), "cluster": "home"}
    told |= {"start": "N/A", "end": "N/A", "account": "ours", "qos": "normal", "in": fields.pop("on", "squeue")}
    return told | fields


def stand_ins(folder: Path, *, without: Iterable[str] = ()) -> StandIns:
    """Makes them; `without` leaves some commands out."""
    folder.mkdir()
    for name in {"squeue", "sacct", "scontrol", "scancel"} - set(without):
        path = folder / name
        path.write_text(PROGRAM.format(python=sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    made = StandIns(folder, {"ClusterName": "home", "PrivateData": "none"})
    made.tell()
    return made


def first_on_path(folder: Path) -> str:
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
