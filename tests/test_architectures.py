"""Every architecture we name goes the whole line: trained, saved, read at every slice, evaluated."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import run
from evaluation.results import ResultStore
from matquant.checkpoint import load_checkpoint
from matquant.config import Study
from matquant.models import blocks, linears, load_model
from matquant.nested import materialize
from matquant.notation import Plan
from matquant.runs import RunDir
from tests.tiny import TINY_GPTQ, TINY_OMNIQUANT, tiny_paths

# What an architecture needs beside the sizes of conf/model/tiny.yaml.
ARCHITECTURES = {
    "llama": [],
    "mistral": ["+model.config.sliding_window=8"],
    "qwen3": ["+model.config.head_dim=8"],
    # Alternating sliding and full attention, four norms, soft-capping, tied embeddings, BOS.
    "gemma2": [
        *("+model.config.head_dim=8", "+model.config.sliding_window=8", "+model.config.query_pre_attn_scalar=8"),
        "model.add_bos=true",
    ],
    # Fused gate_up_proj and qkv_proj.
    "phi3": ["+model.config.pad_token_id=0"],
}
TINY_QAT = ("base=qat", "base.num_steps=2", "base.batch_size=2", "base.compute_dtype=float32")
BASES = {
    "omniquant": (*TINY_OMNIQUANT, "base.transformation=true"),
    "qat": (*TINY_QAT, "base.train_scales=true"),
    "gptq": TINY_GPTQ,
}


SCOPES = ("ffn", "ffn_attention")


@pytest.fixture
def line(tiny_study, shared_folder):
    """The study of one architecture, algorithm and scope; those of an architecture share a folder."""

    def study(architecture: str, base: str, scope: str) -> Study:
        study = tiny_study(
            *(f"model.architecture={architecture}", *ARCHITECTURES[architecture], *BASES[base], f"scope={scope}"),
            *("extra_bit=on", "readout.tasks=[]", "readout.plans=[int8,int4,int2,pyramid@4]"),
            "distill=none" if base == "gptq" else "distill=8to2",
        )
        paths = tiny_paths(shared_folder / "architectures" / architecture)
        return replace(study, setup=study.setup.model_copy(update={"paths": paths}))

    return study


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_goes_the_whole_line(line, architecture, base, scope):
    study = line(architecture, base, scope)
    (cell,) = study.cells
    run.run_cell(cell, study.setup)
    results = list(ResultStore(study.setup.paths.results).results(cell.id))
    assert {result.plan for result in results} == {"int8", "int4+ep", "int2+ep", "pyramid@4+ep"}
    assert all(5 < result.metrics["log_pplx"] < 6 for result in results)  # a random model guesses one of 257 bytes

    folder = RunDir(study.setup.paths.runs, cell.id).checkpoint
    stored = json.loads((folder / "nested.json").read_text())["layers"]
    model = load_model(cell.model, cache=study.setup.paths.cache, dtype="float32", device=torch.device("cpu")).model
    per_block = len(linears(blocks(model)[0], scope))
    assert (
        per_block
        == {"ffn": 2 if architecture == "phi3" else 3, "ffn_attention": 4 if architecture == "phi3" else 7}[scope]
    )
    assert len(stored) == 2 * per_block

    checkpoint, tokens, logits = load_checkpoint(folder, cell), torch.arange(24)[None], {}
    for plan in ("int8", "int4+ep", "int2+ep", "int8"):
        with torch.no_grad():
            output = materialize(model, checkpoint.layers, Plan.parse(plan))(input_ids=tokens).logits
        assert output.isfinite().all()
        assert torch.equal(output, logits.setdefault(plan, output))
    assert len({tuple(output.flatten().tolist()) for output in logits.values()}) == 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_has_a_report_of_everything_that_was_measured(line, architecture, monkeypatch, capsys):
    monkeypatch.setattr("analysis.report.FORMS", ("svg",))  # the other forms have tests of their own
    studies = [line(architecture, base, scope) for base in BASES for scope in SCOPES]
    study = replace(studies[0], cells=tuple(cell for one in studies for cell in one.cells))
    run.run_study(study, [])
    printed = capsys.readouterr().out
    assert "results are not measured yet" not in printed
    assert "problem: " not in printed
    page = (study.setup.paths.out / study.name / "report.html").read_text(encoding="utf-8")
    assert all(cell.id in page for cell in study.cells)
