"""Every architecture we name goes the whole line: trained, saved, read at every slice, evaluated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import run
from evaluation.results.store import ResultStore
from matquant.algorithms.calibration import suited_to
from matquant.codes.nested import NestedWeight, materialize
from matquant.codes.quantizers import DTYPES
from matquant.config.study import Study
from matquant.models.layers.families import blocks, linears
from matquant.models.loading import LoadedModel, load_model
from matquant.notation import Plan
from matquant.runs.checkpoint import load_checkpoint
from matquant.runs.folder import RunDir
from matquant.runs.tracking import NoTracker
from matquant.training import train
from tests.tiny import TINY_GPTQ, TINY_OMNIQUANT, tiny_paths

# Settings of each architecture beside the sizes of conf/model/tiny.yaml.
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
    monkeypatch.setattr("analysis.report.report.FORMS", ("svg",))  # the other forms have tests of their own
    studies = [line(architecture, base, scope) for base in BASES for scope in SCOPES]
    study = replace(studies[0], cells=tuple(cell for one in studies for cell in one.cells))
    run.run_study(study, [])
    printed = capsys.readouterr().out
    assert "results are not measured yet" not in printed
    assert "problem: " not in printed
    page = (study.setup.paths.out / study.name / "report.html").read_text(encoding="utf-8")
    assert all(cell.id in page for cell in study.cells)


# Of every base two steps, or one pass, in float32.
FLOAT32 = {
    "omniquant": (*TINY_OMNIQUANT, "base.transformation=true"),
    "qat": TINY_QAT,
    "gptq": (*TINY_GPTQ, "base.student_input=int2"),
}


@pytest.mark.parametrize("scope", ["ffn", "ffn_attention"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("base", FLOAT32)
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_narrow_model_is_quantized_in_float32_as_its_widened_copy_is(
    architecture, base, dtype, scope, tiny_study, tmp_path, monkeypatch
):
    """A model in bfloat16, as `model=hub` is by default, under a base whose products are in float32."""
    study = tiny_study(
        *(f"model.architecture={architecture}", *ARCHITECTURES[architecture], *FLOAT32[base], f"scope={scope}"),
        *(f"model.dtype={dtype}", "bits=matquant"),
    )
    (cell,) = study.cells
    assert cell.base.compute_dtype == "float32"

    def layers(folder: str) -> dict[str, NestedWeight]:
        runs = tmp_path / folder
        setup = study.setup.model_copy(update={"paths": study.setup.paths.model_copy(update={"runs": runs})})
        train.train(cell, setup, NoTracker())
        return load_checkpoint(RunDir(runs, cell.id).checkpoint, cell).layers

    ours = layers("narrow")
    monkeypatch.setattr(train, "load_model", lambda *spec, **how: widened(load_model(*spec, **how)))
    for name, expected in layers("widened").items():
        assert torch.equal(ours[name].codes, expected.codes), name
        assert torch.equal(ours[name].grid.scale, expected.grid.scale), name


def widened(loaded: LoadedModel) -> LoadedModel:
    return LoadedModel(loaded.model.float(), loaded.tokenizer)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_block_that_was_widened_for_a_while_has_its_bits_back(dtype, tiny_study):
    (cell,) = tiny_study().cells
    model = load_model(cell.model, cache=Path(), dtype=dtype, device=torch.device("cpu")).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with suited_to(model, torch.float32):
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    with suited_to(model, torch.bfloat16):
        assert {tensor.dtype for tensor in model.state_dict().values()} == {DTYPES[dtype]}
