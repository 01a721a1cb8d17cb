"""The experts of a mixture as ordinary linear layers, one for each expert and matrix.

transformers keeps the matrices of all experts of a block in two parameters of three dimensions.  Whatever acts on
`nn.Linear` would pass them by: quantizers, hooks, read-outs.  `separate_experts` puts a module with the same outputs in
their place, whose layers are called `experts.5.gate_up_proj` and share the memory of the parameters they are slices
of.  `together` undoes it for as long as a model is saved.

Support follows from the interface that transformers' own implementations share (`use_experts_implementation`: flags for
gate, bias and transposed matrices, and a method that applies the gate), not from the names of models.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

FIRST, LAST = ("gate_up_proj", "up_proj"), "down_proj"
"""The matrices of an expert: with a gate and its sibling in one, or the latter alone; then the one that leads back."""
CHOSEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_k",
    "moe_topk",
    "top_k_experts",
    "moe_num_active_experts",
)
"""The names that configurations give to the number of experts of a token."""
Model = TypeVar("Model", bound=nn.Module)
_NUMBER = re.compile(r"\.experts\.\d+\.")


def of_all_experts(path: str) -> str:
    """The path of a layer without the number of its expert: mlp.experts.5.down_proj -> mlp.experts.down_proj."""
    return _NUMBER.sub(".experts.", f".{path}.")[1:-1]


def is_of_expert(path: str) -> bool:
    """True for a layer that only the tokens of its expert pass through."""
    return of_all_experts(path) != path


class SeparateExperts(nn.Module):
    """A linear layer for each expert and matrix, with the outputs of transformers' eager loop over experts."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self._fused = (fused,)  # in a tuple: its parameters are emptied, and it is no part of this module
        self.names = (next(name for name in FIRST if name in fused._parameters), LAST)
        self.is_transposed = _is_transposed(fused)
        self.is_routed = _is_routed(fused)
        self.num_experts = len(fused.get_parameter(LAST))
        for name, child in fused.named_children():
            self.add_module(name, child)
        for number in range(self.num_experts):
            layers = {name: _linear(fused, name, number, is_transposed=self.is_transposed) for name in self.names}
            self.add_module(str(number), nn.ModuleDict(layers))
        for name in list(fused._parameters):
            fused.register_parameter(name, None)

    def forward(self, hidden_states: Tensor, *routing: Tensor) -> Tensor:
        """The sum of the chosen experts' answers, weighted: `routing` is each token's experts and their weights.

        Without it (Llama-4) the rows are sorted by expert, each expert has as many, and those of others are zero.
        """
        if self.is_routed:
            return self._routed(hidden_states, *routing)
        rows = hidden_states.view(self.num_experts, -1, hidden_states.shape[-1])
        return torch.cat([self._answer(number, row) for number, row in enumerate(rows)])

    def _routed(
        self,
        hidden_states: Float[Tensor, "tokens hidden"],
        chosen: Int[Tensor, "tokens chosen"],
        weights: Float[Tensor, "tokens chosen"],
    ) -> Float[Tensor, "tokens hidden"]:
        answers = torch.zeros_like(hidden_states)
        with torch.no_grad():
            # One class more: transformers marks a choice that another machine serves by the number of experts.
            mask = F.one_hot(chosen, self.num_experts + 1).permute(2, 1, 0)
            hit = mask.flatten(1).any(-1).tolist()
        for number in range(self.num_experts):
            # With gradients an expert without tokens runs on none of them: its gradient is zero, on every rank alike.
            if hit[number] or torch.is_grad_enabled():
                place, token = torch.where(mask[number])
                answer = self._answer(number, hidden_states[token]) * weights[token, place, None]
                answers.index_add_(0, token, answer.to(answers.dtype))
        return answers

    def _answer(self, number: int, x: Tensor) -> Tensor:
        (fused,) = self._fused
        first, last = (self.get_submodule(f"{number}.{name}") for name in self.names)
        inner = first(x)
        if hasattr(fused, "_apply_gate") and fused.has_gate:
            inner = fused._apply_gate(inner)  # pyright: ignore[reportCallIssue] -- a method that transformers adds
        elif self.names[0] == "gate_up_proj":
            gate, up = inner.chunk(2, dim=-1)
            inner = up * fused.act_fn(gate)  # pyright: ignore[reportCallIssue] -- a module
        else:
            inner = fused.act_fn(inner)  # pyright: ignore[reportCallIssue] -- a module
        answer = last(inner)
        has_norm = getattr(fused, "has_post_expert_norm", False)
        return self.get_submodule("post_expert_norm")(answer) if has_norm else answer

    def fused(self) -> nn.Module:
        """The module that was there before, with the weights as they are now."""
        (fused,) = self._fused
        for name in self.names:
            linears = [self.get_submodule(f"{number}.{name}") for number in range(self.num_experts)]
            weights = [linear.get_parameter("weight").detach() for linear in linears]
            whole = torch.stack([weight.T for weight in weights] if self.is_transposed else weights)
            fused.register_parameter(name, nn.Parameter(whole, linears[0].get_parameter("weight").requires_grad))
            biases = [linear.bias for linear in linears if isinstance(linear.bias, Tensor)]
            if biases:
                assert f"{name}_bias" in fused._parameters, f"{type(fused).__name__} has no place for biases"
                whole = torch.stack([bias.detach() for bias in biases])
                fused.register_parameter(f"{name}_bias", nn.Parameter(whole, biases[0].requires_grad))
        return fused


