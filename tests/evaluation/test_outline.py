"""Groups, tags and overrides are those of lm-eval's own factory, read without it."""

from __future__ import annotations

from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import AggMetricConfig
from lm_eval.config.task import TaskConfig
from lm_eval.tasks import TaskManager, _factory

from evaluation.sources import outline as outlines
from evaluation.sources.features import KEYS, RULE_KEYS, check_features, check_rules
from evaluation.sources.index import whole_index
from evaluation.sources.outline import Leaf, TaskGroup, outline
from evaluation.sources.yaml_files import FunctionName, read_yaml
from matquant.errors import UserError
from tests.own_tasks import write, write_own_tasks

LM_EVAL = Path(lm_eval.tasks.__file__).parent


class Named(ConfigurableTask):
    """A task that is not loaded."""

    def __init__(self, config) -> None:
        self._config, self.given = TaskConfig(task=config["task"], output_type="multiple_choice"), config


@pytest.fixture
def theirs(monkeypatch):
    """lm-eval's factory, which builds no task."""
    monkeypatch.setattr(_factory, "ConfigurableTask", Named)
    return lambda name, *folders: TaskManager(include_defaults=False, include_path=list(folders)).load([name])


def plain(value):
    match value:
        case dict():
            return {key: plain(one) for key, one in value.items() if key not in ("metadata", "tag", "group")}
        case list():
            return [plain(one) for one in value]
        case FunctionName():
            return value.name.rpartition(".")[2]
    return value.__name__ if callable(value) else value


@pytest.mark.parametrize(
    ("name", "folder"), [("mmlu", "mmlu/default"), ("leaderboard_musr", "leaderboard/musr"), ("bbh", "bbh")]
)
def test_groups_of_lm_eval_have_its_members_and_rules(name, folder, theirs):
    ours = outline(name, None, everything=True)
    expected = theirs(name, LM_EVAL / folder)
    leaves = [leaf for one in ours for leaf in ([one] if isinstance(one, Leaf) else one.leaves)]
    assert [leaf.name for leaf in leaves] == list(expected["tasks"])
    for leaf in leaves[:3]:
        assert plain(dict(leaf.config)) == plain(expected["tasks"][leaf.name].given)
    groups = {group.name: group for one in ours if isinstance(one, TaskGroup) for group in one.groups}
    assert groups.keys() == expected["groups"].keys()
    for name, group in groups.items():
        assert [AggMetricConfig(**rule) for rule in group.rules] == (
            expected["groups"][name].aggregate_metric_list or []
        )


def test_ones_own_group_has_the_members_and_overrides_of_lm_eval(tmp_path, theirs):
    folder = write_own_tasks(tmp_path)
    (group,) = outline("mine", str(folder), everything=False)
    assert isinstance(group, TaskGroup)
    expected = theirs("mine", LM_EVAL / "piqa", folder)
    assert [leaf.name for leaf in group.leaves] == list(expected["tasks"]) == ["colors", "seas", "piqa"]
    for leaf in group.leaves:
        assert plain(dict(leaf.config)) == plain(expected["tasks"][leaf.name].given)
    assert [one.name for one in group.groups] == ["mine::inner", "mine"]
    assert {leaf.name: leaf.kind for leaf in group.leaves} == {"colors": "own", "seas": "own", "piqa": "paper"}


def test_the_index_has_the_names_of_lm_evals(tmp_path):
    theirs = TaskManager(include_defaults=False, include_path=[LM_EVAL / "mmlu", LM_EVAL / "arc"])
    ours = whole_index()
    assert len(ours) > 10_000
    assert all(ours[name].kind == "task" for name in theirs.all_subtasks)
    assert all(ours[name].kind == "group" for name in theirs.all_groups)
    assert all(set(theirs.task_index[name].tags) <= set(ours[name].tasks) for name in theirs.all_tags)


