"""OmniQuant's transformation as its code publishes it: start, sharing, what it leaves alone, and the folded twin."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evaluation.export import export
from matquant.algorithms import omniquant
from matquant.algorithms.inputs import received_by
from matquant.algorithms.transformation import LEAST_SCALE, PublishedTransform, published_transforms, smooth_start
from matquant.codes.nested import NestedWeight, nest
from matquant.codes.quantizers import minmax_grid
from matquant.config.cell import GridSpec, OmniQuantBase
from matquant.models.layers.families import blocks, is_attention, linears
from matquant.notation import Plan, Slice
from matquant.runs.checkpoint import load_layers, save_layers
from matquant.runs.tracking import NoTracker
from matquant.training.train import train
from reference import transformation_reference
from tests import families, mixtures
from tests.algorithms.test_algorithms import NESTED, Memory, fit  # noqa: F401 -- a fixture
from tests.tiny import TINY_OMNIQUANT

TOKENS = torch.arange(48).view(2, 24)
PUBLISHED = {"transformation": "published", "transformation_lr": 5e-3}


def transforms_of(model: nn.Module, index: int = 0) -> dict[str, PublishedTransform]:
    """The transformations of one block, after the model has read some tokens."""
    block = blocks(model)[index]
    found = linears(block, "ffn_attention")
    with torch.no_grad(), received_by(found) as received:
        model(input_ids=TOKENS)
    return published_transforms(found, received, in_attention=[path for path in found if is_attention(block, path)])


def shared(transforms: dict[str, PublishedTransform]) -> list[set[str]]:
    groups: dict[int, set[str]] = {}
    for path, transform in transforms.items():
        groups.setdefault(id(transform), set()).add(path.rpartition(".")[2])
    return list(groups.values())


QKV = {"q_proj", "k_proj", "v_proj"}


@pytest.mark.parametrize(
    ("load", "name", "expected"),
    [
        (families, "llama", [QKV, {"o_proj"}, {"gate_proj", "up_proj"}]),
        (families, "phi3", [{"qkv_proj"}, {"o_proj"}, {"gate_up_proj"}]),
        (families, "opt", [QKV, {"out_proj"}, {"fc1"}]),
        (families, "gpt2", [{"c_attn"}, {"c_proj"}, {"c_fc"}]),
        # Attention and network read one norm.
        (families, "phi", [{*QKV, "fc1"}, {"dense"}]),
        (mixtures, "lfm2", [{"in_proj"}, {"out_proj"}, {"w1", "w3"}]),
        (mixtures, "mixtral", [QKV, {"o_proj"}, *[{"gate_up_proj"}] * 4]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_with_one_input_share_a_scale_and_what_the_network_computes_has_none(load, name, expected):
    assert shared(transforms_of(load.loaded(name).model)) == expected


def test_the_last_layer_of_a_network_as_wide_as_the_model_has_no_scale_either():
    model = families.loaded("llama", intermediate_size=32).model
    assert shared(transforms_of(model)) == [QKV, {"o_proj"}, {"gate_proj", "up_proj"}]


def test_an_expert_that_no_token_reaches_is_left_as_it_is():
    model = mixtures.loaded("llama4").model
    block = blocks(model)[0]
    found = linears(block, "ffn_attention")
    with torch.no_grad(), received_by(found) as received:
        model(input_ids=TOKENS[:, :1])  # two tokens for four experts
    reached = {path for path in received if received[path].squares.tokens}
    transforms = published_transforms(found, received, in_attention=[])
    of_experts = {path for path in reached if ".experts." in path and path.endswith("gate_up_proj")}
    assert 0 < len(of_experts) < 4
    assert {path for path in transforms if ".experts." in path} == of_experts


def test_the_start_is_the_twins():
    generator = torch.Generator().manual_seed(0)
    tokens, weight = (torch.randn(20, 8, generator=generator) for _ in range(2))
    tokens[:, 2], weight[:, 3] = 0.0, -weight[:, 3].abs()  # a dead input, and an input without a positive weight
    ours = PublishedTransform(smooth_start(tokens.abs().amax(0), weight)).scale
    assert torch.allclose(ours, torch.tensor(transformation_reference.smooth_start(tokens, weight)))


def test_scales_keep_away_from_zero_on_their_side():
    transform = PublishedTransform(torch.ones(4))
    with torch.no_grad():
        transform.scale.copy_(torch.tensor([1e-3, -1e-3, 0.0, 2.0]))
    transform.stay_in_bounds()
    assert transform.scale.tolist() == pytest.approx([LEAST_SCALE, -LEAST_SCALE, LEAST_SCALE, 2.0])


@pytest.mark.parametrize("spec", [GridSpec(), GridSpec(group_size=8), GridSpec(zero="rounded")], ids=str)
@pytest.mark.parametrize("part", ["int8", "int4", "int2+ep"])
@torch.no_grad()
def test_undoing_scales_in_each_layer_is_folding_them_as_the_published_code_does(spec, part):
    """Scales of v_proj's, q_proj's and k_proj's outputs change nothing, which is why ours has none."""
    block = blocks(families.loaded("llama", num_key_value_heads=4).model)[0]
    generator = torch.Generator().manual_seed(0)
    # Powers of two, so that scaling rounds nothing and no code differs.
    qkv, out, fc1 = (2.0 ** torch.randint(-3, 4, (32,), generator=generator) for _ in range(3))
    qk = 2.0 ** torch.randint(-3, 4, (32,), generator=generator)

    def nested(weight: torch.Tensor, scale: torch.Tensor | None) -> NestedWeight:
        transform = None if scale is None else PublishedTransform(scale)(weight, weight[:, 0])
        changed = weight if scale is None else weight * scale
        return nest(weight, minmax_grid(changed, 8, spec), 8, transform)

    def quantized(weight: torch.Tensor) -> torch.Tensor:
        return nested(weight, None).at(Slice.parse(part)).weight

    twin = transformation_reference.folded(block, qkv=qkv, out=out, fc1=fc1, qk=qk, quantized=quantized)
    scales = dict.fromkeys(("q_proj", "k_proj", "v_proj"), qkv) | {"o_proj": out, "gate_proj": fc1, "up_proj": fc1}
    x = torch.randn(2, 5, 32, generator=generator)
    for path, linear in linears(block, "ffn_attention").items():
        read = nested(linear.weight, scales.get(path.rpartition(".")[2])).at(Slice.parse(part))
        assert read.bias is None
        linear.weight.copy_(read.weight)
    positions = (
        torch.ones(1, 5, 8),
        torch.zeros(1, 5, 8),
    )  # rotated by nothing, so that every pair of channels may scale
    ours, theirs = (one(x, position_embeddings=positions, attention_mask=None) for one in (block, twin))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_fit_learns_scales_from_the_start_and_gives_no_layer_a_bias(fit, tmp_path):  # noqa: F811
    model, layers = fit(Memory(), **PUBLISHED, clipping_lr=1e-30, num_steps=1)
    still = fit(Memory(), **{**PUBLISHED, "transformation_lr": 1e-30})[1]
    gate, up, down = (still[f"model.layers.0.mlp.{name}_proj"].transform for name in ("gate", "up", "down"))
    assert torch.equal(gate.scale, up.scale)
    assert down is None
    moved = layers["model.layers.0.mlp.gate_proj"].transform.scale
    assert torch.allclose(moved, gate.scale, atol=5.1e-3)  # AdamW's first step is the learning rate
    assert (moved != gate.scale).any()
    assert all(linear.bias is None for linear in linears(blocks(model)[0], "ffn").values())
    save_layers(tmp_path / "layers.safetensors", layers, scale_dtype="float32")
    for name, nested in load_layers(tmp_path / "layers.safetensors").items():
        for part in (Slice(8), Slice(2)):
            assert torch.equal(nested.at(part).weight, layers[name].at(part).weight)
            assert nested.at(part).bias is None


