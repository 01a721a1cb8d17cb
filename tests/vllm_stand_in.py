"""As much of vLLM as the plugin touches: layers that hold several of a checkpoint's, and a loader that fills them.

The real one is asked by `python -m benchmarks.engines.vllm_server`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import matquant.serving

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
UNDER_TEST = "with_vllm"


class LinearBase(nn.Module):
    """A layer that asks a configuration how its weights are kept."""

    def __init__(self, shape: tuple[int, int], config: Any, prefix: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.output_size, self.input_size = shape
        self.params_dtype = dtype
        self.quant_method = config.get_quant_method(self, prefix)
        self.quant_method.create_weights(self)


class UnquantizedLinearMethod:
    def create_weights(self, layer: LinearBase, *arguments: Any, **attributes: Any) -> None:
        layer.weight = nn.Parameter(torch.zeros(layer.output_size, layer.input_size, dtype=layer.params_dtype))

    def process_weights_after_loading(self, layer: LinearBase) -> None:
        layer.processed = True


class HummingLinearMethod:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def create_weights(self, layer: LinearBase, *arguments: Any, **attributes: Any) -> None:
        rows, columns = layer.output_size, layer.input_size
        bits, groups = int(self.config["b_dtype"][4:]), columns // (self.config["group_size"] or columns)
        layer.weight = nn.Parameter(torch.zeros(rows, columns * bits // 32, dtype=torch.int32), requires_grad=False)
        layer.weight_scale = nn.Parameter(torch.zeros(rows, groups, dtype=layer.params_dtype))
        layer.zero_point = nn.Parameter(torch.zeros(rows, groups, dtype=layer.params_dtype))

    def process_weights_after_loading(self, layer: LinearBase) -> None:
        layer.processed = True


class QuantizationConfig:
    def __init__(self) -> None:
        self.packed_modules_mapping = FUSED


class DefaultModelLoader:
    @dataclass
    class Source:
        model_or_path: str
        revision: str | None
        allow_patterns_overrides: list[str] | None = None

    def _get_weights_iterator(self, source: Source) -> Iterator[tuple[str, Tensor]]:
        for pattern in source.allow_patterns_overrides or ["*.safetensors"]:
            for file in sorted(Path(source.model_or_path).glob(pattern)):
                yield from load_file(file).items()

    def get_all_weights(self, model_config: Any, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        yield from self._get_weights_iterator(self.Source(model_config.model, None))


class StandIn(NamedTuple):
    """The pieces of a stand-in that a test looks at."""

    plugin: ModuleType
    methods: dict[str, Any]
    loader: type[DefaultModelLoader]


def stand_in(monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False) -> StandIn:
    """Puts the stand-in where vLLM would be, and registers the plugin with it."""
    methods: dict[str, Any] = {}
    loader = type("Loader", (DefaultModelLoader,), {})
    layers = "vllm.model_executor.layers"
    attributes = {
        f"{layers}.linear": {"LinearBase": LinearBase, "UnquantizedLinearMethod": UnquantizedLinearMethod},
        f"{layers}.quantization": {
            "QUANTIZATION_METHODS": methods,
            "register_quantization_config": lambda name: lambda config: methods.setdefault(name, config),
        },
        f"{layers}.quantization.base_config": {"QuantizationConfig": QuantizationConfig},
        f"{layers}.quantization.humming": {
            "HummingLinearMethod": HummingLinearMethod,
            "HummingLayerQuantizationConfig": SimpleNamespace(from_config=dict),
        },
        "vllm.model_executor.model_loader.default_loader": {"DefaultModelLoader": loader},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cuda=lambda: cuda)},
        "vllm.utils.import_utils": {"has_humming": lambda: True},
    }
    for path in attributes:
        parts = path.split(".")
        for length in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:length]), ModuleType(".".join(parts[:length])))
    for path, held in attributes.items():
        module = ModuleType(path)
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, path, module)
    monkeypatch.delitem(sys.modules, f"matquant.serving.{UNDER_TEST}", raising=False)
    monkeypatch.setattr(matquant.serving, UNDER_TEST, None, raising=False)
    monkeypatch.delattr(matquant.serving, UNDER_TEST)
    import_module("matquant.serving.vllm_plugin").register()
    plugin = import_module(f"matquant.serving.{UNDER_TEST}")
    monkeypatch.delitem(sys.modules, f"matquant.serving.{UNDER_TEST}")
    return StandIn(plugin, methods, loader)


class Served(NamedTuple):
    """A model as the stand-in serves it: layers by their own names, and everything else of the checkpoint."""

    layers: dict[str, LinearBase]
    rest: dict[str, Tensor]


def serve(
    vllm: StandIn, folder: Path, plan: str | None, layers: Mapping[str, tuple[int, int]], **config: Any
) -> Served:
    """Builds the layers of a model, fused as vLLM fuses them, and loads a folder into them."""
    dtype = config.pop("dtype", torch.float32)
    words = {"plan": plan, "quant_method": "", **config}
    method = vllm.methods["matquant"].from_config(words)
    method.maybe_update_config(str(folder))
    model = nn.Module()
    built = {name: LinearBase(shape, method, name, dtype) for name, shape in fused(layers).items()}
    model.layers = nn.ModuleList(built.values())
    hf_config = SimpleNamespace(quantization_config=words, model_type="llama")
    told = SimpleNamespace(
        quantization="matquant", model=str(folder), revision=None, hf_config=hf_config, hf_text_config=hf_config
    )
    rest = fill(built, vllm.loader().get_all_weights(told, model))
    for layer in built.values():
        layer.quant_method.process_weights_after_loading(layer)
    return Served(built, rest)


def fused(layers: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The shapes of layers under the names that vLLM gives them."""
    found: dict[str, tuple[int, int]] = {}
    for name, (rows, columns) in layers.items():
        stem, _, last = name.rpartition(".")
        whole = next((whole for whole, parts in FUSED.items() if last in parts), last)
        found[f"{stem}.{whole}"] = (found.get(f"{stem}.{whole}", (0, 0))[0] + rows, columns)
    return found


@torch.no_grad()
def fill(built: Mapping[str, LinearBase], weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Copies tensors into their rows of fused layers, and returns those that belong to none."""
    rows: dict[tuple[str, str], int] = {}
    rest = {}
    for path, tensor in sorted(weights, key=_as_fused):
        name, _, kind = path.rpartition(".")
        stem, _, last = name.rpartition(".")
        whole = next((whole for whole, parts in FUSED.items() if last in parts), last)
        layer = built.get(f"{stem}.{whole}")
        if layer is None:
            rest[path] = tensor
            continue
        first = rows.get((f"{stem}.{whole}", kind), 0)
        layer.get_parameter(kind)[first : first + len(tensor)].copy_(tensor)
        rows[f"{stem}.{whole}", kind] = first + len(tensor)
    return rest


def _as_fused(pair: tuple[str, Tensor]) -> tuple[str, int]:
    stem, _, last = pair[0].rpartition(".")[0].rpartition(".")
    order = [part for parts in FUSED.values() for part in parts]
    return stem, order.index(last) if last in order else -1
