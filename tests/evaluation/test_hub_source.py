"""The hub: its commit names the documents, and a hub out of reach is one sentence."""

from __future__ import annotations

from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants

from evaluation.sources.hub import HubSource, commit_of
from evaluation.sources.loading import load_tasks
from evaluation.sources.table import SPLITS


def test_the_revision_of_the_hub_is_a_commit_from_the_hub_or_else_the_cache(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise OSError("no network")

    commit_of.cache_clear()
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="c0ffee"))
    assert HubSource().revision("arc_easy") == "allenai/ai2_arc/ARC-Easy@c0ffee/test"

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    main = tmp_path / "datasets--baber--piqa" / "refs" / "main"
    main.parent.mkdir(parents=True)
    main.write_text("facade")
    assert HubSource().revision("piqa") == "baber/piqa@facade/validation"
    assert HubSource().revision("hellaswag") == "Rowan/hellaswag@main/validation"
    commit_of.cache_clear()


def test_an_unreachable_hub_is_one_sentence_with_the_alternatives(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'baber/piqa' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"task piqa: .*hub cannot be reached.*=embedded, or readout.source=folder"):
        load_tasks(["piqa"], HubSource())


@pytest.mark.parametrize("arc_split", ["test", "validation"])
def test_the_split_of_arc_can_be_chosen_on_the_hub(monkeypatch, arc_split):
    def arc(split: str) -> datasets.Dataset:
        choices = {"text": ["a", "b"], "label": ["A", "B"]}
        return datasets.Dataset.from_list(
            [{"id": split, "question": "?", "choices": choices, "answerKey": key} for key in "AB"]
        )

    splits = datasets.DatasetDict({split: arc(split) for split in SPLITS})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    task = load_tasks(["arc_easy"], HubSource(arc_split))["arc_easy"]
    assert {doc["id"] for doc in task.eval_docs} == {arc_split}
