"""A foreign model as an ordinary one of `transformers`, and its layers written at another of its widths.

The loader of `transformers` gets every tensor as it would lie in the folder of the unquantized model, so that whatever
it renames, ties or refuses is done here too.  GGUF it reads by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from matquant.codes.layouts import slices_of
from matquant.config.cell import ForeignModel
from matquant.config.home import at_home
from matquant.errors import UserError
from matquant.models.checks import check_config, plain_words, title
from matquant.models.foreign.compressed import require_library
from matquant.models.foreign.matgptq import read_packed
from matquant.models.foreign.matgptq_damage import refuse_reaching_both_ends
from matquant.models.foreign.weights import ForeignTensors
from matquant.models.gguf_model import divide_frequencies, require_placed, settle
from matquant.models.layers.linear_layers import LinearOfConv1D
from matquant.models.weight_files import check_report, check_tensors, report_kept
from matquant.notation import FULL_BITS, Plan
from matquant.stored.foreign import Foreign, describe
from matquant.stored.foreign_files import ForeignFiles
from matquant.stored.headers import REAL, entries

IMPORTED = (
    " (`matquant import matgptq RAW DIR --model MODEL`), and measure DIR; or import this one so, if the weights of its "
    "model are like that"
)
CODE = {"trust_remote_code": False}
OF_STORAGE = ("quantization_config", "compression_config", "transformers_weights")
"""The facts of a configuration on how weights lie in files; the last is of a nested folder."""
META_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def opened(spec: ForeignModel) -> tuple[ForeignFiles, Foreign]:
    """The files of a model; UserError if they are others than those that its cell was made of."""
    files, foreign = describe(at_home(spec.path))
    if (foreign.format, foreign.widths) != (spec.format, spec.widths):
        raise UserError(f"{title(spec)} was changed while it was read; run the same command again")
    return files, foreign


def tokenizer_source(spec: ForeignModel) -> tuple[str, dict[str, Any]]:
    """The folder in which `from_pretrained` finds the tokenizer, and its arguments."""
    files, _ = opened(spec)
    return (str(files.folder), CODE) if files.has_tokenizer_beside else _source(files)


def _source(files: ForeignFiles) -> tuple[str, dict[str, Any]]:
    return str(files.folder), CODE if files.gguf is None else {**CODE, "gguf_file": files.gguf.name}


def foreign_config(spec: ForeignModel) -> PretrainedConfig:
    """The configuration of the model without quantization; UserError for one that is not measured here."""
    files, _ = opened(spec)
    source, arguments = _source(files)
    with report_kept(), plain_words(spec):
        if files.gguf is None:
            check_config(spec, {key: value for key, value in files.config.items() if "_config" not in key})
        config = AutoConfig.from_pretrained(source, **arguments)
        if files.gguf is not None:
            settle(config, files.gguf, title(spec))
    for one in (config, config.get_text_config()):
        for key in OF_STORAGE:
            if hasattr(one, key):
                delattr(one, key)
    return config


def check_foreign_files(spec: ForeignModel, empty: PreTrainedModel) -> None:
    """Refuses, by headers alone, files that are not those of the model, and formats whose package is missing."""
    files, foreign = opened(spec)
    if foreign.format == "compressed-tensors":
        require_library()
    if files.gguf is not None:
        require_placed(foreign_config(spec), files.gguf, title(spec))
        return
    _require_linear(empty, foreign, spec)
    with ForeignTensors(files, foreign) as tensors:
        tensors.leave_out_zeros(_names(empty))
        found = entries(files.weights)
        shapes = {name: found[name] for name in tensors.names() if name in found}
    known = _names(empty)
    # Codes that no layer has are of no real dtype, and are refused by name as unknown to the model.
    expanded: dict[str, Tensor] = {
        name: torch.empty(entry.shape, dtype=META_DTYPES.get(entry.dtype, torch.float32), device="meta")
        for name, entry in shapes.items()
        if entry.dtype in REAL or name not in known
    }
    for name, layer in foreign.layers.items():
        expanded[f"{name}.weight"] = torch.empty(layer.shape, device="meta")
    check_tensors(expanded, empty, title(spec))


def _names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def _require_linear(empty: PreTrainedModel, foreign: Foreign, spec: ForeignModel) -> None:
    """Refuses layers that transformers keeps transposed, of which no shape would tell, and those that are tied."""
    embedding_of = empty.get_input_embeddings()
    embedding = embedding_of.get_parameter("weight")
    for name, module in empty.named_modules():
        if name in foreign.layers and isinstance(module, LinearOfConv1D):
            raise UserError(f"{title(spec)} is of an architecture with transposed layers ({name}), which is not read")
        if name in foreign.layers and module is not embedding_of and getattr(module, "weight", None) is embedding:
            raise UserError(
                f"{title(spec)} has a quantized {name}, and its config.json ties that to the embedding; set "
                "tie_word_embeddings to false there, if both are in its files"
            )


def load_foreign(spec: ForeignModel, empty: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with every layer at its widest."""
    files, foreign = opened(spec)
    if files.gguf is not None:
        return _load_gguf(spec, files.gguf, files, dtype)
    check_foreign_files(spec, empty)
    if foreign.format == "matgptq":
        refuse_reaching_both_ends(read_packed(files.folder).layers, or_else=IMPORTED)
    with ForeignTensors(files, foreign) as tensors, report_kept(), plain_words(spec):
        tensors.leave_out_zeros(_names(empty))
        state = {name: tensor.to(dtype) for name, tensor in tensors.others() if tensor.is_floating_point()}
        for name, layer in foreign.layers.items():
            state[f"{name}.weight"] = tensors.weight(name, layer.width).to(dtype)
        loaded: Any = type(empty).from_pretrained(
            None,
            config=foreign_config(spec),
            state_dict=state,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused here by name
        )
    model, info = loaded
    check_report(info, title(spec))
    return model