def _linear(fused: nn.Module, name: str, number: int, *, is_transposed: bool) -> nn.Linear:
    """One matrix of one expert, in the memory that it has."""
    of_all = fused.get_parameter(name)
    weight = of_all.detach()[number]
    weight = weight.T if is_transposed else weight
    bias = fused._parameters.get(f"{name}_bias")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, of_all.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach()[number], bias.requires_grad)
    return linear


def _is_transposed(fused: nn.Module) -> bool:
    """True where matrices are stored [inputs, outputs]; without a flag they are, as in Llama-4."""
    return bool(getattr(fused, "is_transposed", True))


def _is_routed(fused: nn.Module) -> bool:
    """True for experts that are called with each token's choice of them, as the shared interface has it."""
    return hasattr(fused, "has_gate")


def _is_fused(module: nn.Module) -> bool:
    """True for experts in parameters of three dimensions whose layout and gate are known."""
    parameters = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    first = next((name for name in FIRST if name in parameters), None)
    known = {first, LAST, f"{first}_bias", f"{LAST}_bias"}
    if first is None or LAST not in parameters or not parameters.keys() <= known:
        return False
    if any(parameters[name].ndim != 3 for name in (first, LAST)):
        return False
    return _is_routed(module) or list(inspect.signature(module.forward).parameters) == ["hidden_states"]


def separate_experts(model: Model) -> Model:
    """Puts linear layers in place of fused experts, in the model itself; nothing is copied."""
    for name, module in list(model.named_modules()):
        if _is_fused(module):
            model.set_submodule(name, SeparateExperts(module))
    return model


@contextmanager
def together(model: nn.Module) -> Iterator[None]:
    """Lets a model have its experts in fused parameters again, as its folder has, for as long as the context lasts."""
    for name, module in list(model.named_modules()):
        if isinstance(module, SeparateExperts):
            model.set_submodule(name, module.fused())
    try:
        yield
    finally:
        separate_experts(model)


def active_weights(model: nn.Module, config: Any) -> dict[str, float]:
    """The number of weights of each parameter that a token is multiplied by, on average over experts, by path.

    Experts whose rows are sorted (Llama-4) are run on the rows of all others too, which are zero.
    """
    active = {path: float(parameter.numel()) for path, parameter in model.named_parameters()}
    chosen = next((number for name in CHOSEN if (number := getattr(config, name, None))), None)
    for name, module in model.named_modules():
        if isinstance(module, SeparateExperts) and module.is_routed and chosen is not None:
            for path, _ in module.named_parameters():
                active[f"{name}.{path}"] *= min(1.0, chosen / module.num_experts)
    return active


def routers(block: nn.Module) -> set[str]:
    """The paths of the layers that choose experts or weigh them, which stay in full precision, as everywhere.

    They stand beside the experts, and are one matrix with an output for each of them, or with a single output (the gate
    of a shared expert).
    """
    found = {
        path
        for path, module in block.named_modules()
        if any("router" in part for part in path.split(".")) and module._parameters
    }
    for path, module in block.named_modules():
        if (number := _number_of_experts(module)) is None:
            continue
        for name, child in module.named_children():
            inside = {} if name == "experts" else dict(child.named_parameters())
            matrices = {inner: parameter for inner, parameter in inside.items() if parameter.ndim == 2}
            # A correction for each expert, kept as a single row, is no second matrix (ERNIE).
            matrices = {inner: matrix for inner, matrix in matrices.items() if len(matrix) > 1} or matrices
            if len(matrices) == 1 and all(len(matrix) in (1, number) for matrix in matrices.values()):
                found |= {f"{path}.{name}.{inner}".lstrip(".").removesuffix(".weight") for inner in matrices}
    return found


def _number_of_experts(module: nn.Module) -> int | None:
    """The number of the experts that a module chooses from; none for a module without experts."""
    experts = module._modules.get("experts")
    if experts is None:
        return None
    return len(experts) if isinstance(experts, nn.ModuleList) else getattr(experts, "num_experts", None)
