# pyright: reportMissingImports=false
"""The method `matquant` of vLLM: reads a nested folder at any width.

vLLM builds the model and asks `MatQuantConfig` how each linear layer keeps its weights; then it draws weights by name
out of the folder's files.  To those are added here the quantized ones, under the names and in the shapes that an
ordinary checkpoint has them in: so vLLM's own code puts q, k, v or gate, up into one matrix, and gives every rank of
tensor parallelism its part.

On a GPU the layers are those of Humming's kernels, at r bits a weight; elsewhere weights are expanded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.platforms import current_platform

from matquant.codes.layouts import slices_of
from matquant.codes.sliced import SlicedWeight
from matquant.errors import UserError
from matquant.notation import Plan, Slice
from matquant.serving.engines.humming_layout import schema_of, tensors_of, why_not
from matquant.serving.nested.folder import NestedFolder
from matquant.serving.nested.places import nested_folder
from matquant.serving.nested.unquantized import files, pattern, require_same
from matquant.serving.vllm_plugin import METHOD

KNOWN = ("quant_method", "plan", "packed", "weights", "expanded")
"""The words of a folder's `quantization_config`; `packed` and `weights` are for transformers."""
TRANSPOSED = ("gpt2",)
"""The kinds of model whose checkpoints keep weights as [in, out]."""
TURNED = (*TRANSPOSED, "gpt_neox", "bloom", "falcon")
"""The kinds of model for which vLLM's own code turns weights around as it loads them; those are expanded anywhere."""
EXPERT = re.compile(r"\.experts\.\d+\.")
KERNEL_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Reading:
    """A nested folder, and how it is read."""

    folder: NestedFolder
    plan: Plan
    parts: Mapping[str, Slice]


def reading_of(source: str, revision: str | None, config: Mapping[str, Any]) -> Reading:
    """The read-out that a folder and the words of its configuration ask for; UserError if that cannot be."""
    if odd := sorted(config.keys() - set(KNOWN)):
        raise UserError(f"quantization_config has no {odd[0]}; give plan, such as int3, and expanded, true or false")
    folder = nested_folder(source, revision)
    plan = folder.plan(config.get("plan"))
    if expert := next((name for name in folder.layers if EXPERT.search(name)), None):
        raise UserError(
            f"{source} has experts, such as {expert}, whose names in checkpoints differ from model to model; "
            "`matquant export dense` writes a folder that vLLM reads without this plugin"
        )
    return Reading(folder, plan, slices_of(plan, folder.layers))


class MatQuantConfig(QuantizationConfig):
    """The way each layer of a model keeps its weights."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.reading: Reading | None = None
        self.is_turned = False
        self.names: dict[str, str] = {}
        """The names of quantized layers in the folder, by those that vLLM gives them."""

    @classmethod
    def get_name(cls) -> Any:
        return METHOD

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0 if not _has_kernels() else 75

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MatQuantConfig:
        return cls(config)

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> Any:
        """The method that the user typed: `--hf-overrides` replaces the configuration that would name it."""
        return METHOD if user_quant == METHOD else None

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        self.reading = reading_of(model_name, revision, self.config)
        self.is_turned = getattr(hf_config, "model_type", None) in TURNED
        self.names = {name: name for name in self.reading.parts}

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        assert self.reading is not None
        mapped = {name: hf_to_vllm_mapper.map_name(f"{name}.weight") for name in self.reading.parts}
        self.names = {own.removesuffix(".weight"): name for name, own in mapped.items() if own is not None}

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        if not isinstance(layer, LinearBase):
            return None
        held = [self.names[name] for name in self._parts_of(prefix) if name in self.names]
        if not held:
            return UnquantizedLinearMethod()
        if len(held) == len(self._parts_of(prefix)) and self._wants_packed(layer, held):
            return _packed(self._same_width(held), self._group_size(held[0]), held)
        return Expanded(held)

    def _parts_of(self, prefix: str) -> list[str]:
        """The layers that vLLM multiplies as the one of this name."""
        stem, _, last = prefix.rpartition(".")
        parts = self.packed_modules_mapping.get(last)
        # A checkpoint may have them in one matrix as well.
        return [prefix] if parts is None or prefix in self.names else [f"{stem}.{part}" for part in parts]

    def _wants_packed(self, layer: Any, held: list[str]) -> bool:
        assert self.reading is not None
        inputs = getattr(layer, "input_size_per_partition", layer.input_size)
        group_size = self._group_size(held[0])
        return (
            not self.config.get("expanded")
            and _has_kernels()
            and layer.params_dtype in KERNEL_DTYPES
            and not self.is_turned
            and not any("transform" in self.reading.folder.facts["layers"][name] for name in held)
            and why_not((layer.output_size, inputs), group_size) is None
            # One scale for a row that is divided among ranks belongs to none of them alone.
            and (group_size is not None or inputs == layer.input_size)
        )

    def _group_size(self, name: str) -> int | None:
        assert self.reading is not None
        groups = int(self.reading.folder.facts["layers"][name]["groups"])
        return None if groups == 1 else self.reading.folder.layers[name].shape[1] // groups

    def _same_width(self, held: list[str]) -> int:
        """The bits of a code; UserError if the parts of a fused layer have different ones."""
        assert self.reading is not None
        parts = {name: self.reading.parts[name] for name in held}
        if len(set(parts.values())) > 1:
            widths = ", ".join(f"{name} {part}" for name, part in parts.items())
            raise UserError(
                f"vLLM multiplies {widths} as one matrix of one width; choose a plan that keeps them together, or add "
                '"expanded": true beside "plan"'
            )
        part = next(iter(parts.values()))
        return part.bits + part.extra_precision


class Expanded(UnquantizedLinearMethod):
    """A layer whose weights are expanded as they are read."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def create_weights(self, layer: nn.Module, *arguments: Any, **attributes: Any) -> None:
        super().create_weights(layer, *arguments, **attributes)
        layer.get_parameter("weight").data.fill_(torch.nan)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        _require_all(layer.get_parameter("weight"), self.names)
        super().process_weights_after_loading(layer)


