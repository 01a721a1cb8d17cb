"""The gold check: refuses documents without a right answer before lm-eval scores them 0, or a plausible constant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matquant.errors import UserError

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask, Task


def check_gold(task: Task, limit: int | None) -> None:
    """Refuses a multiple-choice task whose gold answer is missing on a scored document, or the same on all documents.

    `limit`: how many documents, from the first, will be scored; None means all.
    """
    from lm_eval.api.task import ConfigurableTask

    if not isinstance(task, ConfigurableTask) or task.OUTPUT_TYPE != "multiple_choice":
        return
    seen: set[tuple[Any, ...]] = set()
    # Tasks such as blimp put the right choice first by design, and their yaml says so with a number.
    may_be_constant = isinstance(task.config.doc_to_target, int)
    for doc_id, doc in task.doc_iterator():
        if limit is not None and doc_id >= limit and (len(seen) > 1 or may_be_constant):
            return
        gold, num_choices = _gold(task, doc)
        if not gold or any(not isinstance(index, int) or not 0 <= index < num_choices for index in gold):
            raise UserError(
                f"task {task.task_name}: document {doc_id} has no gold answer (got {', '.join(map(repr, gold))} for "
                f"{num_choices} choices; columns {', '.join(doc)}); use a split that is published with its labels"
            )
        seen.add(gold)
    if len(seen) < 2 and not may_be_constant:
        raise UserError(
            f"task {task.task_name}: all documents have the same gold answer ({', '.join(map(str, *seen))}); "
            "use a split that is published with its labels"
        )


def _gold(task: ConfigurableTask, doc: Mapping[str, Any]) -> tuple[tuple[Any, ...], int]:
    """The gold choices of a document as lm-eval finds them, and how many choices there are."""
    choices = task.doc_to_choice(doc)
    # With several inputs and one continuation (WinoGrande) lm-eval takes the answer from doc_to_text.
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    answers: list[Any] = gold if isinstance(gold, list) else [gold]
    return tuple(choices.index(answer) if answer in choices else answer for answer in answers), len(choices)
