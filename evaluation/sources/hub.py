"""Documents from the Hugging Face hub, or its local cache, as lm-eval loads them itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from evaluation.sources.table import PAPER_TASKS, ArcSplit, scored_split
from matquant.models.hub import settle


@dataclass(frozen=True)
class HubSource:
    """Any task of lm-eval, over the documents that its yaml names."""

    arc_split: ArcSplit = "test"
    kind: ClassVar[str] = "hub"

    def split(self, task_name: str) -> str:
        return scored_split(task_name, self.arc_split)

    def revision(self, task_name: str) -> str:
        """The revision of one of the paper's tasks, as `path/name@commit/split`."""
        return f"{_dataset(task_name)}@{commit_of(PAPER_TASKS[task_name].dataset)}/{self.split(task_name)}"

    def can_be(self, task_name: str, revision: str) -> bool:
        """True for any commit of the documents of one of the paper's tasks."""
        return re.fullmatch(f"{re.escape(_dataset(task_name))}@[^@/]+/{self.split(task_name)}", revision) is not None


def _dataset(task_name: str) -> str:
    known = PAPER_TASKS[task_name]
    return "/".join(part for part in (known.dataset, known.subset) if part)


@cache
def commit_of(path: str) -> str:
    """The commit that `main` of a dataset stands for: as the hub says, else as the local cache says, else `main`."""
    import huggingface_hub
    from huggingface_hub import constants

    settle()
    try:
        commit = huggingface_hub.HfApi().dataset_info(path, timeout=5).sha
    except Exception:  # of any kind (offline, proxy, gated): without an answer of the hub, the cache is asked
        main = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}" / "refs" / "main"
        commit = main.read_text().strip() if main.is_file() else None
    return commit or "main"