def _packed(bits: int, group_size: int | None, names: list[str]) -> Any:
    """A layer that Humming's kernels multiply at r bits a weight."""
    from vllm.model_executor.layers.quantization.humming import HummingLayerQuantizationConfig, HummingLinearMethod

    class Packed(HummingLinearMethod):
        packed_names = names

        def create_weights(self, layer: nn.Module, *arguments: Any, **attributes: Any) -> None:
            super().create_weights(layer, *arguments, **attributes)
            layer.get_parameter("weight_scale").data.fill_(torch.nan)

        def process_weights_after_loading(self, layer: nn.Module) -> None:
            _require_all(layer.get_parameter("weight_scale"), names)
            super().process_weights_after_loading(layer)

    return Packed(HummingLayerQuantizationConfig.from_config(schema_of(bits, group_size)))


def _require_all(parameter: Tensor, names: list[str]) -> None:
    """Raises UserError if some of a layer was never filled: vLLM passes over names that it does not know."""
    if parameter.isnan().any():
        raise UserError(
            f"vLLM has not read all of {', '.join(names)}: its model has other names than the nested folder; "
            "export dense and serve that"
        )


def _has_kernels() -> bool:
    """True where Humming's kernels are installed and run."""
    if not current_platform.is_cuda():
        return False
    from vllm.utils.import_utils import has_humming

    return has_humming()


@dataclass
class _Weights:
    """The quantized weights of a nested folder, as an ordinary checkpoint would hold them."""

    reading: Reading
    packed: Mapping[str, torch.dtype]
    """The layers that stay at r bits, and the dtype of their scales."""
    is_transposed: bool

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, read in self.reading.folder.read_at(self.reading.plan):
            for kind, tensor in self._tensors(name, read).items():
                yield f"{name}.{kind}", tensor

    def _tensors(self, name: str, read: SlicedWeight) -> dict[str, Tensor]:
        if name in self.packed:
            return tensors_of(read, self.packed[name])
        affine = read.affine()
        if affine.bias is not None:
            raise UserError(
                f"base.transformation=true gives {name} a bias, for which vLLM has no place; serve a cell of "
                "base.transformation=published or base.transformation=false"
            )
        return {"weight": affine.weight.t().contiguous() if self.is_transposed else affine.weight}


def read_nested_weights() -> None:
    """Lets vLLM's loader of checkpoints add the weights of nested folders to those it finds.

    vLLM has no place where a method of quantization could name weights, so the loader's method is wrapped; for models
    of other methods it is the same as before.
    """
    original = DefaultModelLoader.get_all_weights

    def get_all_weights(self: Any, model_config: Any, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        if model_config.quantization != METHOD:
            yield from original(self, model_config, model)
            return
        nested = _nested(model_config, model)
        require_same(nested.reading.folder, files(nested.reading.folder))
        # The files of planes have the same ending, and names that no model knows.
        rest = DefaultModelLoader.Source(
            model_config.model, model_config.revision, allow_patterns_overrides=[pattern(nested.reading.folder)]
        )
        yield from self._get_weights_iterator(rest)
        yield from nested

    DefaultModelLoader.get_all_weights = get_all_weights


def _nested(model_config: Any, model: nn.Module) -> _Weights:
    # As vLLM finds it: models of more than text may keep it one level below.
    levels = (model_config.hf_config, model_config.hf_text_config)
    config = next(found for level in levels if (found := getattr(level, "quantization_config", None)))
    reading = reading_of(model_config.model, model_config.revision, config)
    packed: dict[str, torch.dtype] = {}
    for module in model.modules():
        layer: Any = module
        for name in getattr(getattr(layer, "quant_method", None), "packed_names", ()):
            packed[name] = layer.params_dtype
    return _Weights(reading, packed, model_config.hf_config.model_type in TRANSPOSED)
