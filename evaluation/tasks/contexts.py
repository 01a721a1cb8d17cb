"""Documents of tasks that are longer than a model: lm-eval cuts them from the left without a word.

A model that has not read the start of a passage is asked something else.  Such documents are refused by task and
number, before the model is run; `readout.cut_contexts=true` measures them as lm-eval does, as a protocol of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from evaluation.asked import asked_tasks, facts_of, num_fewshot, prompting, wanted
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

    from evaluation.sources.outline import Leaf

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
    leaves = asked_tasks(readout).leaves
    if not leaves:
        return
    check_chat(cell, readout, cache=cache)
    config = config_of(cell.model, cache=cache)
    longest = longest_text(config)
    if longest is None:
        return
    doubtful = [
        leaf for leaf in leaves.values() if not _is_short(leaf, readout, longest, config.get_text_config().vocab_size)
    ]
    if not doubtful:
        return
    from evaluation.lm_eval_patches import build_requests_once

    tokenizer = tokenizer_of(cell.model, cache=cache)
    found = {}
    for leaf in doubtful:
        task = loaded_task(wanted(leaf, readout, task_source(readout)), readout.limit)
        build_requests_once(task, limit=readout.limit, prompting=prompting(readout), tokenizer=tokenizer)
        found[leaf.name] = cut_documents(task, tokenizer, max_length=longest, add_bos=cell.sets_bos)
    check_cut(found, readout, model=title(cell.model), max_length=longest)


def _is_short(leaf: Leaf, readout: Readout, longest: int, vocabulary: int) -> bool:
    """True if every document of a task fits into a model, by what is known before it is loaded."""
    if set(facts_of(leaf, readout)) != {"num_fewshot"} or num_fewshot(leaf, readout):
        return False  # with examples, in a chat, or by another yaml
    bytes_a_token = BYTES_A_TOKEN if vocabulary >= MANY_TOKENS else 1
    return leaf.kind == "paper" and PAPER_TASKS[leaf.name].num_bytes < bytes_a_token * longest


def check_chat(cell: Cell, readout: Readout, *, cache: Path) -> None:
    """Refuses a chat template where a model has none, or where it has no place for the system prompt.

    lm-eval drops the system prompt in the second case, with a warning among others.
    """
    if not readout.apply_chat_template:
        return
    tokenizer = tokenizer_of(cell.model, cache=cache)
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(
            f"{title(cell.model)} has no chat template, or several without a default; leave "
            "readout.apply_chat_template out"
        ) from error
    if readout.system_instruction is None:
        return
    said = [
        {"role": "system", "content": readout.system_instruction},
        {"role": "user", "content": "?"},
    ]
    try:
        shown = readout.system_instruction.strip() in tokenizer.apply_chat_template(
            said, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except TemplateError:
        shown = False
    if not shown:
        raise UserError(
            f"the chat template of {title(cell.model)} has no place for readout.system_instruction; leave "
            "readout.system_instruction out"
        )
