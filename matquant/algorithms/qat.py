"""Quantization-aware training (Eq. 2, arXiv:2502.06786): the weights themselves are trained, through every slice.

The model is trained end to end on next-token prediction.  Weights outside the scope are frozen; those inside are kept
in float32 and read at one slice of the objective after the other, each with its own backward pass, so that only one
graph is in memory whatever the number of slices.

Several ranks train one model together: each holds a shard of every parameter and of its moments, gathers one block at
a time, and takes its share of every batch.  What they compute is what one process computes, but for the order in which
gradients are summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from matquant.algorithms.objective import backward_per_slice
from matquant.algorithms.progress import WHOLE_MODEL, Layers, Progress
from matquant.codes.nested import GradientMeter, NestedLinear, NestedWeight, nest, read_at
from matquant.codes.quantizers import DTYPES, FixedClipping, LearnableClipping
from matquant.codes.range_search import search_factors
from matquant.config.cell import GridSpec, QATBase, Scope
from matquant.errors import NotFiniteError
from matquant.models.layers.families import block_name, blocks, linears
from matquant.notation import Objective
from matquant.parallel.distributed import ALONE, World
from matquant.parallel.sharding import full, local, mesh_of, shard, whole

Logits = Float[Tensor, "batch tokens vocabulary"]
Tokens = Int[Tensor, "batch tokens"]


@dataclass(frozen=True)
class Settings:
    """The settings of a QAT fit."""

    base: QATBase
    objective: Objective
    scope: Scope
    grid: GridSpec
    seed: int
    world: World = ALONE
    device_type: str = "cpu"
    """The device on which each of several ranks keeps its shards; one process alone does not move the model."""


def fit(
    model: PreTrainedModel, tokens: Int[Tensor, "sequences tokens"], settings: Settings, progress: Progress
) -> Layers:
    """Trains the weights in scope, their grids, or both, and returns them nested; the model is changed."""
    training = Training(model, tokens, settings, progress.tick)
    training.restore(progress)
    while training.step < settings.base.num_steps:
        metrics = training.advance()
        progress.log(metrics)
        progress.save(training.state)
        progress.tick(training.step, settings.base.num_steps, f"loss {metrics['loss']:.3f}")
    return progress.resume(WHOLE_MODEL, training.layers)


def learning_rate_factor(step: int, *, num_steps: int, warmup_steps: int) -> float:
    """Linear warm-up to 1, then half a cosine down to 0 at the end of training."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def batch_of(step: int, *, batch_size: int, num_sequences: int, seed: int) -> list[int]:
    """The sequences of one step: every pass over the data in a new order that depends on seed and pass alone.

    A function of the step, so that a resumed run draws what an undisturbed one draws without storing where it was.
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    orders = {}
    for epoch in {position // num_sequences for position in positions}:
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        orders[epoch] = torch.randperm(num_sequences, generator=generator).tolist()
    return [orders[position // num_sequences][position % num_sequences] for position in positions]


def next_token_loss(logits: Logits, tokens: Tokens) -> Tensor:
    """Mean cross entropy of every next token, in nats."""
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())


def distillation_loss(student: Logits, teacher: Logits, temperature: float) -> Tensor:
    """Mean KL(teacher || student) over tokens, in nats, times the squared temperature to keep gradients in scale."""
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1).flatten(0, 1)
    log_student = F.log_softmax(student.float() / temperature, dim=-1).flatten(0, 1)
    return temperature**2 * F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")


@dataclass
class Training:
    """Everything that changes while training: weights, grids, optimizer, the step and the number of skipped steps.

    Where several ranks train, each has its shard of the tensors and the same numbers as the others.
    """

    model: PreTrainedModel
    tokens: Int[Tensor, "sequences tokens"]
    settings: Settings
    tick: Callable[[int, int, str], None] = lambda *_: None
    step: int = 0
    skipped: int = 0
    meter: GradientMeter = field(default_factory=GradientMeter)
    nested: dict[str, NestedLinear] = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        base = self.settings.base
        self._share = self.settings.world.share(base.batch_size)
        self.model.requires_grad_(False)
        if self.model.dtype != DTYPES[base.compute_dtype]:
            self.model.float()  # what a product is computed in converts no weight of another narrow dtype
        self.nested = install(self.model, self.settings, self.meter, self.tick)
        groups = [
            {"params": list(self._weights()), "lr": base.lr, "weight_decay": base.weight_decay},
            {"params": list(self._logits()), "lr": base.scale_lr, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
        self._peak_lrs = [group["lr"] for group in self.optimizer.param_groups]
        for parameter in self._trained().values():
            # As AdamW begins; made here, so that a state has the same tensors before the first step as after it.
            self.optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        if base.activation_checkpointing:
            recompute_activations(self.model)

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _weights(self) -> Iterator[Tensor]:
        return (layer.linear.weight for layer in self.nested.values() if layer.linear.weight.requires_grad)

    def _logits(self) -> Iterator[Tensor]:
        parameters = (parameter for layer in self.nested.values() for parameter in layer.clipping.parameters())
        return (parameter for parameter in parameters if parameter.requires_grad)

    def advance(self) -> dict[str, float | int]:
        """One optimizer step, skipped if its loss or gradient is not finite; NotFiniteError after too many."""
        base = self.settings.base
        factor = learning_rate_factor(self.step, num_steps=base.num_steps, warmup_steps=base.warmup_steps)
        for group, peak in zip(self.optimizer.param_groups, self._peak_lrs, strict=True):
            group["lr"] = peak * factor
        # Random parts of the model (dropout) depend on the step and on the rank alone, so a resumed run repeats them.
        device = self.model.device
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):  # not on the GPUs of other ranks
            torch.manual_seed(self.settings.seed * 100_003 + self.step + self.settings.world.rank * 1_000_000_007)
            losses = self._backward()
        parameters = [*self._weights(), *self._logits()]
        norm = full(nn.utils.clip_grad_norm_(parameters, base.max_gradient_norm or math.inf)).item()
        # Both are the same number on all ranks, so all of them skip or none.
        if math.isfinite(norm) and math.isfinite(losses["loss"]):
            self.optimizer.step()
        else:
            self._skip(losses)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {"step": self.step - 1, **losses, "gradient_norm": norm, "lr": base.lr * factor, "skipped": self.skipped}

    def _backward(self) -> dict[str, float]:
        """Accumulates the gradient of one batch; the mean loss of each term and the gradient norm of each slice.

        A slice's norm is the root of the summed squares of its gradients from each micro-batch of each rank.  That is
        the norm of their sum if they are orthogonal.  The ranks' gradients are never summed slice by slice, which would
        double what they exchange.
        """
        base, objective = self.settings.base, self.settings.objective
        chosen = batch_of(
            self.step, batch_size=base.batch_size, num_sequences=len(self.tokens), seed=self.settings.seed
        )
        mine = self.tokens[chosen[self._share]].to(self.model.device)
        sums: dict[str, Tensor] = {}  # read once, at the end: no micro-batch waits for the one before it
        for tokens in mine.split(base.micro_batch_size or base.batch_size):
            share = len(tokens) / len(mine)
            losses = backward_per_slice(
                objective,
                lambda part: read_at(self.model, part),
                lambda tokens=tokens: self._logits_of(tokens),
                lambda _, logits, tokens=tokens: next_token_loss(logits, tokens),
                lambda student, teacher: distillation_loss(student, teacher, base.temperature),
                share=share,
            )
            for name, value in {"loss": losses.total, **losses.terms}.items():
                sums[name] = sums.get(name, 0.0) + share * value.detach().double()
        means = dict(zip(sums, torch.stack([*sums.values()]).tolist(), strict=True))
        # The batch's gradient is the mean of the ranks', so each has contributed its own divided by their number.
        world = self.settings.world
        squares = {name: (norm / world.size) ** 2 for name, norm in self.meter.take().items()}
        agreed = world.mean(means | squares)
        return agreed | {name: math.sqrt(world.size * agreed[name]) for name in squares}

    def _logits_of(self, tokens: Tokens) -> Logits:
        dtype = DTYPES[self.settings.base.compute_dtype]
        with torch.autocast(tokens.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return self.model(input_ids=tokens, use_cache=False).logits

    def _skip(self, losses: Mapping[str, float]) -> None:
        self.skipped += 1
        if self.skipped > self.settings.base.max_skipped_steps:
            bad = [name for name, value in losses.items() if not math.isfinite(value)]
            gradients = {name: local(p.grad) for name, p in self._trained().items() if p.grad is not None}
            infinite = self.settings.world.any(*(not bool(part.isfinite().all()) for part in gradients.values()))
            bad += [name for name, found in zip(gradients, infinite, strict=True) if found]
            raise NotFiniteError(
                f"step {self.step}: not finite, as {self.skipped - 1} steps before it "
                f"({', '.join(bad[:4])}); lower base.lr"
            )

    def state(self) -> dict[str, Tensor]:
        """The state that a resumed run needs: the live tensors themselves, sharded where the model is."""
        state = {"step": torch.tensor(self.step), "skipped": torch.tensor(self.skipped)}
        for name, parameter in self._trained().items():
            state[f"{name}/value"] = parameter.detach()
            state |= {f"{name}/{moment}": tensor for moment, tensor in self.optimizer.state[parameter].items()}
        return state

    def restore(self, progress: Progress) -> None:
        """Goes on from the state that an earlier run saved last, if there is one."""
        state = self.state()
        if progress.load(state):
            self.step, self.skipped = int(state["step"]), int(state["skipped"])

    def layers(self) -> dict[str, NestedWeight]:
        """The trained weights, quantized on their final grids; of several ranks the main one has them, on its CPU.

        Gathered block by block, so that no rank ever holds the whole model in float32.
        """
        bits, world = self.settings.objective.parent_bits, self.settings.world
        layers = {}
        for index, block in enumerate(blocks(self.model)):
            with torch.no_grad(), whole(block):
                for path, layer in self.nested.items():
                    if world.is_main and path.startswith(f"{block_name(self.model, index)}."):
                        nested = nest(layer.linear.weight, layer.grid(), bits)
                        layers[path] = nested if world.size == 1 else nested.to(torch.device("cpu"))
        return layers


def recompute_activations(model: nn.Module) -> None:
    """Lets every block compute its activations again in the backward pass.

    transformers' own switch works in training mode only, where dropout is on: teacher and student would differ by it.
    """
    for block in blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def install(
    model: nn.Module,
    settings: Settings,
    meter: GradientMeter | None = None,
    tick: Callable[[int, int, str], None] = lambda *_: None,
) -> dict[str, NestedLinear]:
    """Replaces every linear layer in scope by a nested one, with what is to be trained requiring gradients.

    Where several ranks train, each keeps its shard of a block before the next one grows to float32.
    """
    base = settings.base
    mesh = mesh_of(settings.world, settings.device_type)
    nested = {}
    for index, block in enumerate(blocks(model)):
        for path, linear in linears(block, settings.scope).items():
            linear.weight.data = linear.weight.data.float()
            linear.weight.requires_grad_(base.train_weights)
            clipping = clipping_of(linear.weight, settings).to(linear.weight.device)
            layer = NestedLinear(linear, clipping, meter, base.slice_clamp)
            block.set_submodule(path, layer)
            nested[f"{block_name(model, index)}.{path}"] = layer
        shard(block, mesh)
        if base.clipping_init == "search":
            tick(0, base.num_steps, f"{block_name(model, index)}: the ends of its grids are found")
    shard(model, mesh, outermost=True)
    return nested


def clipping_of(weight: Float[Tensor, "out in"], settings: Settings) -> LearnableClipping | FixedClipping:
    """The grids of a layer: trained or not, from MinMax's ends, from a logit, or from those that a search finds.

    Ranks search for themselves, each in the whole weight, and find the same.
    """
    base, objective, spec = settings.base, settings.objective, settings.grid
    start = base.clipping_init
    if start == "search":
        start = search_factors(weight, objective, spec, reach=base.clipping_reach)
    if base.train_scales:
        return LearnableClipping(weight, objective.parent_bits, spec, start, base.clipping_reach)
    return FixedClipping(objective.parent_bits, spec, start if isinstance(start, tuple) else None)
