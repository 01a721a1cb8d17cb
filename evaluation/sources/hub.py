"""Documents from the Hugging Face hub, or its local cache, as lm-eval loads them itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from evaluation.sources.index import whole_index
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
        """The revision as `path/name@commit/split`; `hub` for a task written in Python, whose dataset is not known."""
        if (known := PAPER_TASKS.get(task_name)) is not None:
            path, subset = known.dataset, known.subset
        else:
            entry = whole_index().task_index.get(task_name)
            config = (entry.cfg if entry else None) or {}
            path, subset = config.get("dataset_path"), config.get("dataset_name")
        if path is None:
            return "hub"
        dataset = "/".join(part for part in (path, subset) if part)
        split = f"/{self.split(task_name)}" if known is not None else ""
        return f"{dataset}@{commit_of(path)}{split}"

    def can_be(self, task_name: str, revision: str) -> bool:
        """True for any commit of the task's documents; of a task beyond the paper's six the data set is not checked."""
        if (known := PAPER_TASKS.get(task_name)) is None:
            return revision == "hub" or re.fullmatch(r"[^/@][^@]*@[^@/]+", revision) is not None
        dataset = "/".join(part for part in (known.dataset, known.subset) if part)
        return re.fullmatch(f"{re.escape(dataset)}@[^@/]+/{self.split(task_name)}", revision) is not None


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
