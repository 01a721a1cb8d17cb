"""lm-eval's index of tasks, read once a process.  lm_eval takes seconds to import and waits for the first question."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.sources.table import PAPER_TASKS

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


@cache
def whole_index() -> TaskManager:
    """Every task of lm-eval: 15 s."""
    import lm_eval.tasks

    return lm_eval.tasks.TaskManager()


@cache
def paper_index() -> TaskManager:
    """The folders of the paper's six tasks: 10 ms."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    folders = dict.fromkeys(root / task.yaml for task in PAPER_TASKS.values())
    return lm_eval.tasks.TaskManager(include_path=list(folders), include_defaults=False)


def index_of(name: str) -> TaskManager:
    """The smaller index that has a task."""
    return paper_index() if name in PAPER_TASKS else whole_index()


def yaml_of(name: str) -> Path:
    """lm-eval's own description of a task."""
    path = index_of(name).task_index[name].yaml_path
    assert path is not None
    return path