def test_a_name_may_be_a_tag_or_a_pattern(tmp_path):
    folder = str(write_own_tasks(tmp_path))
    assert [one.name for one in outline("short", folder, everything=False)] == ["colors", "seas"]
    assert [one.name for one in outline("s[eu]*", folder, everything=False)] == ["seas", "sums"]


def test_known_keys_are_those_of_lm_eval():
    assert set(KEYS) == set(TaskConfig.__dataclass_fields__)
    assert set(RULE_KEYS) == set(AggMetricConfig.__dataclass_fields__)
    assert set(outlines.GROUP_KEYS) == _factory.GROUP_FIELD_NAMES


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        ({"num_fewshots": 3}, r"lm-eval knows no key 'num_fewshots'; did you mean num_fewshot"),
        ({"doc_to_image": "picture"}, r"shows its model images \(doc_to_image\); leave it out of readout.tasks"),
        ({"doc_to_audio": "sound"}, r"shows its model sound"),
        ({"unsafe_code": True}, r"runs code that the model wrote \(unsafe_code\)"),
        ({"output_type": "loglikelihood_rolling", "num_fewshot": 3}, r"scores whole texts.*remove num_fewshot"),
    ],
)
def test_a_yaml_that_asks_for_what_is_not_done_is_refused(yaml, sentence, tmp_path):
    folder = write_own_tasks(tmp_path)
    write(folder, "odd.yaml", {"include": "_choices", "task": "odd", **yaml})
    (leaf,) = outline("odd", str(folder), everything=False)
    assert isinstance(leaf, Leaf)
    with pytest.raises(UserError, match=sentence):
        check_features(leaf)


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        ({"aggregate_metric_list": [{"metric": "acc", "aggregation": "median"}]}, "aggregation: median is no rule"),
        ({"aggregate_metric_list": [{"metric": "acc", "weight_by_sise": True}]}, "did you mean weight_by_size"),
        ({"aggregate_metric_list": {"weight_by_size": True}}, "has no metric"),
        ({"task": []}, r"lists no task; give it `task: \[NAME, ...\]`"),
        ({"task": ["colours"]}, r"lists 'colours', which is not a task of .*did you mean colors"),
        ({"task": [3]}, r"lists 3, which names neither a task nor a group"),
        ({"task": ["mmlu_anatomy"]}, r"'mmlu_anatomy' is not a task of this readout.source.*readout.source=hub"),
    ],
)
def test_a_group_that_cannot_be_is_refused(group, sentence, tmp_path):
    folder = write_own_tasks(tmp_path)
    write(folder, "odd.yaml", {"group": "odd", "task": ["colors"], **group})
    with pytest.raises(UserError, match=sentence):
        check_rules(one for one in outline("odd", str(folder), everything=False) if isinstance(one, TaskGroup))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("colours", r"'colours' is not a task of .*and .* has colors, .*did you mean colors"),
        ("tasks/colors.yaml", r"is a path; .*readout.include_path=tasks readout.tasks=\[colors\]"),
        ("q*", "has a name like 'q\\*'"),
    ],
)
def test_a_name_that_is_no_task_is_refused_with_the_nearest(name, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        outline(name, str(write_own_tasks(tmp_path)), everything=False)


def test_a_file_that_cannot_be_read_is_named_where_its_task_is_missed(tmp_path):
    folder = write_own_tasks(tmp_path)
    (folder / "broken.yaml").write_text("task: [unclosed")
    with pytest.raises(UserError, match=r"broken.yaml cannot be read"):
        outline("broken", str(folder), everything=False)
    for path in folder.glob("*"):
        path.unlink()
    with pytest.raises(UserError, match="holds no yaml file of a task or a group"):
        outline("colors", str(folder), everything=False)
    with pytest.raises(UserError, match="is not a folder"):
        outline("colors", str(folder / "nowhere"), everything=False)


def test_a_yaml_that_includes_itself_is_refused(tmp_path):
    write(tmp_path, "one.yaml", {"include": "one.yaml", "task": "one"})
    with pytest.raises(ValueError, match="includes itself"):
        read_yaml(tmp_path / "one.yaml")
