"""A stand-in for sbatch, and silent ones for the other commands: shell scripts on PATH, which answer as a test says."""

from __future__ import annotations

import re
from pathlib import Path

from slurm import queue

SBATCH = """#!/bin/sh
cd {folder}
number=$(ls calls | grep -c 'sh$')
cp "$1" calls/$number.sh
env > calls/$number.env
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
size=$((${{last:-0}} + 1))
. ./answer.sh
echo Submitted batch job $((100 + number))
"""
FULL_AT = """
taken=$(cat taken)
if [ $((taken + size)) -gt {places} ]; then
  echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2
  echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size" \
"and/or time limits)" >&2
  exit 1
fi
echo $((taken + size)) > taken
"""


class Cluster:
    """A folder of commands; what sbatch was given is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "calls").mkdir(parents=True)
        (folder / "bin").mkdir()
        self.command("sbatch", SBATCH.format(folder=folder))
        self.command("scontrol", "#!/bin/sh\nexit 1\n")
        for name in ("squeue", "scancel", "srun"):
            self.command(name, "#!/bin/sh\n")
        self.answers("")
        self.free()

    def command(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(script)
        path.chmod(0o755)

    def is_configured(self, **settings: object) -> None:
        """Sets the answer of `scontrol show config`."""
        lines = "\n".join(f"echo '{key:23} = {value}'" for key, value in settings.items())
        self.command("scontrol", f"#!/bin/sh\n{lines}\n")
        queue.configuration.cache_clear()

    def answers(self, lines: str) -> None:
        """Sets shell lines that sbatch runs before it accepts; `exit 1` in them refuses."""
        (self.folder / "answer.sh").write_text(lines)

    def has_places(self, places: int) -> None:
        self.answers(FULL_AT.format(places=places))

    def free(self, taken: int = 0) -> None:
        """Sets the number of places that are taken."""
        (self.folder / "taken").write_text(str(taken))

    @property
    def scripts(self) -> list[str]:
        count = len(list(self.folder.glob("calls/*.sh")))
        return [(self.folder / f"calls/{number}.sh").read_text() for number in range(count)]

    def options(self, number: int = 0) -> dict[str, str]:
        """The options of one script."""
        return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", self.scripts[number], re.MULTILINE))

    def variables(self, number: int = 0) -> dict[str, str]:
        """The variables in which sbatch was called."""
        lines = (self.folder / f"calls/{number}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)