def test_training_a_published_transformation_lowers_the_loss(fit):  # noqa: F811
    progress = Memory()
    fit(progress, num_steps=30, clipping_lr=1e-30, transformation="published", transformation_lr=2e-2)
    losses = [float(record["int2"]) for record in progress.records if record["block"] == 0]
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])


def test_training_sees_the_layer_that_is_stored(fit):  # noqa: F811
    linear = nn.Linear(64, 8)
    base = OmniQuantBase(kind="omniquant", num_steps=1, batch_size=1, clipping_lr=1.0, transformation="published")
    settings = omniquant.Settings(base, NESTED, "ffn", GridSpec(group_size=32), 0)
    layer = omniquant.LearnableLayer(linear, settings, PublishedTransform(torch.rand(64) + 0.5))
    for part in map(Slice.parse, ("int8", "int4", "int2", "int2+ep")):
        assert torch.equal(layer.read([part])[part].weight, layer.nested().at(part).weight)


def test_a_plan_of_a_published_transformation_is_exported_where_there_is_no_place_for_biases(tiny_study, tmp_path):
    config = [f"++model.config.{key}={value}" for key, value in mixtures.MIXTURES["mixtral"].config.items()]
    study = tiny_study("model.architecture=mixtral", *config, *TINY_OMNIQUANT, "base.transformation=published")
    (cell,) = study.cells
    train(cell, study.setup, NoTracker())
    assert export(cell, study.setup, Plan.parse("int2"), tmp_path / "exported").folder.exists()
