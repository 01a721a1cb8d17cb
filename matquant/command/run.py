"""`matquant run`: the clone's run.py, in the place of this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from matquant.checkout import PROJECT


def main(arguments: Sequence[str]) -> NoReturn:
    # In the place of this process: Hydra sees the script it expects, and signals and ranks reach it as they are.
    os.execv(sys.executable, [sys.executable, str(PROJECT / "run.py"), *arguments])
