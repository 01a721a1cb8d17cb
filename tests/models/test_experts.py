"""Mixtures of experts: separated experts compute what transformers computes, and go the whole line."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import run
from evaluation.export import export
from evaluation.planning.work import size_of
from evaluation.results.store import ResultStore
from matquant.algorithms import gptq
from matquant.codes.nested import materialize, nest
from matquant.codes.quantizers import minmax_grid
from matquant.config.cell import Cell, GPTQBase
from matquant.errors import UserError
from matquant.models.layers.experts import SeparateExperts, of_all_experts, separate_experts, together
from matquant.models.layers.families import blocks, forward_replaced, linears
from matquant.models.loading import check_model, load_model
from matquant.models.random_model import random_config
from matquant.notation import Objective, Plan
from matquant.runs.checkpoint import load_checkpoint
from matquant.runs.folder import RunDir
from matquant.runs.tracking import NoTracker
from matquant.search.space import space_of
from matquant.training.train import train
from reference.experts_reference import mixture
from tests.algorithms.test_algorithms import GRID, SHELF, Memory
from tests.mixtures import MIXTURES, loaded, spec_of
from tests.models.test_architectures import TINY_QAT
from tests.plain_reading import plain_model
from tests.tiny import TINY_GPTQ, TINY_OMNIQUANT

TOKENS = 1 + torch.arange(48).reshape(2, 24) % 31  # not 0, whose embedding may be that of padding: zero
BASES = {"minmax": ("base=minmax", "bits=int8"), "gptq": TINY_GPTQ, "omniquant": TINY_OMNIQUANT, "qat": TINY_QAT}


def plain(name: str):
    """A model as transformers builds it, with its loop over experts."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(random_config(spec_of(name)))
    if hasattr(model.config, "_experts_implementation"):
        model.config._experts_implementation = "eager"
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("architecture", MIXTURES)
def test_separate_experts_give_the_logits_of_fused_ones_to_the_last_bit_and_go_back(architecture):
    model = plain(architecture)
    logits, weights = model(input_ids=TOKENS).logits, {k: v.clone() for k, v in model.state_dict().items()}
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    separate_experts(model)
    assert torch.equal(model(input_ids=TOKENS).logits, logits)
    with torch.enable_grad():
        assert torch.equal(model(input_ids=TOKENS).logits, logits)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    with together(model):
        again = model.state_dict()
        assert list(again) == list(weights)
        assert all(torch.equal(again[name], weights[name]) for name in weights)
        assert torch.equal(model(input_ids=TOKENS).logits, logits)


@torch.no_grad()
def test_experts_are_what_a_slow_twin_computes():
    experts = plain("qwen3_moe").model.layers[0].mlp.experts
    draw = torch.Generator().manual_seed(0)
    x, weights = torch.randn(7, 32, generator=draw), torch.rand(7, 2, generator=draw)
    chosen = torch.stack([torch.randperm(4, generator=draw)[:2] for _ in range(7)])
    expected = mixture(x, chosen, weights, experts.gate_up_proj, experts.down_proj)
    assert torch.allclose(SeparateExperts(experts)(x, chosen, weights).double(), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_separate_experts_take_no_memory_of_their_own(architecture):
    model = plain(architecture)
    before = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    separate_experts(model)
    assert {parameter.untyped_storage().data_ptr() for parameter in model.parameters()} == before


def test_an_expert_without_tokens_has_a_gradient_of_zero_as_on_every_other_rank():
    experts = SeparateExperts(plain("mixtral").model.layers[0].mlp.experts)
    experts(torch.ones(3, 32), torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1)).sum().backward()
    seen, *unseen = (experts.get_parameter(f"{number}.down_proj.weight").grad for number in range(4))
    assert seen is not None
    assert seen.any()
    assert all(gradient is not None and not gradient.any() for gradient in unseen)


