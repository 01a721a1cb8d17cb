"""A read-out as a GGUF file, which llama.cpp opens: codes of up to four bits in blocks of 4, and wider ones by kind.

The tensors around the quantized layers keep the dtype of the model.  A model that was read from a GGUF file keeps that
file's facts and tokenizer, and those of its tensors that are still what the file says, block for block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from matquant.codes.quantizers import Grid
from matquant.codes.sliced import SlicedWeight
from matquant.config.cell import EmbeddedModel
from matquant.errors import UserError
from matquant.models.embedded import whole_file
from matquant.models.layers.stored_layers import as_quantized
from matquant.serving.engines.formats import Source, refuse_layers
from matquant.serving.gguf.architecture import architecture_of, facts_of, row_order, tensors_of
from matquant.serving.gguf.blocks import BLOCK, WIDEST_WITH_MINIMUM, held_in, kind_of, pack
from matquant.serving.gguf.tokenizer import adds, special_ids, tokens_of

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

FILE = "model.gguf"
OTHERS = "export humming, hqq or dense, which hold every width"
OWN_FIELDS = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")
"""Fields that are written anew: the file is another one."""


@dataclass(frozen=True)
class Gguf:
    """Blocks of codes with float16 scales, each layer in the smallest that holds it exactly."""

    name: str = "gguf"
    scale_dtype: torch.dtype | None = torch.float16

    def refuse(self, source: Source) -> None:
        """Families and tokenizers that are not written here, groups that blocks of 32 do not fit into, wide codes."""
        try:
            import gguf as _  # noqa: F401 - only asked for
        except ImportError as error:
            raise UserError("gguf is written with the gguf library; run: pip install 'gguf>=0.17'") from error
        architecture_of(source.model.config)
        if not isinstance(source.origin, EmbeddedModel):
            tokens_of(source.tokenizer, source.model.config.vocab_size)
        shapes = source.shapes
        refuse_layers(
            self.name,
            "base.transformation divides their weights by input channel, so that they lie on no grid of groups",
            (name for name, shape in shapes.items() if shape.has_transform),
            "export dense or a nested folder, or train with base.transformation=false",
        )
        refuse_layers(
            self.name,
            f"a block has {BLOCK} codes of one scale, which divide neither their groups nor their inputs",
            (name for name, shape in shapes.items() if (shape.group_size or shape.shape[1]) % BLOCK),
            f"{OTHERS}, or train with grid=group_{BLOCK}",
        )
        refuse_layers(
            self.name,
            "codes of six to eight bits are kept as signed integers without a zero, and theirs are no integers, or "
            "leave no room",
            (
                name
                for name, shape in shapes.items()
                if shape.part.bits + shape.part.extra_precision > WIDEST_WITH_MINIMUM
                and kind_of(source.read(name)) is None
            ),
            f"choose int5, int4 or narrower, or {OTHERS}",
        )

    def hold(self, name: str, weight: SlicedWeight) -> SlicedWeight:
        kind = kind_of(weight)
        assert kind is not None, "refused before"
        return held_in(name, weight, kind)

    def notes(self, source: Source) -> Sequence[str]:
        """Says it of widths that save nothing."""
        narrow = sorted({str(shape.part) for shape in source.shapes.values() if shape.part.bits < 4})
        if not narrow:
            return []
        return [
            f"{' and '.join(narrow)} layers take as much as int4 ones in this format: blocks of 4 bits are its "
            "narrowest with scales of their own"
        ]

    def write(self, folder: Path, source: Source, held: Callable[[str], SlicedWeight]) -> None:
        """Writes the file; layers are packed from what the checkpoint reads, which `held` has rounded already."""
        from gguf import GGUFWriter

        architecture = architecture_of(source.model.config)
        writer = GGUFWriter(folder / FILE, architecture.name)
        with _origin(source, folder) as reader:
            if reader is None:
                _add_facts(writer, source)
                _add_tokenizer(writer, source)
            else:
                _copy_fields(writer, reader)
            kinds = _add_tensors(writer, source, reader)
            writer.add_file_type(_file_type(kinds))
            writer.add_quantization_version(2)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()


@contextmanager
def _origin(source: Source, folder: Path) -> Iterator[GGUFReader | None]:
    """The GGUF file that the model was read from, if there is one."""
    if not isinstance(source.origin, EmbeddedModel):
        yield None
        return
    from gguf import GGUFReader

    with TemporaryDirectory(dir=folder.parent) as beside, whole_file(source.origin, Path(beside) / "joined") as path:
        yield GGUFReader(path)


def _copy_fields(writer: GGUFWriter, reader: GGUFReader) -> None:
    for key, field in reader.fields.items():
        if not key.startswith(OWN_FIELDS):
            of_items = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], of_items)


def _add_facts(writer: GGUFWriter, source: Source) -> None:
    writer.add_type("model")
    writer.add_name(source.origin.name if source.origin else "model")
    for key, value in facts_of(source.model.config).items():
        named = f"{writer.arch}.{key}"
        match value:
            case int():
                writer.add_uint32(named, value)
            case float():
                writer.add_float32(named, value)
            case str():
                writer.add_string(named, value)


def _add_tokenizer(writer: GGUFWriter, source: Source) -> None:
    tokens = tokens_of(source.tokenizer, source.model.config.vocab_size)
    writer.add_tokenizer_model(tokens.model)
    writer.add_tokenizer_pre(tokens.pre)
    writer.add_token_list(tokens.tokens)
    writer.add_token_types(tokens.types)
    if tokens.merges:
        writer.add_token_merges(tokens.merges)
    if tokens.scores:
        writer.add_token_scores(tokens.scores)
    for name, number in special_ids(source.tokenizer).items():
        getattr(writer, f"add_{name}_token_id")(number)
    begins, ends = adds(source.tokenizer)
    writer.add_add_bos_token(begins)
    writer.add_add_eos_token(ends)
    writer.add_add_space_prefix(tokens.add_space_prefix)
    if isinstance(template := source.tokenizer.chat_template, str):
        writer.add_chat_template(template)


def _add_tensors(writer: GGUFWriter, source: Source, reader: GGUFReader | None) -> Counter[str]:
    """Adds every tensor; the number of quantized layers by kind of block."""
    from gguf import GGMLQuantizationType

    kinds: Counter[str] = Counter()
    config = source.model.config
    stored = {} if reader is None else {tensor.name: tensor for tensor in reader.tensors}
    with as_quantized(source.model):
        for written, name, values in tensors_of(source.model):
            order = row_order(config, name)
            layer = name.removesuffix(".weight")
            if layer in source.shapes and name.endswith(".weight"):
                weight = _reordered(source.read(layer), order)
                kind = kind_of(weight)
                assert kind is not None, "refused before"
                kinds[kind.name] += 1
                writer.add_tensor(written, pack(layer, weight, kind), raw_dtype=GGMLQuantizationType[kind.name])
                continue
            values = values if order is None else values[order]
            array, raw = _kept(stored[written], values) if written in stored else (None, None)
            if array is None:
                array, raw = _plain(values)
            writer.add_tensor(written, array, raw_dtype=raw)
    return kinds


def _reordered(weight: SlicedWeight, order: Tensor | None) -> SlicedWeight:
    """A layer with its rows in another order: codes and grids move together."""
    if order is None:
        return weight
    return weight._replace(codes=weight.codes[order], grid=Grid(*(part[order] for part in weight.grid)))


def _kept(tensor: Any, values: Tensor) -> tuple[np.ndarray | None, Any]:
    """The blocks of the file that the model was read from, if they are still what the model has."""
    from gguf.quants import dequantize

    if values.ndim == 1 or values.dtype != torch.float32:
        return None, None
    read = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type))).view(values.shape)
    return (tensor.data, tensor.tensor_type) if torch.equal(read, values) else (None, None)


def _plain(values: Tensor) -> tuple[np.ndarray, Any]:
    """A tensor in its own dtype; norms and biases in float32."""
    from gguf import GGMLQuantizationType

    values = values.detach().contiguous()
    if values.ndim == 1:
        return values.float().numpy(), None
    if values.dtype == torch.bfloat16:
        return values.view(torch.uint8).numpy(), GGMLQuantizationType.BF16
    return values.numpy(), None


def _file_type(kinds: Mapping[str, int]) -> int:
    """The name of the file's most frequent kind of block, which llama.cpp prints."""
    from gguf import LlamaFileType

    return LlamaFileType[f"MOSTLY_{max(kinds, key=lambda kind: kinds[kind])}"]
