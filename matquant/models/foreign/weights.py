"""The tensors of a foreign model as an ordinary model has them: quantized layers as weights, the others as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from matquant.errors import UserError
from matquant.models.checks import first_sentence
from matquant.models.foreign.codebooks import any_bcq_weight, any_precision_weight, bitsandbytes_weight
from matquant.models.foreign.compressed import compressed_weight
from matquant.models.foreign.integers import awq_weight, gptq_weight, hqq_weight
from matquant.models.foreign.nested import PLANE, matgptq_weight, matquant_weight
from matquant.stored.foreign import Foreign
from matquant.stored.foreign_files import ForeignFiles
from matquant.stored.foreign_layers import UNUSED, StoredLayer, layer_of

Reader = Callable[[Mapping[str, Tensor], Mapping[str, Any], int], Float[Tensor, "out in"]]
READERS: Mapping[str, Reader] = {
    "gptq": gptq_weight,
    "awq": awq_weight,
    "compressed-tensors": compressed_weight,
    "hqq": hqq_weight,
    "bitsandbytes": bitsandbytes_weight,
    "matgptq": matgptq_weight,
    "matquant": matquant_weight,
    "any-precision": any_precision_weight,
    "anybcq": any_bcq_weight,
}
"""For each format the weight of a layer at one of its widths, out of the layer's tensors and facts; in float32."""
PLANE_FILE = "nested-plane-"


class ForeignTensors:
    """The tensors of a foreign model, opened for as long as a `with` block lasts; each is read when it is asked for."""

    def __init__(self, files: ForeignFiles, foreign: Foreign) -> None:
        self.files, self.foreign = files, foreign
        self._stack = ExitStack()
        self._places: dict[str, Any] = {}
        self._of_layer: dict[str, dict[str, str]] = {}
        self._parents = _parents(files) if foreign.format == "matquant" else {}

    def __enter__(self) -> ForeignTensors:
        for path in self.files.weights:
            opened = self._open(path)
            for name in opened.keys():  # noqa: SIM118 -- no mapping
                self._place(name, path, opened)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, path: Path) -> Any:
        try:
            return self._stack.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path} is cut short or damaged ({first_sentence(error)}); copy or download it again"
            ) from error

    def _place(self, name: str, path: Path, opened: Any) -> None:
        if path.stem.startswith(PLANE_FILE):  # every plane has the layer's own name
            place = name, PLANE + path.stem.removeprefix(PLANE_FILE)
        else:
            place = layer_of(name, self.foreign.layers)
        key = name if place is None else ".".join(place)
        self._places[key] = lambda: opened.get_tensor(name)
        if place is not None:
            self._of_layer.setdefault(place[0], {})[place[1]] = key

    def leave_out_zeros(self, known: Container[str]) -> None:
        """Leaves out biases of quantized layers that a model does not have: AutoGPTQ saves zeros for them.

        UserError for one that is not zero, which would be lost.
        """
        for name in [name for name in self.names() if name.endswith(".bias") and name not in known]:
            if name.removesuffix(".bias") not in self.foreign.layers:
                continue
            if self._places[name]().any():
                raise UserError(
                    f"{self.files.title} has a {name}, which its model does not; quantize it again, or take another "
                    "version of transformers"
                )
            del self._places[name]

    def names(self) -> list[str]:
        """The names of what is not quantized."""
        of_layers = {key for parts in self._of_layer.values() for key in parts.values()}
        return [name for name in self._places if name not in of_layers and name.rpartition(".")[2] not in UNUSED]

    def others(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that are not quantized."""
        for name in self.names():
            yield name, self._places[name]()

    def weight(self, layer: str, bits: int) -> Float[Tensor, "out in"]:
        """A quantized layer at one of its widths; UserError where its tensors do not fit together."""
        tensors = {part: self._places[key]() for part, key in self._of_layer[layer].items()}
        stored = self.foreign.layers[layer]
        facts = {**self.files.quantization, "layer": layer, **self._facts(layer, stored)}
        try:
            weight = READERS[self.foreign.format](tensors, facts, bits)
        except UserError:
            raise
        except (KeyError, ValueError, IndexError, RuntimeError, TypeError, StopIteration) as error:
            raise UserError(
                f"{layer} of {self.files.title} cannot be read as {self.foreign.format} ({first_sentence(error)}); "
                "copy or download it again, or quantize it again"
            ) from error
        if weight.shape != torch.Size(stored.shape):
            raise UserError(
                f"{layer} of {self.files.title} is {tuple(weight.shape)}, and its configuration makes it "
                f"{stored.shape}; copy or download it again"
            )
        return weight

    def _facts(self, layer: str, stored: StoredLayer) -> Mapping[str, Any]:
        if self.foreign.format != "matquant":
            return {}
        return {"parent_bits": self._parents[layer], "columns": stored.shape[1]}


def _parents(files: ForeignFiles) -> dict[str, int]:
    layers = json.loads((files.folder / "nested.json").read_text(encoding="utf-8"))["layers"]
    return {name: int(facts["parent_bits"]) for name, facts in layers.items()}
