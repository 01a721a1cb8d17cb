"""QAT: slice-wise gradients are the joint gradient, batches are functions of the step, resume is exact."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call

from matquant.algorithms import qat
from matquant.algorithms.objective import nested_loss
from matquant.codes.nested import materialize, read_at, read_slices
from matquant.config.cell import GridSpec, QATBase
from matquant.models.loading import load_model
from matquant.models.text.tokens import token_blocks
from matquant.notation import Objective, Plan, Slice
from tests.algorithms.test_algorithms import GRID, Memory, equal

NESTED = Objective.parse(8, {"int8": 0.5, "int4": 0.25, "int2": 1.0})
DISTILLED = Objective.parse(8, {"int8": 0.1, "int4": 0.1, "int2": 1.0, "8->4": 0.1, "8->2": 1.0})
ONLY_STUDENT = Objective.parse(8, {"8->2+ep": 1.0})


@pytest.fixture
def training(tiny_study):
    study = tiny_study("base=omniquant")
    cell = study.cells[0]

    def make(objective: Objective = NESTED, *, grid: GridSpec = GRID, seed: int = 0, **changes) -> qat.Training:
        loaded = load_model(cell.model, cache=study.setup.paths.cache, dtype="float32", device=torch.device("cpu"))
        facts = {
            "kind": "qat",
            "num_steps": 6,
            "batch_size": 4,
            "lr": 1e-2,
            "warmup_steps": 2,
            "compute_dtype": "float32",
        }
        settings = qat.Settings(QATBase.model_validate({**facts, **changes}), objective, "ffn", grid, seed)
        tokens = token_blocks(cell.data, loaded.tokenizer, "train", seed=0, add_bos=False)
        return qat.Training(loaded.model, tokens, settings)

    return make


def gradients(training: qat.Training) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in training.model.named_parameters() if p.grad is not None}


def joint_gradients(training: qat.Training) -> dict[str, torch.Tensor]:
    """The gradient of Eq. 7 with all slices in one graph, weights replaced from outside."""
    base, objective = training.settings.base, training.settings.objective
    chosen = qat.batch_of(0, batch_size=base.batch_size, num_sequences=len(training.tokens), seed=0)
    tokens = training.tokens[chosen]
    outputs = {}
    for part in objective.slices:
        read = {
            f"{path}.linear.weight": read_slices(layer.linear.weight, layer.grid(), [part], parent_bits=8)[part]
            for path, layer in training.nested.items()
        }
        outputs[part] = functional_call(training.model, read, (), {"input_ids": tokens}).logits
    losses = nested_loss(
        objective,
        outputs,
        lambda _, logits: qat.next_token_loss(logits, tokens),
        lambda student, teacher: qat.distillation_loss(student, teacher, base.temperature),
    )
    losses.total.backward()
    return gradients(training)


@pytest.mark.parametrize("objective", [NESTED, DISTILLED, ONLY_STUDENT], ids=["nested", "distilled", "student"])
@pytest.mark.parametrize("train", [{}, {"train_scales": True}, {"train_weights": False, "train_scales": True}], ids=str)
def test_backward_slice_by_slice_is_the_joint_gradient(training, objective, train):
    by_slice, joint = training(objective, **train), training(objective, **train)
    by_slice._backward()
    ours, expected = gradients(by_slice), joint_gradients(joint)
    assert set(ours) == set(expected)
    assert ours
    for name, gradient in ours.items():
        # The same float32 sums in another order.
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6), name
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize(
    "changes", [{"micro_batch_size": 1}, {"micro_batch_size": 2}, {"activation_checkpointing": True}]
)
def test_accumulation_and_activation_checkpointing_do_not_change_the_gradient(training, changes):
    whole, other = training(DISTILLED), training(DISTILLED, **changes)
    losses, same = whole._backward(), other._backward()
    assert losses["loss"] == pytest.approx(same["loss"], rel=1e-5)
    for name, gradient in gradients(whole).items():
        assert torch.allclose(gradient, gradients(other)[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("part", ["int8", "int4", "int2", "int2+ep"])
def test_every_slice_alone_sends_a_gradient_to_every_weight(training, part):
    alone = training(Objective.parse(8, {part: 1.0}))
    alone._backward()
    assert len(gradients(alone)) == 6
    assert all(gradient.abs().sum() > 0 for gradient in gradients(alone).values())


def test_a_teacher_receives_no_gradient_from_its_student(training):
    # With int8 as a teacher only, the gradient is that of a constant target.
    distilled = training(ONLY_STUDENT)
    distilled._backward()
    taught = training(ONLY_STUDENT)
    tokens = taught.tokens[qat.batch_of(0, batch_size=4, num_sequences=len(taught.tokens), seed=0)]
    with torch.no_grad(), read_at(taught.model, Slice(8)):
        target = taught.model(input_ids=tokens).logits
    with read_at(taught.model, Slice(2, extra_precision=True)):
        qat.distillation_loss(taught.model(input_ids=tokens).logits, target, 1.0).backward()
    for name, gradient in gradients(distilled).items():
        assert torch.allclose(gradient, gradients(taught)[name], atol=1e-7), name


def test_what_training_reads_is_what_is_materialized(training):
    trained = training(train_scales=True)
    for _ in range(3):
        trained.advance()
    layers = trained.layers()
    tokens = trained.tokens[:2]
    for part in (Slice(8), Slice(4), Slice(3), Slice(2)):
        with torch.no_grad(), read_at(trained.model, part):
            seen = trained.model(input_ids=tokens).logits
        plain = training().model  # its nested layers read whole weights as long as nothing is asked for
        materialize(plain, {f"{name}.linear": nested for name, nested in layers.items()}, Plan.parse(str(part)))
        with torch.no_grad():
            assert torch.equal(plain(input_ids=tokens).logits, seen)


def test_training_lowers_the_loss_of_every_slice_and_leaves_other_weights_alone(training):
    trained, fresh = training(num_steps=40), training()
    losses = [trained.advance() for _ in range(40)]
    for part in ("int8", "int4", "int2"):
        assert sum(step[part] for step in losses[-5:]) < sum(step[part] for step in losses[:5]) - 0.2
    before = dict(fresh.model.named_parameters())
    for name, parameter in trained.model.named_parameters():
        assert torch.equal(parameter, before[name]) is ("mlp" not in name or "clipping" in name)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_ends_in_the_same_bits(training, stop):
    def fit(progress: Memory):
        made = training(train_scales=True)
        return qat.fit(made.model, made.tokens, made.settings, progress)

    def fresh_fit(progress: Memory):
        made = training(train_scales=True)
        plain = load_like(made)
        return qat.fit(plain, made.tokens, made.settings, progress)

    def load_like(made: qat.Training):
        # `training` has replaced the linear layers already; start from a model that has not been touched.
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(made.model.config)
        names = {
            name.replace(".linear.", "."): value
            for name, value in made.model.state_dict().items()
            if "clipping" not in name
        }
        model.load_state_dict(names)
        return model.eval()

    whole = Memory()
    expected = fresh_fit(whole)
    resumed = Memory()
    resumed.state = whole.saved[stop - 1]
    assert equal(fresh_fit(resumed), expected)
    assert [record["step"] for record in resumed.records] == list(range(stop, 6))
    assert resumed.records == whole.records[stop:]


def test_a_step_that_is_not_finite_is_skipped_and_counted(training, monkeypatch):
    trained = training(max_skipped_steps=2)
    before = [p.clone() for p in trained._weights()]
    monkeypatch.setattr(qat, "next_token_loss", lambda logits, tokens: logits.sum() * float("nan"))
    assert trained.advance()["skipped"] == 1
    assert trained.advance()["skipped"] == 2
    assert all(torch.equal(a, b) for a, b in zip(before, trained._weights(), strict=True))
    with pytest.raises(FloatingPointError, match=r"step 2: not finite, as 2 steps before it \(loss, .*lower base\.lr"):
        trained.advance()


@given(step=st.integers(0, 50), batch=st.integers(1, 7), number=st.integers(1, 12), seed=st.integers(0, 3))
def test_every_pass_sees_every_sequence_once(step, batch, number, seed):
    drawn = [
        index for s in range(step + 1) for index in qat.batch_of(s, batch_size=batch, num_sequences=number, seed=seed)
    ]
    for start in range(0, len(drawn) - number + 1, number):
        assert sorted(drawn[start : start + number]) == list(range(number))


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    factors = [qat.learning_rate_factor(step, num_steps=100, warmup_steps=10) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_distillation_is_zero_for_equal_logits_and_the_kl_divergence_otherwise():
    student, teacher = torch.randn(1, 2, 5), torch.randn(1, 2, 5)
    assert qat.distillation_loss(teacher, teacher, 1.0).item() == pytest.approx(0.0, abs=1e-6)
    p, q = teacher.softmax(-1), student.softmax(-1)
    expected = (p * (p / q).log()).sum() / 2
    assert qat.distillation_loss(student, teacher, 1.0).item() == pytest.approx(expected.item(), rel=1e-5)
    assert math.isfinite(qat.distillation_loss(student, teacher, 4.0).item())
