"""A full disk is one sentence with the path, whichever library met it, and the same command goes on afterwards."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from evaluation.stages import run_cell
from matquant.command.terminal import ended
from matquant.config.study import Study
from matquant.disk import in_words, writing
from matquant.errors import DiskFullError, UserError
from matquant.runs.folder import RunDir
from matquant.runs.status import read_status
from tests.tiny import TINY_OMNIQUANT

TINY_QAT = ("base=qat", "base.num_steps=2", "base.batch_size=2", "base.warmup_steps=0", "save_every_min=0")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
SAFETENSORS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def in_torch() -> CheckpointException:
    """The error of torch's checkpoints, which keep the number of the first one in its context."""
    later = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
    later.__context__ = FULL
    return CheckpointException("ranks", {0: (later, None)})  # pyright: ignore[reportArgumentType]


def failing_from(number: int, real: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """A function that works until its `number`-th call, and fails from then on."""
    calls: list[None] = []

    def call(*arguments: Any, **keywords: Any) -> Any:
        calls.append(None)
        if len(calls) >= number:
            raise error
        return real(*arguments, **keywords)

    return call


def outcome(study: Study) -> dict[str, Any]:
    """Everything that is measured, and the bits of the checkpoint."""
    (cell,) = study.cells
    checkpoint = RunDir(study.setup.paths.runs, cell.id).checkpoint / "nested.safetensors"
    documents = sorted(study.setup.paths.results.glob("*/*/*.parquet"))
    return {path.name: path.read_bytes() for path in [checkpoint]} | {
        f"{path.parent.name}/{path.name}": path.read_bytes() for path in documents
    }


@pytest.fixture(scope="module")
def undisturbed() -> dict[tuple[str, ...], dict[str, Any]]:
    return {}


@pytest.mark.parametrize(
    ("overrides", "what", "number", "error", "stage", "place"),
    [
        (
            TINY_OMNIQUANT,
            "matquant.runs.checkpoint.save_file",
            2,
            SAFETENSORS,
            "train",
            "layers.1.safetensors",
        ),
        (TINY_OMNIQUANT, "matquant.runs.checkpoint.save_file", 3, SAFETENSORS, "train", "nested.safetensors"),
        (TINY_OMNIQUANT, "pyarrow.parquet.write_table", 2, FULL, "evaluate", ".parquet"),
        (TINY_OMNIQUANT, "json.dumps", 40, FULL, "train", ""),
        ((*TINY_OMNIQUANT, "activations=disk"), "os.posix_fallocate", 2, FULL, "train", "state/"),
        (TINY_QAT, "matquant.parallel.sharding.save", 1, in_torch(), "train", "state/step-00000001"),
    ],
    ids=["piece", "checkpoint", "documents", "anywhere", "activations", "training state"],
)
def test_a_cell_on_a_full_disk_says_where_and_goes_on_to_the_same_bits(
    overrides, what, number, error, stage, place, tiny_study, monkeypatch, undisturbed, tmp_path
):
    study = tiny_study(*overrides)
    (cell,) = study.cells
    module, _, name = what.rpartition(".")
    with monkeypatch.context() as patch:
        real = getattr(__import__(module, fromlist=[name]), name)
        patch.setattr(what, failing_from(number, real, error))
        with pytest.raises(DiskFullError) as raised:
            run_cell(cell, study.setup)
    if place:
        key = "paths.results" if stage == "evaluate" else "paths.runs"
        pattern = rf"no space left on \S*{re.escape(place)}\S*: make room, and the same command .*set {key} to a disk"
        assert re.search(pattern, str(raised.value)), raised.value
        status = read_status(RunDir(study.setup.paths.runs, cell.id).status(stage))
        assert status is not None
        assert (status.state, status.reason) == ("failed", "disk full")
        assert status.message == str(raised.value)
    assert not list(tmp_path.rglob("*.tmp"))
    run_cell(cell, study.setup)
    again = outcome(study)
    if overrides not in undisturbed:
        undisturbed[overrides] = again
        return
    assert again == undisturbed[overrides]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left on"),
        (errno.EDQUOT, "the disk quota is used up at"),
        (errno.EFBIG, "became larger than"),
        (errno.EROFS, "is on a read-only disk"),
        (errno.EACCES, "no permission for"),
    ],
)
def test_every_way_a_disk_refuses_is_one_line_with_the_path(number, words, tmp_path, capsys):
    def work() -> None:
        with writing(tmp_path / "out" / "page.html"):
            raise OSError(number, os.strerror(number))

    assert ended(work) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert "page.html" in line
    assert "paths.cache" in line


def test_the_key_of_the_folder_is_named_where_it_is_known(tmp_path):
    with (
        pytest.raises(UserError, match=r"set paths\.out to"),
        in_words({"runs": tmp_path / "runs", "out": tmp_path / "out"}),
    ):
        raise OSError(errno.ENOSPC, "", str(tmp_path / "out" / "page.html"))


@pytest.mark.parametrize("error", [KeyError("a"), FileNotFoundError(errno.ENOENT, "", "a"), RuntimeError("our bug")])
def test_every_other_error_stays_what_it_is(error):
    with pytest.raises(type(error)) as raised, in_words(), writing(Path("a")):
        raise error
    assert raised.value is error


def test_an_error_that_comes_before_itself_is_looked_at_once():
    full, other = OSError(errno.ENOSPC, "No space left on device"), ValueError("in between")
    other.__cause__, full.__cause__ = full, other
    with pytest.raises(DiskFullError, match="no space left on a disk"), in_words():
        raise other
    other.__cause__ = other
    with pytest.raises(ValueError, match="in between"), in_words():
        raise other
