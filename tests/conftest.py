"""Fixtures shared by all tests: devices, small specs, and cells of the tiny random model.

Shapes in signatures are checked while the tests run (jaxtyping with beartype).
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

import tests.shapes  # noqa: F401 -- jaxtyping looks it up as an attribute of the package

install_import_hook("matquant", "tests.shapes.checked")

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from matquant.config import Study, load_study
from tests.tiny import tiny_overrides


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of this machine."""
    return torch.device(request.param)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """One thread a process: tests run side by side, and idle threads of one would slow down the other."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_study(tmp_path: Path) -> Callable[..., Study]:
    """Composes a study of the tiny random model, with all files under the test's own folder."""

    def compose(*overrides: str) -> Study:
        return load_study([*tiny_overrides(tmp_path), *overrides])

    return compose
