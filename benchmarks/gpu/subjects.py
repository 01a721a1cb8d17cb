"""Models of real shapes with random weights, the estimated cost of fitting them, and lines that hold both together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.gpu.lines import Line, Scale, estimated
from benchmarks.gpu.watched import Watched
from evaluation.planning.room import BYTES
from evaluation.planning.work import Size, size_of, training_operations
from matquant.config.cell import Cell, GridSpec, OmniQuantBase, QATBase, RandomModel, Scope
from matquant.config.setup import SlurmCluster
from matquant.config.study import load_study
from matquant.models.random_model import random_config
from matquant.notation import Objective
from slurm.estimate import GB, START_S, cost_of
from slurm.jobs import Job

BLOCKS = 2
SHAPES = {
    "Gemma-2 9B": (
        "gemma2",
        {"hidden_size": 3584, "intermediate_size": 14336, "num_attention_heads": 16, "num_key_value_heads": 8}
        | {"head_dim": 256, "vocab_size": 256000, "query_pre_attn_scalar": 256},
    ),
    "Llama-3.1 8B": (
        "llama",
        {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
        | {"vocab_size": 128256, "rope_theta": 500000.0},
    ),
}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {"vocab_size": 256}


@dataclass(frozen=True)
class Subject:
    """A model of one shape, and the study of it."""

    name: str
    scale: Scale

    @property
    def device(self) -> torch.device:
        return self.scale.device

    def job(self, *overrides: str) -> Job:
        """A job of the model on one GPU of a cluster, as a command line words it."""
        length = 16 if self.scale.small else 2048
        architecture, config = SHAPES[self.name]
        config = {**config, **SMALL, "head_dim": 16} if self.scale.small else config
        words = [f"+model.config.{name}={value}" for name, value in config.items() if name not in _OF_TINY]
        words += [f"model.config.{name}={value}" for name, value in config.items() if name in _OF_TINY]
        study = load_study(
            [
                *("model=tiny", f"model.architecture={architecture}", "model.dtype=bfloat16", *words),
                *(f"model.config.num_hidden_layers={BLOCKS}", "cluster=slurm", "data=c4", "bits=matquant"),
                *("weights=gemma2", f"data.sequence_length={length}", "grid=per_channel", *overrides),
            ]
        )
        return Job(study.one_cell(), study.setup)

    def model(self, job: Job) -> PreTrainedModel:
        """The model with random weights, made on the device."""
        assert isinstance(job.cell.model, RandomModel)
        torch.manual_seed(0)
        with self.device:
            model = AutoModelForCausalLM.from_config(random_config(job.cell.model), dtype=torch.bfloat16)
        return model.requires_grad_(False).eval()

    def tokens(self, job: Job) -> Tensor:
        """Random text, on the CPU as a tokenizer leaves it."""
        data = job.cell.data
        assert data is not None
        assert data.num_sequences is not None  # only held-out text is taken whole
        shape = (data.num_sequences, data.sequence_length)
        vocabulary = size_of(job.cell, job.setup.paths.cache).vocabulary
        return torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(0))


_OF_TINY = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
"""Settings that conf/model/tiny.yaml has."""


def required(cell: Cell) -> tuple[Objective, Scope, GridSpec]:
    """The facts that every quantized cell has."""
    assert cell.objective is not None
    assert cell.scope is not None
    assert cell.grid is not None
    return cell.objective, cell.scope, cell.grid


@dataclass(frozen=True)
class Estimate:
    """The estimate of a job, and the means to say what it is made of."""

    job: Job

    @property
    def cell(self) -> Cell:
        return self.job.cell

    @cached_property
    def size(self) -> Size:
        return size_of(self.cell, self.job.setup.paths.cache)

    @property
    def seconds(self) -> float:
        """Without the start of a job."""
        return 3600 * cost_of(self.job, ()).gpu_hours - START_S

    @property
    def memory_gb(self) -> float:
        return cost_of(self.job, ()).memory_gb

    @property
    def above_gb(self) -> float:
        """The memory beside the model and the states of the calibration text."""
        setup = self.job.setup.model_copy(update={"activations": "host"})
        weights = self.size.weights * BYTES[self.cell.model.dtype] / GB
        return cost_of(replace(self.job, setup=setup), ()).memory_gb - weights

    @property
    def operations(self) -> float:
        return training_operations(self.cell, self.size)

    @property
    def speed(self) -> float:
        cluster = self.job.setup.cluster
        assert isinstance(cluster, SlurmCluster)
        return 1e12 * cluster.tflops

    def with_a_step_more(self) -> Estimate:
        """The same job with one step more, so that the difference is a step (of every block)."""
        base = self.cell.base
        assert isinstance(base, OmniQuantBase | QATBase)
        more = base.model_copy(update={"num_steps": base.num_steps + 1})
        return Estimate(replace(self.job, cell=self.cell.model_copy(update={"base": more})))


@dataclass(frozen=True)
class Said:
    """The lines of one fit of one model."""

    about: str
    scale: Scale

    def seconds(self, what: str, seconds: float, estimate: float | None = None, *, operations: float = 0) -> Line:
        note = f"{operations / seconds / 1e12:.4g} TFLOP/s" if operations else ""
        if estimate is None:
            return Line(f"{self.about}: {what}", seconds, "s", note=note)
        return estimated(f"{self.about}: {what}", seconds, estimate, "s", scale=self.scale, note=note)

    def memory(self, what: str, num_bytes: int, estimate_gb: float) -> Iterator[Line]:
        """A line on a GPU; no count of torch's on a CPU."""
        if self.scale.device.type == "cuda":
            yield estimated(f"{self.about}: {what}", num_bytes / GB, estimate_gb, "GB", scale=self.scale)

    def steps(self, seconds: float, estimate: Estimate, *, per_step: int = 1) -> Iterator[Line]:
        """A step, of which the fit takes `per_step` where the estimate counts one."""
        more = estimate.with_a_step_more()
        operations = (more.operations - estimate.operations) / per_step
        yield self.seconds("a step", seconds, (more.seconds - estimate.seconds) / per_step, operations=operations)

    def whole(self, watched: Watched, estimate: Estimate) -> Iterator[Line]:
        """The whole fit, and the last time of each of its parts."""
        yield self.seconds("the fit", watched.whole, estimate.seconds, operations=estimate.operations)
        yield from self.memory("peak", watched.peak, estimate.memory_gb)
        for what, seconds in watched.seconds.items():
            each = ", ".join(f"{taken:.3g}" for taken in seconds)
            yield Line(f"{self.about}: {what}", sum(seconds), "s", note=each if len(seconds) > 1 else "")
