"""GPTQ block by block: what it measures, what feeds the next block, going on after a kill, and odd input."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from matquant.algorithms import gptq
from matquant.algorithms.calibration import Shelf
from matquant.algorithms.progress import Layers
from matquant.codes.column_solve import solve
from matquant.codes.nested import materialize, nest
from matquant.codes.quantizers import minmax_grid
from matquant.config.cell import GPTQBase
from matquant.errors import UserError
from matquant.models.layers.families import blocks, linears
from matquant.models.loading import load_model
from matquant.models.text.tokens import token_blocks
from matquant.notation import Objective, Plan
from reference.gptq_reference import output_error
from tests.algorithms.test_algorithms import GRID, NESTED, SHELF, Memory, equal

INT4 = Objective.parse(4, {"int4": 1.0})
EXTRA = Objective.parse(8, {"int8": 1.0, "int4+ep": 1.0, "int2+ep": 1.0})
FFN = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@pytest.fixture
def parts(tiny_study):
    """The tiny model and its calibration text."""
    study = tiny_study("base=gptq", "base.compute_dtype=float32")
    cell = study.cells[0]
    loaded = load_model(cell.model, cache=study.setup.paths.cache, dtype="float32", device=torch.device("cpu"))
    return loaded.model, token_blocks(cell.data, loaded.tokenizer, "train", seed=0, add_bos=False)


@pytest.fixture
def fit(parts):
    def run(progress: Memory, objective=NESTED, *, scope="ffn", shelf: Shelf = SHELF, grid=GRID, **changes) -> Layers:
        base = GPTQBase.model_validate({"kind": "gptq", "batch_size": 3, **changes})
        return gptq.fit(*parts, gptq.Settings(base, objective, scope, grid, shelf), progress)

    return run


def inputs_of(model, tokens, names) -> dict[str, torch.Tensor]:
    """The inputs of some layers of the first block, in one run of the whole model."""
    seen: dict[str, torch.Tensor] = {}
    layers = linears(blocks(model)[0], "ffn_attention")
    handles = [
        layers[name].register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0].flatten(0, 1)}))
        for name in names
    ]
    with torch.no_grad():
        model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("scope", ["ffn", "ffn_attention"])
def test_the_first_block_is_the_column_solve_on_what_its_layers_receive(parts, fit, scope):
    model, tokens = parts
    layers, names = fit(Memory(), scope=scope), linears(blocks(model)[0], scope)
    for name, x in inputs_of(model, tokens, names).items():
        hessian = (2 / len(x) * x.T.double() @ x.double()).float()
        base = GPTQBase(kind="gptq")
        expected = solve(names[name].weight, hessian, objective=NESTED, spec=GRID, base=base)
        assert (layers[f"model.layers.0.{name}"].codes == expected.codes).float().mean() > 0.99, name


@pytest.mark.parametrize("objective", [INT4, NESTED, EXTRA], ids=["int4", "nested", "extra"])
def test_outputs_are_kept_better_than_by_rounding_to_nearest(parts, fit, objective):
    model, tokens = parts
    layers, narrow = fit(Memory(), objective), min(objective.trained)
    for name, x in inputs_of(model, tokens, FFN).items():
        weight = linears(blocks(model)[0], "ffn")[name].weight.detach()
        bits = objective.parent_bits
        errors = [
            output_error(weight, x.T @ x, nested.at(narrow).weight)
            for nested in (layers[f"model.layers.0.{name}"], nest(weight, minmax_grid(weight, bits, GRID), bits))
        ]
        assert errors[0] < 0.95 * errors[1], name


@pytest.mark.parametrize("place", ["host", "disk"])
def test_a_fit_does_not_depend_on_where_activations_are_kept(fit, tmp_path, place):
    assert equal(fit(Memory(), shelf=Shelf(place=place, folder=tmp_path)), fit(Memory()))


@pytest.mark.parametrize("changes", [{}, {"act_order": True}, {"true_sequential": True}, {"student_input": "int2"}])
def test_a_resumed_fit_ends_in_the_same_bits(fit, changes):
    whole, resumed = Memory(), Memory()
    expected = fit(whole, **changes)
    resumed.pieces["model.layers.0"] = whole.pieces["model.layers.0"]
    assert equal(fit(resumed, **changes), expected)
    assert {record["block"] for record in resumed.records} == {1}
    assert equal(fit(Memory(), **changes), expected)


def test_the_models_own_weights_are_not_changed(parts, fit):
    before = [parameter.clone() for parameter in parts[0].parameters()]
    fit(Memory(), true_sequential=True)
    assert all(torch.equal(*pair) for pair in zip(parts[0].parameters(), before, strict=True))


def of_block(layers: Layers, index: int) -> Layers:
    return {name: nested for name, nested in layers.items() if f".{index}." in name}


def test_what_feeds_the_next_block_changes_it_and_nothing_before_it(fit):
    fits = [fit(Memory(), student_input=text) for text in ("parent", "int8", "int2", "full")]
    parent, int8, *others = fits
    assert equal(parent, int8)
    for other in others:
        assert equal(of_block(parent, 0), of_block(other, 0))
        assert not equal(of_block(parent, 1), of_block(other, 1))


def test_in_true_sequential_order_later_layers_of_a_block_see_the_quantized_ones(fit):
    at_once, in_order = fit(Memory(), student_input="int2"), fit(Memory(), student_input="int2", true_sequential=True)
    first = of_block(at_once, 0), of_block(in_order, 0)
    for name in FFN:
        same = equal(*({name: block[f"model.layers.0.{name}"]} for block in first))
        assert same == (name != "mlp.down_proj")


def test_every_solve_is_logged_with_its_damping_dead_inputs_and_error(fit):
    progress = Memory()
    fit(progress, scope="ffn_attention")
    records = [record for record in progress.records if record["block"] == 0]
    assert [record["layers"] for record in records] == [
        "self_attn.q_proj, self_attn.k_proj, self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj, mlp.up_proj",
        "mlp.down_proj",
    ]
    for record in records:
        assert (record["damping"], record["damping_retries"], record["dead_inputs"]) == (0.01, 0, 0)
        assert record["error"] > 0
    assert progress.ticks[-1] == (2, 2)


def test_the_codes_read_out_of_a_model(parts, fit):
    layers, logits = fit(Memory(), EXTRA, grid=GRID.model_copy(update={"symmetric": True}), act_order=True), []
    for plan in ("int8", "int4+ep", "int2+ep"):
        with torch.no_grad():
            logits.append(materialize(parts[0], layers, Plan.parse(plan))(input_ids=parts[1][:1]).logits)
    assert all(one.isfinite().all() for one in logits)
    assert (logits[0] - logits[1]).norm() < (logits[0] - logits[2]).norm()


def test_products_in_bfloat16_make_about_the_same_errors(fit):
    rounded, exact = Memory(), Memory()
    layers = fit(rounded, compute_dtype="bfloat16")
    assert not equal(layers, fit(exact))
    for one, other in zip(rounded.records, exact.records, strict=True):
        assert one["error"] == pytest.approx(other["error"], rel=0.05)


def test_fewer_tokens_than_inputs_is_a_warning_with_the_counts(parts, fit, caplog):
    model, tokens = parts
    base = GPTQBase(kind="gptq", batch_size=1)
    gptq.fit(model, tokens[:1, :32], gptq.Settings(base, NESTED, "ffn", GRID), Memory())
    assert "(up to " in caplog.text
    assert "calibration tokens (32)" in caplog.text
    caplog.clear()
    fit(Memory())
    assert not caplog.text


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("mlp.up_proj", "mlp.gate_proj and mlp.up_proj: its weights are not finite"),
        ("post_attention_layernorm", "mlp.gate_proj and mlp.up_proj: the second moments of its inputs are not finite"),
    ],
)
def test_a_layer_that_cannot_be_solved_is_named_and_leaves_no_piece(parts, fit, broken, message):
    with torch.no_grad():
        blocks(parts[0])[1].get_submodule(broken).weight.flatten()[0] = float("inf")
    progress = Memory()
    with pytest.raises(FloatingPointError, match=f"^model.layers.1.{message}"):
        fit(progress)
    assert list(progress.pieces) == ["model.layers.0"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill=8to2", "base=gptq has no teacher for the term 8->2; choose distill=none"),
        ("base.student_input=narrow", "student_input is parent, full or a slice"),
        ("base.damping=0", "base.damping=0: Input should be greater than 0"),
        ("base.batch_size=9", "exceeds data.num_sequences=8"),
    ],
)
def test_a_setting_without_a_meaning_is_refused_in_one_sentence(tiny_study, override, message):
    with pytest.raises(UserError, match=message):
        tiny_study("base=gptq", override)


def test_a_next_block_cannot_be_fed_more_bits_than_there_are(tiny_study):
    with pytest.raises(UserError, match=r"base.student_input=int8 is wider than the int4 parent"):
        tiny_study("base=gptq", "bits=int4", "base.student_input=int8")


def test_true_sequential_order_that_feeds_unquantized_layers_is_refused():
    with pytest.raises(ValidationError, match=r"set base\.true_sequential=false or base\.student_input=parent"):
        GPTQBase(kind="gptq", true_sequential=True, student_input="full")