def _load_gguf(spec: ForeignModel, path: Path, files: ForeignFiles, dtype: torch.dtype) -> PreTrainedModel:
    source, arguments = _source(files)
    config = foreign_config(spec)
    require_placed(config, path, title(spec))
    with report_kept(), plain_words(spec):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, output_loading_info=True, **arguments
        )
    model, info = loaded
    check_report(info, title(spec))
    divide_frequencies(model, path)
    return model


@torch.no_grad()
def read_foreign(model: nn.Module, spec: ForeignModel, plan: Plan) -> None:
    """Overwrites the quantized layers of a model with what a plan reads; a file of one width stays as it was loaded."""
    files, foreign = opened(spec)
    if len(foreign.widths) < 2:
        return
    with ForeignTensors(files, foreign) as tensors:
        for name, bits in _bits_of(plan, foreign).items():
            weight = model.get_submodule(name).get_parameter("weight")
            weight.copy_(tensors.weight(name, bits))


def _bits_of(plan: Plan, foreign: Foreign) -> dict[str, int]:
    """The width of each layer under a plan."""
    if len(foreign.widths) < 2:
        return {name: layer.width for name, layer in foreign.layers.items()}
    return {name: part.bits for name, part in slices_of(plan, foreign.layers).items()}


def foreign_bits(spec: ForeignModel, plan: Plan, *, num_parameters: int) -> tuple[float, Mapping[str, float]]:
    """The effective bits of a plan, and beside them everything else that the file holds for it.

    `grid_bits`: scales, zeros, tables and what fills up words, as the file stores them, per quantized weight.
    """
    _, foreign = opened(spec)
    widths = _bits_of(plan, foreign)
    size = sum(layer.size for layer in foreign.layers.values())
    codes = sum(bits * foreign.layers[name].size for name, bits in widths.items())
    stored = sum(foreign.layers[name].bits[bits] for name, bits in widths.items())
    rest = FULL_BITS * (num_parameters - size)
    overhead = {
        "grid_bits": (stored - codes) / size,
        "overflow_bits": 0.0,
        "model_bits": (stored + rest) / num_parameters,
    }
    return codes / size, overhead
