"""Imports point one way, libraries are imported where a contract allows it, and reading results needs no torch."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from matquant.checkout import PROJECT

PACKAGES = ("matquant", "evaluation", "analysis", "slurm")
LINTER = Path(sys.executable).with_name("lint-imports")
BREACHES = {
    "One direction": ("matquant/codes/slicing.py", "import evaluation.results.store"),
    "Rooms of matquant": ("matquant/codes/layouts.py", "import matquant.models.text.documents"),
    "Inside codes": ("matquant/codes/slicing.py", "import matquant.codes.nested"),
    "Inside evaluation": ("evaluation/text/perplexity.py", "import evaluation.planning.work"),
    "Inside analysis": ("analysis/frame/load.py", "import analysis.tables.typeset"),
    "analysis reads results": ("analysis/tables/typeset.py", "import matquant.codes.nested"),
    "hydra": ("analysis/claims/evidence.py", "import hydra"),
    "submitit": ("matquant/runs/status.py", "import submitit"),
    "lm_eval": ("evaluation/protocol.py", "import lm_eval"),
    "wandb": ("evaluation/results/readouts.py", "import wandb"),
    "torch": ("matquant/config/cell.py", "import torch"),
}
"""For each contract, by how its name begins, a line that breaks it."""


def _contracts() -> list[str]:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    return [contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]]


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"COLUMNS": "200", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder)}
    return subprocess.run(
        [LINTER, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_import_contracts_hold():
    result = _lint(PROJECT)
    assert result.returncode == 0, result.stdout


def _copy(folder: Path) -> None:
    """Copies everything that is linted, to be changed in another folder."""
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", folder)


def test_every_import_contract_can_be_broken(tmp_path):
    _copy(tmp_path)
    for name, line in BREACHES.values():
        path = tmp_path / name
        path.write_text(f"{path.read_text()}\n{line}\n")
    verdicts = _lint(tmp_path).stdout.partition("Broken contracts")[0].splitlines()
    broken = [line.partition(" BROKEN")[0] for line in verdicts if " BROKEN" in line]
    assert not [line for line in verdicts if " KEPT" in line]
    assert len(broken) == len(_contracts()) == len(BREACHES)
    for beginning in BREACHES:
        assert [name for name in broken if name.startswith(beginning)], beginning


@pytest.mark.parametrize(
    "module",
    [
        "analysis",
        "analysis.report.report",
        "analysis.claims.study",
        "matquant.config.study",
        "matquant.notation",
        "evaluation.results.store",
        "slurm.status",
        "slurm.launch",
    ],
)
def test_what_reads_results_loads_no_torch(module):
    heavy = "{'torch', 'transformers', 'lm_eval', 'datasets'}"
    program = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""


def _imported(source: str) -> set[str]:
    """The top-level names of everything that a module imports, wherever in it that stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize(
    "source",
    ["import run", "import os, run as program", "def f():\n    from run import main", "from tests.tiny import x"],
)
def test_an_import_is_seen_however_it_is_written(source):
    assert _imported(source) & {"run", "tests"}


@pytest.mark.parametrize("package", [*PACKAGES, "benchmarks", "reference", "studies"])
def test_nothing_imports_the_program_or_the_tests_or_a_study_that_is_not_its_own(package):
    paths = sorted((PROJECT / package).rglob("*.py"))
    assert paths
    kept_out = {"run", "tests", "conf", "studies"} - {package}
    guilty = {path.name: found for path in paths if (found := _imported(path.read_text()) & kept_out)}
    assert not guilty


def test_a_new_room_is_refused_until_it_has_its_place(tmp_path):
    _copy(tmp_path)
    (tmp_path / "matquant" / "attic").mkdir()
    (tmp_path / "matquant" / "attic" / "__init__.py").write_text("")
    result = _lint(tmp_path)
    assert result.returncode == 1
    assert "attic" in result.stdout
