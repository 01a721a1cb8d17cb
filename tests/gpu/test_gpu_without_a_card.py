"""A fit on a GPU, as far as fake tensors tell without one: devices, dtypes, bytes, and the times that the CPU waits."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.lines import Scale
from benchmarks.gpu.subjects import Estimate, Subject, required
from benchmarks.timing import NoProgress
from matquant.algorithms import gptq, omniquant, qat
from matquant.algorithms.calibration import Shelf
from matquant.codes.column_solve import choice_of
from matquant.codes.nested import _ReadSlices, read_slices
from matquant.codes.quantizers import LearnableClipping
from matquant.codes.range_search import best_for_all, search_factors
from matquant.config.cell import GPTQBase, GridSpec, OmniQuantBase, QATBase
from matquant.notation import Objective
from slurm.jobs import Job
from tests.fake_card import Account, fake_card

NESTED = Objective.parse(8, {"int8": 1.0, "int4": 1.0, "int2": 1.0})


def prepared(device: str, *overrides: str, small: bool = True, name: str = "Gemma-2 9B") -> tuple[Subject, Job]:
    subject = Subject(name, Scale(torch.device(device), small=small))
    job = subject.job("data.num_sequences=4", *overrides)
    assert Estimate(job).size  # its model is built on the meta device, which fake tensors do not mix with
    return subject, job


class Steps(NoProgress):
    """The number of waits of every step, and the most bytes that the steps of a block hold above those before."""

    def __init__(self, account: Account) -> None:
        self.account, self.waits, self.above = account, [], 0

    def log(self, metrics: object) -> None:
        self.waits.append(sum(self.account.waits.values()))
        self.account.waits.clear()

    def resume(self, piece, compute):
        before = self.account.start()
        layers = compute()
        self.above = max(self.above, self.account.peak - before)
        return layers


@pytest.fixture(autouse=True)
def _without_adamw(monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda _: None)  # torch's own, which reads numbers on the CPU


def omniquant_fit(account: Account, subject: Subject, job: Job) -> Steps:
    assert isinstance(job.cell.base, OmniQuantBase)
    steps = Steps(account)
    settings = omniquant.Settings(job.cell.base, *required(job.cell), 0, Shelf())
    omniquant.fit(subject.model(job), subject.tokens(job), settings, steps)
    return steps


@pytest.mark.parametrize("name", ["Gemma-2 9B", "Llama-3.1 8B"])
def test_the_estimate_of_an_omniquant_step_holds_at_real_shapes(name):
    subject, job = prepared("cpu", "base=omniquant_paper", "base.num_steps=1", small=False, name=name)
    with fake_card("cpu") as account:
        steps = omniquant_fit(account, subject, job)
    assert steps.above / 1e9 == pytest.approx(Estimate(job).above_gb, rel=0.15)


def test_the_cpu_waits_once_in_a_step_of_omniquant_and_twice_more_where_it_is_diagnosed():
    subject, job = prepared("cpu", "base=omniquant_paper", "base.num_steps=3")
    with fake_card("cpu") as account:
        steps = omniquant_fit(account, subject, job)
    assert steps.waits == 2 * [3, 1, 1]


def test_the_cpu_waits_as_often_in_a_step_of_qat_however_many_micro_batches_it_has(monkeypatch):
    monkeypatch.setattr(qat, "batch_of", lambda _, *, batch_size, **others: list(range(batch_size)))  # on the CPU
    waits = []
    for number in (1, 4):
        sizes = (f"base.batch_size={number}", "base.micro_batch_size=1", "base.num_steps=2")
        subject, job = prepared("cpu", "base=qat_paper", *sizes)
        assert isinstance(job.cell.base, QATBase)
        with fake_card("cpu") as account:
            settings = qat.Settings(job.cell.base, *required(job.cell), 0)
            training = qat.Training(subject.model(job), subject.tokens(job), settings)
            account.start()
            training._backward()
            waits.append(dict(account.waits))
    assert [sum(found.values()) for found in waits] == [2, 2], waits  # the losses, and the norms of the slices


@pytest.mark.parametrize("residual", ["mean", "dual"])
def test_gptq_stays_on_the_gpu_and_no_column_waits(residual):
    waits = []
    _, job = prepared("cuda", "base=gptq_paper", f"base.residual={residual}")
    assert isinstance(job.cell.base, GPTQBase)
    objective, _, spec = required(job.cell)
    choice_of(objective, job.cell.base.residual)  # kept for later calls, which are no place for a fake tensor
    for inputs in (128, 256):
        with fake_card("cuda") as account:
            weight, hessian = torch.empty(64, inputs, device="cuda"), torch.empty(inputs, inputs, device="cuda")
            account.start()
            solution = gptq.solve(weight, hessian, objective=objective, spec=spec, base=job.cell.base)
            assert solution.codes.is_cuda
            assert solution.grid.scale.dtype == torch.float32
            waits.append(sum(account.waits.values()))
    assert waits[0] == waits[1] < 12


@pytest.mark.parametrize("rounding", [None, best_for_all(NESTED)])
def test_the_search_for_ends_stays_on_the_gpu_and_waits_for_nothing(rounding):
    with fake_card("cuda") as account:
        weight = torch.empty(64, 256, device="cuda", dtype=torch.bfloat16)
        found = search_factors(weight, NESTED, GridSpec(group_size=64), reach=1.5, codes=rounding)
        assert found.low.is_cuda
        assert sum(account.waits.values()) == 0


def test_the_forward_pass_of_an_omniquant_step_stays_on_the_gpu_with_products_in_bfloat16(monkeypatch):
    subject, job = prepared("cuda", "base=omniquant_paper", "base.num_steps=1")
    monkeypatch.setattr(torch.Tensor, "backward", lambda _: None)
    monkeypatch.setattr(omniquant, "finite", lambda loss, layers: loss.isfinite())
    with fake_card("cuda") as account:
        omniquant_fit(account, subject, job)
        tensors = {place: number for place, number in account.elsewhere.items() if "randperm" not in place}
        assert set(account.products) <= {torch.bfloat16, torch.float32}
        assert account.products[torch.bfloat16] > 100 * account.products[torch.float32]
    assert all("arange" in place or "batch" in place for place in tensors), tensors


def test_the_gradient_of_read_slices_stays_on_the_gpu():
    with fake_card("cuda") as account:
        weight = torch.empty(64, 128, device="cuda")
        clipping = LearnableClipping(weight, 8, GridSpec(group_size=32), 4.0)
        read = read_slices(weight, clipping(), NESTED.slices, parent_bits=8)
        assert all(values.is_cuda and values.dtype == torch.float32 for values in read.values())
        function = next(iter(read.values())).grad_fn
        account.start()
        with torch.no_grad():
            gradients = _ReadSlices.backward(function, *map(torch.empty_like, read.values()))
        assert all(one.is_cuda for one in gradients if one is not None)
        assert not account.waits
        assert not account.elsewhere
