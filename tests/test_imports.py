"""Imports point one way, and reading results needs no deep learning library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from matquant.checkout import PROJECT


def test_the_import_contracts_hold():
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "module",
    [
        "analysis",
        "analysis.report",
        "analysis.study",
        "matquant.config",
        "matquant.notation",
        "evaluation.results",
        "slurm.status",
        "slurm.launch",
    ],
)
def test_what_reads_results_loads_no_torch(module):
    heavy = "{'torch', 'transformers', 'lm_eval', 'datasets'}"
    program = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""


@pytest.mark.parametrize(
    "path", [*PROJECT.glob("matquant/**/*.py"), *PROJECT.glob("evaluation/*.py"), *PROJECT.glob("analysis/*.py")]
)
def test_nothing_imports_the_program(path):
    assert "import run\n" not in path.read_text()
