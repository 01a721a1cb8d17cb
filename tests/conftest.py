"""Fixtures shared by all tests: devices, small specs, and cells of the tiny random model.

Shapes in signatures are checked while the tests run (jaxtyping with beartype), in the modules that have any: elsewhere
pyright knows the types, and checking every call took a fifth of the time.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# While the hook below imports a module of ours, it looks for the byte code of every module under a name of its own, and
# would compile these libraries from source, in every process of a test run: so they come first.
import datasets  # noqa: F401
import lm_eval.models.huggingface  # noqa: F401
import torch
import transformers.modeling_utils  # noqa: F401
from jaxtyping import install_import_hook

from tests.shapes import shaped_modules

install_import_hook(shaped_modules(), "tests.shapes.checked")

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from matquant.config.study import Study
from matquant.models.text import documents
from slurm import queue
from tests.processes import MARK, left_behind
from tests.sbatch_standin import Cluster
from tests.shared import run_folder, studies
from tests.tiny import tiny_overrides, tiny_paths

LONGEST = (
    "kills",
    "launch",
    "distributed",
    "notebooks",
    "study",
    "flow",
    "faithfulness",
    "command_line",
    "experiments",
)
"""The test files that begin first, longest first, so that no process of a test run waits for one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the tests that take longest; all others keep their order."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


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


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """Fails, at the end of all tests of this process, if one of them has left something running."""
    os.environ[MARK] = str(os.getpid())
    yield
    limit = time.monotonic() + 60  # for those that are about to end
    while (left := left_behind()) and time.monotonic() < limit:
        time.sleep(0.1)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, "\n".join(["tests have left processes:", *left.values()])


@pytest.fixture(scope="session", autouse=True)
def _text_is_read_once() -> Iterator[None]:
    """Reads the embedded corpus and its split once for all cells, since either takes half a second for every cell."""
    corpus = cache(lambda read: tuple(read()))
    with pytest.MonkeyPatch.context() as patch:
        read, digest = documents._embedded_documents, documents._digest
        patch.setattr(documents, "_embedded_documents", lambda: iter(corpus(read)))
        patch.setattr(documents, "_digest", cache(digest))
        yield


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of a test run."""
    return run_folder(tmp_path_factory)


@pytest.fixture(scope="session")
def composed(shared_folder: Path) -> Callable[..., Study]:
    """Composes a study once for all tests, which can share it because its values are frozen."""
    return studies(shared_folder)


@pytest.fixture
def tiny_study(tmp_path: Path, composed: Callable[..., Study]) -> Callable[..., Study]:
    """Composes a study of the tiny random model, with all files under the test's own folder."""

    def compose(*overrides: str) -> Study:
        if any(override.startswith("paths.") for override in overrides):
            return composed(*tiny_overrides(tmp_path), *overrides)
        study = composed(*tiny_overrides(Path("anywhere")), *overrides)
        return replace(study, setup=study.setup.model_copy(update={"paths": tiny_paths(tmp_path)}))

    return compose


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Stand-ins for SLURM's commands, before the real ones on PATH."""
    cluster = Cluster(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{cluster.folder / 'bin'}:{os.environ['PATH']}")
    queue.configuration.cache_clear()
    yield cluster
    queue.configuration.cache_clear()
