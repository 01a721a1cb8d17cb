"""Every line that patches, silences or works around lm-eval, and for each the version that it is for and the reason.

lm-eval has no switch for these things.  A patch rests on lines of lm-eval's own source: it quotes them, refuses to work
with another version, and `tests/evaluation/test_lm_eval_patches.py` fails with its name where a quoted line is gone.
To move to a new version: change the pin in pyproject.toml, run that test, read what it names, then raise the versions
here.

lm_eval takes seconds to import and is imported by the functions that need it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, metadata
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from evaluation.sources.yaml_files import FunctionName
from matquant.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date
    from pathlib import Path

    from lm_eval.api.task import Task

    from evaluation.asked import Prompting


@dataclass(frozen=True)
class Patch:
    """One thing that is changed in lm-eval.  `quotes`: for each of its modules, the lines on which the patch rests."""

    name: str
    version: str
    why: str
    quotes: Mapping[str, tuple[str, ...]]

    def require(self) -> None:
        """Refuses another version of lm-eval than the one that the patch is for."""
        installed = metadata.version("lm_eval")
        if installed != self.version:
            raise UserError(
                f"lm-eval {installed} is installed, and evaluation/lm_eval_patches.py ({self.name}) is for "
                f"{self.version}; run: pip install lm-eval=={self.version}"
            )


QUIET = Patch(
    name="quiet loggers",
    version="0.4.13",
    why="Loading and scoring a task logs a dozen lines, and warns of things that are intended.",
    quotes={
        "lm_eval.api.task": (
            "Custom kwargs can be passed",  # advice on --metadata, given for every dataset that is a function
            "num_fewshot > 0 but fewshot_split is None",  # documents of one split are their own examples on purpose
            "is defined, but aggregation is not",  # boolq's yaml leaves it to the default, the mean
            "is defined, but higher_is_better is not",  # the same
        ),
        "lm_eval.models.huggingface": (
            "`pretrained` model kwarg is not of type `str`",  # the model is in memory on purpose
            "Passed an already-initialized model",  # the same
        ),
    },
)
"""The quoted lines are the warnings that are dropped."""
NO_BARS = Patch(
    name="no bars of lm-eval's",
    version="0.4.13",
    why="lm-eval shows three bars without a label for a task; each of its modules has a `tqdm` of its own.",
    quotes=dict.fromkeys(
        ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface"), ("from tqdm import tqdm",)
    ),
)
NO_DATASET_BARS = Patch(
    name="no bars of datasets",
    version="0.4.13",
    why="A task's `process_docs` maps its documents with datasets, which shows a bar, however few they are.",
    quotes={"lm_eval.tasks.hellaswag.utils": ("dataset.map(",)},
)
ONE_TASK = Patch(
    name="a task with other fields",
    version="0.4.13",
    why="`TaskManager` reads all of its folders (15 s) before it builds one task; its factory builds it from a yaml.",
    quotes={
        "lm_eval.tasks._factory": (
            "def _build_task(self, entry: Entry, overrides: dict[str, Any] | None) -> Task:",
            "cfg = deepcopy(load_yaml(entry.yaml_path, resolve_func=True))",
            "children.append(ConfigurableTask(config=task_cfg))",  # a task without a yaml of its own
        ),
        "lm_eval.tasks._yaml_loader": ("def _import_func_in_yml(qual: str, base_dir: Path):",),
    },
)
PROCESSED_ONCE = Patch(
    name="documents processed once",
    version="0.4.13",
    why="`process_docs` is applied on every pass over the documents, three times an evaluation whatever the limit. "
    "For documents in memory it is not cached (HellaSwag: 1 s a pass).",
    quotes={
        "lm_eval.api.task": (
            "return self.config.process_docs(self.dataset[self.config.test_split])",
            "return self.dataset[self.config.test_split]",
            "return self.dataset[self.config.validation_split]",
        )
    },
)
REQUESTS_ONCE = Patch(
    name="requests built once",
    version="0.4.13",
    why="`evaluate` builds the requests of a task anew for every model; they are the same for all read-outs.",
    quotes={
        "lm_eval.evaluator": ("task.build_all_requests(", "for instance in task.instances:"),
        "lm_eval.api.instance": ("resps: list = field", "filtered_resps: dict = field"),
    },
)
SHARED_CONTEXTS = Patch(
    name="shared contexts",
    version="0.4.13",
    why="`language_model.SharedContextLM` overrides two private methods of HFLM: `_encode_pair` remembers the tokens "
    "of a pair, `_loglikelihood_tokens` puts the answers of a document into one row.",
    quotes={
        "lm_eval.api.model": (
            "context_enc, continuation_enc = self._encode_pair(context, continuation)",
            "new_reqs.append(((context, continuation), context_enc, continuation_enc))",
            "return self._loglikelihood_tokens(new_reqs, disable_tqdm=disable_tqdm)",
        ),
        "lm_eval.models.huggingface": ("def _loglikelihood_tokens(", "self.softmax_dtype = ("),
    },
)
CHATS = Patch(
    name="chats without a model",
    version="0.4.13",
    why="Prompts are built and measured before a model is loaded; lm-eval's method looks at two fields of its model.",
    quotes={"lm_eval.models.huggingface": ("chat_templated = self.tokenizer.apply_chat_template(",)},
)
SAME_DAY = Patch(
    name="templates without a clock",
    version="0.4.13",
    why="Templates of Llama 3.2 and others write today's date into every prompt; transformers takes no other function.",
    quotes={"transformers.utils.chat_template_utils": ("return datetime.now().strftime(format)",)},
)
GROUPS = Patch(
    name="groups without tasks",
    version="0.4.13",
    why="A group's score is made of results on disk, without loading its tasks; lm-eval's group asks them for names.",
    quotes={"lm_eval.api.group": ("leaf_tasks = [t.task_name for t in self.get_all_tasks()]",)},
)
PATCHES = (
    QUIET,
    NO_BARS,
    NO_DATASET_BARS,
    ONE_TASK,
    PROCESSED_ONCE,
    REQUESTS_ONCE,
    SHARED_CONTEXTS,
    CHATS,
    SAME_DAY,
    GROUPS,
)


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Holds lm-eval's loggers at WARNING, and drops the warnings that QUIET quotes."""
    QUIET.require()

    def keep(record: logging.LogRecord) -> bool:
        return not any(part in record.getMessage() for part in QUIET.quotes[record.name])

    everything, level = logging.getLogger("lm_eval"), logging.getLogger("lm_eval").level
    everything.setLevel(logging.WARNING)
    for name in QUIET.quotes:
        logging.getLogger(name).addFilter(keep)
    try:
        yield
    finally:
        everything.setLevel(level)
        for name in QUIET.quotes:
            logging.getLogger(name).removeFilter(keep)


