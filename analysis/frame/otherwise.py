"""The numbers of ours that are another quantity than the paper's: a difference between the two would mean nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.frame.summary import task_name
from evaluation.results.metrics import LOG_PPLX, TASK_AVG
from evaluation.sources.table import PAPER_TASKS

if TYPE_CHECKING:
    from analysis.frame.load import LoadedResults
    from evaluation.results.store import Protocol

C4 = "allenai/c4/"
"""The beginning of the name of the text that the paper measures log perplexity on."""


def measured_otherwise(loaded: LoadedResults) -> dict[str, str]:
    """By metric, what ours is where it is another quantity than the paper's: `of PIQA alone`, `of 20 documents a task`.

    The paper reads all documents of six tasks without examples, and C4.
    """
    protocols: dict[str, Protocol] = {}
    for (_, _, task), key in loaded.keys.items():
        protocols.setdefault(task, key.protocol)
    asked = {task: words for task in PAPER_TASKS if (words := _asked_otherwise(protocols.get(task, {})))}
    found = dict(asked)
    if missing := set(PAPER_TASKS) ^ set(loaded.averaged):
        named = ", ".join(task_name(task) for task in loaded.averaged) or "no task"
        found[TASK_AVG] = f"of {named}" + (" alone" if missing <= set(PAPER_TASKS) else "")
    elif asked:
        found[TASK_AVG] = ", ".join(dict.fromkeys(asked.values()))
    text = protocols.get(LOG_PPLX, {})
    data = str(text.get("data", C4))
    if not data.startswith(C4) or text.get("part", "test") != "test":
        found[LOG_PPLX] = f"of {'tuning text of ' if text.get('part') == 'tuning' else ''}{data.rsplit('/', 1)[-1]}"
    return found


def _asked_otherwise(protocol: Protocol) -> str:
    limit, examples = protocol.get("limit"), protocol.get("num_fewshot")
    words = [
        *([f"of the first {limit} documents of each task"] if limit is not None else []),
        *([f"with {examples} examples"] if examples else []),
        *(["with a chat template"] if protocol.get("apply_chat_template") else []),
    ]
    return " ".join(words)
