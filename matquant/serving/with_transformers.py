"""The method `matquant` of transformers: `from_pretrained` reads a nested folder at any width.

transformers builds the model and loads what is not quantized; the quantizer below reads the planes.  This module is
imported while transformers is (`matquant.registration`), so that it takes nothing else of it at the top.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from matquant.errors import UserError
from matquant.notation import Plan, Slice
from matquant.serving.nested.folder import NestedFolder
from matquant.serving.nested.places import nested_folder, words_of_cache

METHOD = "matquant"
_OPENED: ContextVar[NestedFolder | None] = ContextVar("opened", default=None)


@contextmanager
def opened(folder: NestedFolder) -> Iterator[None]:
    """Lets models be read from a folder that is open, with the token it was opened with, while the context lasts."""
    before = _OPENED.set(folder)
    try:
        yield
    finally:
        _OPENED.reset(before)


class MatQuantConfig(QuantizationConfigMixin):
    """The width at which a nested folder is read: `MatQuantConfig("int3")`, for `quantization_config=`.

    `plan` is anything a folder can be read at: `int3`, `int2+ep`, `pyramid@3`, a plan that was searched for, the path
    of a plan file; None is the whole parent.  `packed` keeps weights at that width in memory and expands them a layer
    at a time.  `weights` is said by the folder: the file, or the index of the files, of what is not quantized.
    """

    def __init__(
        self,
        plan: str | Slice | Plan | None = None,
        packed: bool = False,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.quant_method: Any = METHOD
        self.plan = None if plan is None else str(plan)
        self.packed = packed
        self.weights = weights
        self.given = plan if isinstance(plan, Plan) else self.plan
        """The plan itself: one with a slice for every layer is more than its name."""

    @property
    def dequantize(self) -> bool:
        """True for weights that are expanded as they are read: the model is then an ordinary one."""
        return not self.packed

    def get_loading_attributes(self) -> dict[str, Any]:
        """The settings of the user's configuration that go before those of the folder."""
        return {"plan": self.plan, "packed": self.packed, "given": self.given}

    def to_dict(self) -> dict[str, Any]:
        said = {"quant_method": METHOD, "plan": self.plan, "packed": self.packed}
        return said if self.weights is None else {**said, "weights": self.weights}


class MatQuantHfQuantizer(HfQuantizer):
    """Reads the quantized layers of a nested folder when transformers has loaded everything else."""

    # transformers' own sentence for a model without codes has no remedy; looking for its folder ends in one that has.
    requires_calibration = False
    quantization_config: MatQuantConfig

    def update_attn_implementation(self, config: Any) -> Any:
        """Names the file of what is not quantized: no other method is called before transformers looks for weights."""
        if self.quantization_config.weights is not None:
            config.transformers_weights = self.quantization_config.weights
        return config

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        from matquant.models.layers.stored_layers import parameter_of
        from matquant.serving.nested.packed import await_codes
        from matquant.serving.nested.unquantized import require_same

        checkpoint_files = kwargs.get("checkpoint_files") or []
        self.folder = _OPENED.get() or _folder_of(model, checkpoint_files)
        require_same(self.folder, checkpoint_files)
        self.plan = self.folder.plan(self.quantization_config.given)
        names = set()
        for layer in self.folder.layers:
            try:
                names.add(parameter_of(model, layer))
            except KeyError as error:
                raise UserError(
                    f"{self.folder.title}: a {type(model).__name__} has no layer {layer}, which its codes are of; "
                    "load the folder with AutoModelForCausalLM or matquant.load"
                ) from error
        for name in names:
            # They come later: nobody has to draw random numbers for them, or to report them as missing.
            module, _, parameter = name.rpartition(".")
            holder: Any = model.get_submodule(module)
            holder._is_hf_initialized = holder.get_parameter(parameter)._is_hf_initialized = True
        if self.quantization_config.packed:
            for layer in self.folder.layers:
                await_codes(model, layer)
        known: Any = getattr(model, "_keys_to_ignore_on_load_missing", None) or []
        mine: Any = [*known, *(f"^{re.escape(name)}$" for name in sorted(names))]
        model._keys_to_ignore_on_load_missing = mine

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from matquant.serving.nested.reading import read_into

        on_disk = [name for name, parameter in model.named_parameters() if parameter.is_meta]
        if on_disk:
            raise UserError(
                f"device_map leaves {on_disk[0]} and {len(on_disk) - 1} others on disk, out of reach; "
                "load onto devices with room, or with packed=True"
            )
        read_into(model, self.folder, self.plan, packed=self.quantization_config.packed)
        return model

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] -- transformers has no type
        """Packed weights are not: the folder that they were read from is the thing to copy."""
        raise UserError(
            f"a model with packed=True is not saved, since {self.folder.title} holds it at every width; copy that "
            "folder, or load with packed=False to save expanded weights"
        )

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride] -- the same
        return False


def _folder_of(model: nn.Module, checkpoint_files: list[str]) -> NestedFolder:
    """The nested folder around the files that transformers has found, which may be those of a hub."""
    config: Any = model.config
    if checkpoint_files and Path(config.name_or_path).is_dir():
        return nested_folder(Path(checkpoint_files[0]).parent)
    return nested_folder(config.name_or_path, **words_of_cache(checkpoint_files))


auto.register_quantization_config(METHOD)(MatQuantConfig)
auto.register_quantizer(METHOD)(MatQuantHfQuantizer)
# Without this, `from_pretrained(DIR, quantization_config=...)` takes the folder's own plan and only warns.
auto.LOADING_ATTRIBUTES_CONFIG_TYPES += (MatQuantConfig,)
