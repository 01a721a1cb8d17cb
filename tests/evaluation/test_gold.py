"""The gold check: a document without a right answer is refused before it is scored."""

from __future__ import annotations

import pytest

from evaluation.sources.gold import check_gold
from evaluation.sources.loading import load_tasks
from tests.mirrors import PIQA, mirror


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_choice_is_refused_and_never_scored(tmp_path, label):
    with pytest.raises(ValueError, match=f"task piqa: document 5 has no gold answer .got {label} for 2 choices"):
        load_tasks(["piqa"], mirror(tmp_path, "piqa", [*PIQA[:5], {**PIQA[5], "label": label}, *PIQA[6:]]))


def test_only_documents_that_are_scored_need_a_gold_answer(tmp_path):
    source = mirror(tmp_path, "piqa", [*PIQA[:5], {**PIQA[5], "label": -1}])
    task = load_tasks(["piqa"], source, limit=5)["piqa"]
    with pytest.raises(ValueError, match="document 5"):
        check_gold(task, limit=6)


def test_boolq_in_its_original_columns_is_refused_and_never_scored(tmp_path):
    original = [{"question": "is it", "passage": "It is.", "answer": i % 2 == 0} for i in range(4)]
    with pytest.raises(ValueError, match=r"task boolq: document 0 has no gold answer .got 'label'.*columns question"):
        load_tasks(["boolq"], mirror(tmp_path, "boolq", original))


def test_the_same_gold_answer_on_all_documents_is_refused(tmp_path):
    source = mirror(tmp_path, "piqa", [{**doc, "label": 0} for doc in PIQA])
    with pytest.raises(ValueError, match="task piqa: all documents have the same gold answer"):
        load_tasks(["piqa"], source, limit=2)


def test_the_same_gold_answer_on_the_few_documents_that_are_scored_is_no_reason_to_refuse(tmp_path):
    assert list(load_tasks(["piqa"], mirror(tmp_path, "piqa", PIQA), limit=1)) == ["piqa"]