def test_every_matrix_of_a_mixture_is_quantized_but_its_router():
    block = blocks(loaded("qwen2_moe").model)[0]
    experts = [f"mlp.experts.{number}.{name}" for number in range(4) for name in ("gate_up_proj", "down_proj")]
    shared = [f"mlp.shared_expert.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    assert sorted(linears(block, "ffn")) == sorted([*experts, *shared])
    assert all(type(linear) is torch.nn.Linear for linear in linears(block, "ffn").values())


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral"])
def test_a_mixture_is_trained_measured_and_exported(architecture, base, tiny_study, tmp_path):
    config = [f"++model.config.{key}={value}" for key, value in MIXTURES[architecture].config.items()]
    study = tiny_study(
        *(f"model.architecture={architecture}", *config, *BASES[base], "scope=ffn_attention", "distill=none"),
        *("readout.tasks=[piqa]", "readout.limit=4", "readout.plans=[int8,int2]"),
    )
    (cell,) = study.cells
    run.run_cell(cell, study.setup)
    results = list(ResultStore(study.setup.paths.results).results(cell.id))
    assert {(result.plan, result.task) for result in results} == {
        (plan, task) for plan in ("int8", "int2") for task in ("piqa", "log_pplx")
    }
    folder = RunDir(study.setup.paths.runs, cell.id)
    layers = load_checkpoint(folder.checkpoint, cell).layers
    assert len(layers) == 2 * (4 + 2 * 4)
    assert "model.layers.1.mlp.experts.3.gate_up_proj" in layers

    ours = load_model(cell.model, cache=Path(), dtype="float32", device=torch.device("cpu"))
    exported, model = export(cell, study.setup, Plan.parse("int2"), tmp_path / "exported", loaded=ours), ours.model
    read = AutoModelForCausalLM.from_pretrained(exported.model, experts_implementation="eager")
    with torch.no_grad():
        assert torch.equal(read(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)
        fast = AutoModelForCausalLM.from_pretrained(exported.model)
        assert torch.allclose(fast(input_ids=TOKENS).logits, read(input_ids=TOKENS).logits, atol=1e-4)
    # Every quantized weight has one of the four values of its group and row.
    weight = read.model.layers[1].mlp.experts.gate_up_proj[3]
    assert all(len(group.unique()) <= 4 for row in weight for group in row.split(32))


TRAINED = {
    "minmax": ({"kind": "minmax"}, {"int8": 1.0}, "ffn_attention"),
    "gptq": ({"kind": "gptq", "batch_size": 2}, {"int8": 1.0, "int2": 1.0}, "ffn_attention"),
    "omniquant": ({"kind": "omniquant", "num_steps": 2, "batch_size": 2, "clipping_lr": 0.1}, {"int2": 1.0}, "ffn"),
    "qat": (
        {"kind": "qat", "num_steps": 1, "batch_size": 2, "lr": 1e-3, "warmup_steps": 0, "compute_dtype": "float32"},
        {"int2": 1.0},
        "ffn_attention",
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_checkpoints_of_a_mixture_are_what_a_second_reading_of_them_says(name, tiny_study):
    setup = tiny_study().setup
    for base, terms, scope in TRAINED.values():
        cell = Cell.model_validate(
            {
                "model": spec_of(name),
                "base": base,
                "objective": {"parent_bits": 8, "terms": terms},
                "grid": {},
                "scope": scope,
                "data": {"kind": "embedded", "num_sequences": 4, "sequence_length": 16},
            }
        )
        check_model(cell, cache=setup.paths.cache)
        train(cell, setup, NoTracker())
        folder = RunDir(setup.paths.runs, cell.id).checkpoint
        read = materialize(loaded(name).model, load_checkpoint(folder, cell).layers, Plan.parse("int2"))
        plain = plain_model(MIXTURES[name].architecture, MIXTURES[name].config, folder, bits=2)
        with torch.no_grad():
            assert torch.allclose(read(input_ids=TOKENS).logits, plain(input_ids=TOKENS).logits, atol=1e-4), base


def test_a_weight_that_a_model_multiplies_by_itself_is_rounded_to_nearest_not_to_zero(caplog):
    model = loaded("jamba").model  # Mamba's step size
    layers = fit(model, TOKENS, Memory())
    weight = model.model.layers[0].mamba.dt_proj.weight
    assert torch.equal(
        layers["model.layers.0.mamba.dt_proj"].codes, nest(weight, minmax_grid(weight, 4, GRID), 4).codes
    )
    assert "block 0: the input of mamba.dt_proj is not seen" in caplog.text


def test_biases_of_a_transformation_that_a_folder_has_no_place_for_are_not_left_out_in_silence(tiny_study, tmp_path):
    config = [f"++model.config.{key}={value}" for key, value in MIXTURES["mixtral"].config.items()]
    study = tiny_study("model.architecture=mixtral", *config, *TINY_OMNIQUANT, "base.transformation=true")
    (cell,) = study.cells
    train(cell, study.setup, NoTracker())
    with pytest.raises(UserError, match="transformation=true gives 16 layers of tiny a bias"):
        export(cell, study.setup, Plan.parse("int2"), tmp_path / "exported")


def test_tokens_are_multiplied_by_active_weights_and_memory_holds_all(tiny_study):
    config = [f"++model.config.{key}={value}" for key, value in MIXTURES["mixtral"].config.items()]
    (cell,) = tiny_study("model.architecture=mixtral", *config, *TINY_GPTQ).cells
    size, experts = size_of(cell, Path()), 2 * 4 * 3 * 32 * 64
    assert size.in_scope == experts
    assert size.active_in_scope == experts / 2
    assert size.weights - size.active == experts / 2
    assert size.moments == 4 * (32**2 + 64**2)


def fit(model, tokens, progress, **changes):
    base = GPTQBase.model_validate({"kind": "gptq", "batch_size": 2, "compute_dtype": "float32", **changes})
    settings = gptq.Settings(base, Objective.parse(4, {"int4": 1.0}), "ffn_attention", GRID, SHELF)
    return gptq.fit(model, tokens, settings, progress)


@pytest.mark.parametrize("true_sequential", [False, True])
@pytest.mark.parametrize("architecture", ["mixtral", "llama4"])
def test_calibration_counts_the_tokens_that_every_expert_saw(architecture, true_sequential, caplog):
    model, progress = loaded(architecture).model, Memory()
    with caplog.at_level(logging.INFO):
        fit(model, TOKENS, progress, true_sequential=true_sequential)
    per_token = MIXTURES[architecture].config["num_experts_per_tok"]
    for name in ("gate_up_proj", "down_proj"):
        seen = [
            record["tokens"]
            for record in progress.records
            if record["block"] == 0 and of_all_experts(record["layers"]).endswith(f"experts.{name}")
        ]
        assert len(seen) == 4
        assert sum(seen) == per_token * TOKENS.numel()
    assert f"block 0: an expert saw {min(seen)} to {max(seen)} of 48 tokens" in caplog.text


def test_an_expert_that_saw_no_token_is_rounded_to_nearest_and_named(caplog):
    model = loaded("mixtral").model

    def never_the_last(x):
        return None, torch.full((len(x), 2), 0.5), torch.tensor([[0, 1], [1, 2]]).repeat(len(x) // 2, 1)

    with forward_replaced(model.model.layers[0].mlp.gate, never_the_last):
        layers = fit(model, TOKENS, Memory())
    unseen = model.model.layers[0].mlp.experts.get_submodule("3.down_proj").weight
    expected = nest(unseen, minmax_grid(unseen, 4, GRID), 4)
    assert torch.equal(layers["model.layers.0.mlp.experts.3.down_proj"].codes, expected.codes)
    assert "2 of them none (rounded to nearest); raise data.num_sequences" in caplog.text


def test_the_experts_of_a_block_are_one_unit_of_a_search():
    model = loaded("mixtral").model
    layers = {
        f"model.layers.{number}.{path}": nest(linear.weight, minmax_grid(linear.weight, 8, GRID), 8)
        for number, block in enumerate(blocks(model))
        for path, linear in linears(block, "ffn_attention").items()
    }
    units = space_of(layers, budget=4.0, granularity="linear", extra_precision=False).members
    assert [unit for unit in units if unit.startswith("model.layers.0")] == [
        "model.layers.0.self_attn.k_proj",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.mlp.experts.down_proj",
    ]
    assert sum(map(len, units.values())) == len(layers)
