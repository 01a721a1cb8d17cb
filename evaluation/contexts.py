"""Documents of tasks that are longer than a model: lm-eval cuts them from the left without a word.

A model that has not read the start of a passage is asked something else.  Such documents are refused by task and
number, before the model is run; `readout.cut_contexts=true` measures them as lm-eval does, as a protocol of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.protocol import task_source
from evaluation.sources.loading import loaded_task
from evaluation.sources.table import PAPER_TASKS
from matquant.config.cell import Cell
from matquant.config.setup import Readout
from matquant.errors import UserError
from matquant.models.checks import longest_text, title
from matquant.models.loading import config_of, tokenizer_of

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from transformers import PreTrainedTokenizerBase

BYTES_A_TOKEN = 2.5
"""The fewest bytes of English that tokenizers of `MANY_TOKENS` put into one on average; four are usual."""
MANY_TOKENS = 8192
GENERATED = 256
"""The tokens that lm-eval generates where a task does not say how many."""


class Cut(NamedTuple):
    """The documents of a task that are longer than the model, and the tokens of the longest with one of its answers."""

    documents: Collection[Any]
    num_documents: int
    longest: int
    longest_answer: int
    """The tokens of the longest answer to one of these documents."""


def cut_documents(task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int, add_bos: bool) -> Cut:
    """The documents of a task, with its requests built, that do not fit into a model with one of their answers."""

    @cache
    def length_of(text: str, *, with_bos: bool) -> int:
        return len(tokenizer(text, add_special_tokens=with_bos, verbose=False)["input_ids"])

    documents, longest, longest_answer = set[Any](), 0, 0
    for instance in task.instances:
        given: Any = instance.args
        match instance.request_type:
            case "loglikelihood":
                text, more = "".join(given), -1  # the last token of an answer is only predicted
            case "generate_until":
                text, more = given[0], int(given[1].get("max_gen_toks", GENERATED))
            case _:  # rolling windows leave nothing out
                continue
        if len(text.encode()) + int(add_bos) + more <= max_length:
            continue  # no token is shorter than a byte
        if (length := length_of(text, with_bos=add_bos) + more) > max_length:
            documents.add(instance.doc_id)
            longest = max(longest, length)
            answer = more if more > 0 else length_of(given[1], with_bos=False)
            longest_answer = max(longest_answer, answer)
    return Cut(documents, len({instance.doc_id for instance in task.instances}), longest, longest_answer)


def check_cut(cut: Mapping[str, Cut], readout: Readout, *, model: str, max_length: int) -> None:
    """Refuses tasks with documents that would be cut, unless the read-out allows it, and with answers that would be."""
    takes = f"longer than the {max_length} tokens that {model} takes"
    for name, found in cut.items():
        if found.longest_answer >= max_length:
            raise UserError(
                f"an answer of {found.longest_answer} tokens in {name} is {takes}; leave {name} out of readout.tasks"
            )
        if found.documents and not readout.cut_contexts:
            raise UserError(
                f"{len(found.documents)} of {found.num_documents} documents of {name} are {takes} (up to "
                f"{found.longest}), and would be cut from the left; leave {name} out of readout.tasks, or set "
                "readout.cut_contexts=true to measure them cut"
            )


def check_contexts(cell: Cell, readout: Readout, *, cache: Path) -> None:
    """Refuses, before a model is loaded, tasks with documents that are longer than it; few need to be read for that."""
    if not readout.tasks:
        return
    config = config_of(cell.model, cache=cache)
    longest = longest_text(config)
    if longest is None:
        return
    doubtful = list(_doubtful(readout.tasks, longest, config.get_text_config().vocab_size))
    if not doubtful:
        return
    from evaluation.lm_eval_patches import build_requests_once

    tokenizer = tokenizer_of(cell.model, cache=cache)
    found = {}
    for name in doubtful:
        task = loaded_task(name, task_source(readout), readout.limit)
        build_requests_once(task, limit=readout.limit)
        found[name] = cut_documents(task, tokenizer, max_length=longest, add_bos=cell.sets_bos)
    check_cut(found, readout, model=title(cell.model), max_length=longest)


def _doubtful(names: Iterable[str], longest: int, vocabulary: int) -> Iterable[str]:
    """The tasks of which some document may be longer than a model, by what is known of them before they are loaded."""
    bytes_a_token = BYTES_A_TOKEN if vocabulary >= MANY_TOKENS else 1
    for name in names:
        if name not in PAPER_TASKS or PAPER_TASKS[name].num_bytes >= bytes_a_token * longest:
            yield name
