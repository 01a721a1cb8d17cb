"""Names: what cannot be a folder, or a project of W&B, is refused where it is typed, with a name that can."""

from __future__ import annotations

import json
import re

import pytest

from matquant.config.compose import CONF
from matquant.config.names import MAX_LENGTH, require_name, suggestion
from matquant.config.study import load_study
from matquant.errors import UserError

QUIET = ["model=tiny", "base=none"]


@pytest.mark.parametrize(
    ("typed", "remedy"),
    [
        ("model.name=google/gemma", "model.name=gemma"),
        ("model.name=my:model", "model.name=my_model"),
        ("model.name=../../escape", "model.name=escape"),
        (f"model.name={'x' * 250}", f"model.name={'x' * MAX_LENGTH}"),
        ("model.name=", "model.name=my_model"),
        ("model.name=null", "model.name=my_model"),
        ("model.name=true", None),
        ("model.name=123", None),
        ("model.name='123'", None),
        ("model.name=..", "model.name=my_model"),
        ("model.name=-rf", "model.name=rf"),
        ("model.name=.hidden", "model.name=hidden"),
        ("model.name=dot.", "model.name=dot"),
        ("model.name='two words'", "model.name=two_words"),
        ("model.name='grün'", "model.name=grun"),
        ("model.name='猫'", "model.name=my_model"),
        ("model.name=[a,b]", "model.name=model_a_b"),
        ("model.name=Qwen3-0.6B", None),
        ("name=a/b", "name=b"),
        ("name=12", None),
        ("name=null", "name=my_study"),
        ("tracking.project=team/project", "tracking.project=project"),
        ("tracking.project=", "tracking.project=my_project"),
        ("tracking.project=null", "tracking.project=my_project"),
        (f"tracking.project={'p' * 129}", f"tracking.project={'p' * MAX_LENGTH}"),
        ("tracking.entity=a:b", "tracking.entity=a_b"),
        ("tracking.entity=5", None),
        ("tracking.entity='my team'", None),
        ("tracking.entity=null", None),
    ],
)
def test_a_name_that_cannot_be_is_one_sentence_whose_remedy_can_be_typed(typed, remedy):
    if remedy is None:
        load_study([*QUIET, typed])
        return
    with pytest.raises(UserError) as raised:
        load_study([*QUIET, typed])
    message = str(raised.value)
    assert message.startswith(f"{typed.partition('=')[0]}=")
    assert message.endswith(f"; write {remedy}")
    assert "\n" not in message
    load_study([*QUIET, remedy])


def test_every_name_that_comes_with_the_source_is_a_good_one():
    texts = [path.read_text() for path in CONF.rglob("*.yaml")]
    names = [name for text in texts for name in re.findall(r"^\s*name: ([^?#$\s]\S*)", text, re.MULTILINE)]
    assert "smollm2_135m" in names
    for name in names:
        require_name("model.name", name)


@pytest.mark.parametrize(
    "value", ["a" * 300, "/" * 300, "..", "ﬁ/ﬁ", "- -", "\n", "a\nb", "1e5", "nan", None, 1.5, "CON:"]
)
@pytest.mark.parametrize("kind", ["model", "study"])
def test_a_suggestion_is_always_a_good_name(value, kind):
    require_name("name", suggestion(value, kind))


def test_a_plan_file_has_a_name_that_a_folder_can_have(tmp_path):
    layers = json.dumps({"layers": {"model.layers.0.mlp.up_proj": "int4"}})
    for stem, renamed in (("evolution_linear@3-1f3a9c0d", None), ("my plan", "my_plan"), ("x" * 200, "x" * MAX_LENGTH)):
        (tmp_path / f"{stem}.json").write_text(layers)
        overrides = [*QUIET, f"readout.plans=['{tmp_path}/{stem}.json']"]
        if renamed is None:
            load_study(overrides)
        else:
            with pytest.raises(UserError, match=rf"rename the file to {renamed}\.json$"):
                load_study(overrides)
