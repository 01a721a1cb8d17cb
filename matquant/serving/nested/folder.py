"""A nested folder: an ordinary Hugging Face folder whose quantized weights are bit planes.

config.json, tokenizer...           as `save_pretrained` writes them, with quant_method `matquant`
nested-unquantized*.safetensors     whatever is not quantized (`matquant.serving.nested.unquantized`)
nested-grids.safetensors            <layer>.scale and <layer>.zero in the grid's stated dtype; <layer>.transform.*
nested-plane-1.safetensors ...      <layer> uint8 [out, ceil(in / 8)]: one bit of every code, most significant first
nested.json                         format version, layers, plans that were searched for, cell, sources, checksums

nested.json and the header of every nested file hold the same `stamp`: files of two models are not read as one.

int-r is read from the first r + 1 planes (`matquant.codes.planes`), each a file of its own: a width that is not asked
for is neither read nor downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from matquant.codes.layouts import slices_of
from matquant.codes.nested import Transform
from matquant.codes.planes import planes_needed, sliced_planes
from matquant.codes.quantizers import Grid
from matquant.codes.sliced import SlicedWeight, grid_of
from matquant.errors import UserError
from matquant.notation import EQ_6, FULL, Plan, Slice, by_eq_6

FORMAT = "matquant-nested"
FORMAT_VERSION = 2
DESCRIPTION = "nested.json"
GRIDS = "nested-grids.safetensors"
STAMP = "stamp"
"""The key under which the description and every nested file say what they belong to."""
AGAIN = "write it again with `matquant export nested CELL DIR`"


def plane_file(number: int) -> str:
    """The file of a plane; the most significant is 1."""
    return f"nested-plane-{number}.safetensors"


class LayerFacts(NamedTuple):
    """The facts of a quantized layer that are known before it is read."""

    shape: tuple[int, int]
    parent_bits: int

    @property
    def plane_bytes(self) -> int:
        return self.shape[0] * -(-self.shape[1] // 8)


@dataclass
class Counter:
    """The bytes of tensors that were read from a nested folder."""

    num_bytes: int = 0


@dataclass(frozen=True)
class NestedFolder:
    """A nested folder whose description has been read and understood."""

    title: str
    find: Callable[[str], Path]
    """The place of one of its files, which is fetched first if it lies on a hub; UserError if there is none."""
    facts: Mapping[str, Any]
    layers: Mapping[str, LayerFacts]
    read: Counter

    @classmethod
    def open(cls, title: str, find: Callable[[str], Path]) -> NestedFolder:
        """Reads the description; UserError if it is missing, foreign, or of a newer format."""
        path = find(DESCRIPTION)
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); {AGAIN}") from error
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise UserError(
                f"{path} describes something else than a nested folder; `matquant export nested CELL DIR` writes one"
            )
        version = facts.get("format_version")
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise UserError(
                f"{title} has format version {version}, this program reads up to {FORMAT_VERSION}; "
                "install a newer one with `pip install --upgrade matquant`"
            )
        try:
            layers = {
                name: LayerFacts((int(layer["shape"][0]), int(layer["shape"][1])), int(layer["parent_bits"]))
                for name, layer in facts["layers"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UserError(f"{path} does not say the layers as version {version} does ({error!r}); {AGAIN}") from error
        return cls(title, find, facts, layers, Counter())

    @property
    def version(self) -> int:
        """The format of the folder."""
        return self.facts["format_version"]

    @property
    def parent(self) -> Slice:
        """The widest read-out."""
        return Slice(max(layer.parent_bits for layer in self.layers.values()))

    def plan(self, asked: Plan | Slice | str | None) -> Plan:
        """A plan of these layers with its widths; UserError if the folder cannot be read like that.

        None is the whole parent.
        """
        if asked is None:
            asked = self.parent
        if not isinstance(asked, Plan):
            asked = self._named(str(asked))
        if str(asked) == FULL:
            raise UserError(
                f"{self.title} holds quantized weights alone, and no {FULL} read-out; the widest is {self.parent}"
            )
        if asked.strategy is not None and asked.layers is None:
            asked = self._searched(asked)
        if asked.rule != EQ_6:
            raise UserError(
                f"{asked} slices by {asked.rule}, and {self.title} is read by Eq. 6 alone; {by_eq_6(asked)}"
            )
        for name, part in slices_of(asked, self.layers).items():
            bits = self.layers[name].parent_bits
            if part.bits > bits or (part.extra_precision and part.bits == bits):
                raise UserError(
                    f"{asked} reads {name} at {part}, and the parent of {self.title} is int{bits}; "
                    f"choose a width from int1 to int{bits}"
                )
        return asked

    def _named(self, asked: str) -> Plan:
        """A plan by its name; that of a search ends in a digest of its settings, if they are not the defaults.

        The digest can be left out where the folder has one plan of that strategy and budget.
        """
        plans = self.facts.get("plans") or {}
        of_budget = [name for name in plans if name.partition("-")[0] == asked]
        if asked not in plans and len(of_budget) == 1:
            asked = of_budget[0]
        digest = asked.partition("-")[1:] if asked in plans else ()
        try:
            return Plan.parse(asked.removesuffix("".join(digest))).under(digest[1] if digest else "")
        except ValueError as error:
            raise UserError(str(error)) from error

    def _searched(self, asked: Plan) -> Plan:
        plans = self.facts.get("plans") or {}
        if str(asked) not in plans:
            known = f"it has {', '.join(plans)}" if plans else "it has none that were searched for"
            raise UserError(
                f"{self.title} does not hold the plan {asked}; {known}, and every width and layout, such as int3"
            )
        return asked.found(plans[str(asked)])

    def files(self, plan: Plan) -> list[str]:
        """The files that a plan is read from, beside those of the unquantized weights."""
        return [DESCRIPTION, GRIDS, *(plane_file(number) for number in range(1, self._depth(plan) + 1))]

    def _depth(self, plan: Plan) -> int:
        parts = slices_of(plan, self.layers)
        return max(planes_needed(part, self.layers[name].parent_bits) for name, part in parts.items())

    def num_bytes(self, plan: Plan) -> int:
        """The bytes of planes that a plan reads."""
        parts = slices_of(plan, self.layers)
        return sum(
            planes_needed(part, self.layers[name].parent_bits) * self.layers[name].plane_bytes
            for name, part in parts.items()
        )

    def read_at(
        self, plan: Plan, names: Iterable[str] | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[str, SlicedWeight]]:
        """Every layer as a plan reads it, or those that are named, one at a time; nothing else is read."""
        parts = slices_of(plan, self.layers)
        wanted = list(self.layers if names is None else names)
        needed = {name: planes_needed(parts[name], self.layers[name].parent_bits) for name in wanted}
        with self._opened([GRIDS, *map(plane_file, range(1, self._depth(plan) + 1))]) as opened:
            # All headers first: a reader that overwrites a model does not stop in the middle of it.
            for name in wanted:
                self._check(opened, name, needed[name])

            def tensors(file: str, name: str) -> Tensor:
                read = opened[file].get_tensor(name)
                self.read.num_bytes += read.numel() * read.element_size()
                return read

            for name in wanted:
                layer, part = self.layers[name], parts[name]
                planes = [tensors(plane_file(number), name).to(device) for number in range(1, needed[name] + 1)]
                codes = sliced_planes(planes, part, parent_bits=layer.parent_bits, columns=layer.shape[1])
                grid = Grid(*(tensors(GRIDS, f"{name}.{kind}").to(device).float() for kind in ("scale", "zero")))
                yield (
                    name,
                    SlicedWeight(
                        codes, grid_of(grid, part, layer.parent_bits), part, self._transform(tensors, name, device)
                    ),
                )

    def _check(self, opened: Mapping[str, Any], name: str, needed: int) -> None:
        """Raises UserError if the planes or the grid of a layer are missing, or are those of another shape."""
        rows, columns = self.layers[name].shape
        kinds = ("scale", "zero", *(f"transform.{kind}" for kind in self._transform_kinds(name)))
        places = [(plane_file(number), name) for number in range(1, needed + 1)]
        for file, key in [*places, *((GRIDS, f"{name}.{kind}") for kind in kinds)]:
            try:
                shape = opened[file].get_slice(key).get_shape()
            except SafetensorError as error:
                raise UserError(f"{self.title}: {file} holds no {key} ({error}); {AGAIN}") from error
            if file != GRIDS and shape != [rows, -(-columns // 8)]:
                raise UserError(
                    f"{self.title}: the planes of {name} are not those of a layer {(rows, columns)}; {AGAIN}"
                )

    def _transform_kinds(self, name: str) -> Sequence[str]:
        return self.facts["layers"][name].get("transform", ())

    def _transform(
        self, tensors: Callable[[str, str], Tensor], name: str, device: torch.device | str
    ) -> Transform | None:
        if not (kinds := self._transform_kinds(name)):
            return None
        return Transform(**{kind: tensors(GRIDS, f"{name}.transform.{kind}").to(device) for kind in kinds})

    @contextmanager
    def _opened(self, files: Iterable[str]) -> Iterator[Mapping[str, Any]]:
        """Files opened for as long as the context lasts; a tensor is read when it is asked for."""
        with ExitStack() as stack:
            opened = {name: self._open(stack, self.find(name)) for name in files}
            for name, file in opened.items():
                self.require_stamp(name, (file.metadata() or {}).get(STAMP))
            yield opened

    def require_stamp(self, name: str, stamp: str | None) -> None:
        """Raises UserError for the stamp of a file that belongs to another folder."""
        if stamp != self.facts.get(STAMP):
            raise UserError(
                f"{self.title}: {name} is of another checkpoint than the {DESCRIPTION} that was read; "
                f"load the folder again if it was replaced meanwhile, or {AGAIN}"
            )

    def _open(self, stack: ExitStack, path: Path) -> Any:
        try:
            return stack.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read, it may be cut short ({error}); {AGAIN}") from error