def _silent(iterable: Iterable[Any] | None = None, **_: Any) -> Any:
    """Stands in for `tqdm` inside lm-eval."""
    return tqdm(disable=True) if iterable is None else iterable


@contextmanager
def no_bars() -> Iterator[None]:
    """Takes `tqdm` away from lm-eval."""
    NO_BARS.require()
    modules = [vars(import_module(name)) for name in NO_BARS.quotes]
    for module in modules:
        module["tqdm"] = _silent
    try:
        yield
    finally:
        for module in modules:
            module["tqdm"] = tqdm


@contextmanager
def no_dataset_bars() -> Iterator[None]:
    """Keeps datasets from showing a bar for whatever it maps or writes."""
    import datasets

    NO_DATASET_BARS.require()
    were_disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            datasets.enable_progress_bars()


def build_task(name: str, path: Path | None, overrides: Mapping[str, Any]) -> Task:
    """lm-eval's own task of a yaml with some fields replaced, or of these fields alone."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._factory import TaskFactory
    from lm_eval.tasks._index import Entry, Kind

    ONE_TASK.require()
    fields = {**overrides, "task": name}
    if path is None:
        known = {key: value for key, value in fields.items() if key != "tag"}
        return ConfigurableTask(config={**known, "metadata": fields.get("metadata", {})})
    return TaskFactory()._build_task(Entry(name=name, kind=Kind.TASK, yaml_path=path), fields)


def resolved(value: Any) -> Any:
    """A value with its functions imported, as lm-eval imports them."""
    if isinstance(value, FunctionName):
        from lm_eval.tasks._yaml_loader import _import_func_in_yml

        ONE_TASK.require()
        return _import_func_in_yml(value.name, value.folder)
    if isinstance(value, Mapping):
        return {key: resolved(one) for key, one in value.items()}
    return [resolved(one) for one in value] if isinstance(value, list) else value


def keep_processed_documents(task: Task, split: str) -> None:
    """Gives a task its processed documents for good, as its only split."""
    from lm_eval.api.task import ConfigurableTask

    PROCESSED_ONCE.require()
    assert isinstance(task, ConfigurableTask)
    task.dataset = {split: task.task_docs}
    task.set_config("process_docs", None)


class _Built:
    """Stands in for a task's `build_all_requests` once they are built: empties the answers of the last model."""

    def __init__(self, task: Task, *facts: object) -> None:
        self.task, self.facts = task, facts

    def __call__(self, **_: Any) -> None:
        for instance in self.task.instances:
            instance.resps, instance.filtered_resps = [], {}


def chat_template(tokenizer: Any, day: date) -> Callable[..., str]:
    """lm-eval's own way to write a conversation as text, without its model, on some day."""
    from lm_eval.models.huggingface import HFLM

    CHATS.require()
    looked_at: Any = SimpleNamespace(tokenizer=tokenizer, chat_template_args={})

    def applied(*args: Any, **kwargs: Any) -> str:
        with _every_day_is(day):
            return HFLM.apply_chat_template(looked_at, *args, **kwargs)

    return applied


@contextmanager
def _every_day_is(day: date) -> Iterator[None]:
    """Tells templates that ask for the date this one."""
    SAME_DAY.require()
    templates: Any = import_module("transformers.utils.chat_template_utils")
    clock, templates.datetime = templates.datetime, SimpleNamespace(now=lambda: day)
    try:
        yield
    finally:
        templates.datetime = clock


def build_requests_once(task: Task, *, limit: int | None, prompting: Prompting, tokenizer: Any | None) -> None:
    """Builds the requests of a task, unless they are built for this limit, form and chat template.

    The task's configuration says how many examples it has.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    REQUESTS_ONCE.require()
    chat = tokenizer if prompting.apply_chat_template else None
    assert chat is not None or not prompting.apply_chat_template
    facts = (limit, prompting, chat)
    built = vars(task).get("build_all_requests")
    if isinstance(built, _Built) and built.facts == facts:
        return
    vars(task).pop("build_all_requests", None)
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    with quiet_lm_eval(), no_bars():
        task.build_all_requests(
            limit=limit,
            rank=0,
            world_size=1,
            chat_template=None if chat is None else chat_template(chat, prompting.day),
            **prompting._asdict(),
        )
    vars(task)["build_all_requests"] = _Built(task, *facts)


def offline_environment() -> dict[str, str]:
    """The environment of an lm-eval process that must not ask the hub."""
    return {**os.environ, "HF_HUB_OFFLINE": "1"}
