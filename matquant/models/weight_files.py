"""The files that hold a model's weights, read by their headers alone: they are whole, and they are this model's.

`transformers` fills what a file lacks with random numbers, and drops what it does not know.  Here its own loader runs
on tensors without values, so that whatever it renames, ties, fuses or ignores is judged as it will be when the weights
are read; 80 GB of them take a second.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from matquant.errors import UserError
from matquant.models.checks import first_sentence

NAMED = 3
"""The most tensors that a sentence names."""
BAD_FILE = (SafetensorError, OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError)
"""The exceptions of files of weights that are cut short, damaged, or something else."""
CONSTANTS = re.compile(
    r"(^|\.)((maybe_)?rotary(_emb)?\.(inv_freq|cos_cached|sin_cached)|position_ids|decoder\.version"
    r"|(attn|(self_)?attention)\.((masked_?)?bias|causal_mask)|embed_positions\.(weights|_float_tensor))$"
)
"""Masks and tables that older versions saved among the weights, and that a model computes by itself."""
TOWERS = re.compile(r"^(model\.)?(vision_(tower|model)|visual|audio_tower|multi_modal_projector)\.")
"""Parts of a model for images or sound, which no text passes through; its text model may be read alone (Llama-4)."""
MENDED = "train or convert it again, and save_pretrained it there"
UNQUANTIZED = "give its unquantized weights, or measure it as it is with base=foreign"
LFS = b"version https://git-lfs"


def weight_files(find: Callable[[str], Path | None], title: str) -> list[Path]:
    """The files that `from_pretrained` reads the weights from; UserError, with the model's title, for one that lacks.

    `find` gives the path of a file of the model, or None.
    """
    if find("adapter_config.json") is not None:
        raise UserError(
            f"{title} holds an adapter beside its weights; merge it into them (peft's merge_and_unload) and save that"
        )
    for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (path := find(single)) is not None:
            return [path]
        if (path := find(index)) is not None:
            return _shards(path, find, title)
    raise UserError(
        f"{title} holds no weights ({SAFE_WEIGHTS_NAME}, or {SAFE_WEIGHTS_INDEX_NAME} and its shards); "
        "copy or download them too"
    )


def _shards(index: Path, find: Callable[[str], Path | None], title: str) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of weights ({error}); copy or download it again") from error
    paths = {name: find(name) for name in names}
    if absent := [name for name, path in paths.items() if path is None]:
        raise UserError(
            f"{title} lacks {len(absent)} of the {len(names)} files of its weights: {named(absent)}; "
            "copy or download them too"
        )
    return [path for path in paths.values() if path is not None]


def headers(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of some files without their values; UserError for a file that is cut short or damaged."""
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors |= load_state_dict(str(path), map_location="meta")
        except BAD_FILE as error:
            if _starts_with(path, LFS):
                raise UserError(f"{path} is a pointer of git-lfs, not the file; run `git lfs pull` there") from error
            raise UserError(
                f"{path} is cut short or damaged ({first_sentence(error)}); copy or download it again"
            ) from error
    return tensors


def _starts_with(path: Path, start: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(start)) == start
    except OSError:
        return False


def check_tensors(tensors: Mapping[str, Tensor], empty: PreTrainedModel, title: str) -> None:
    """Refuses tensors that are not those of a model, which is given without its weights."""
    coded = [name for name, one in tensors.items() if name.endswith("weight") and one.ndim > 1 and not _is_real(one)]
    if packed := coded or [name for name in tensors if name.endswith((".qweight", ".weight_packed"))]:
        kind = str(tensors[packed[0]].dtype).removeprefix("torch.")
        raise UserError(f"{title} is already quantized ({packed[0]} is {kind}); {UNQUANTIZED}")
    with report_kept() as report, _plain_conversion(report, title):
        loaded: Any = type(empty).from_pretrained(
            None,
            config=empty.config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    check_report(loaded[1], title)


def _is_real(tensor: Tensor) -> bool:
    """True for floating point numbers of two bytes at least; fewer are codes that lack their scales."""
    return tensor.is_floating_point() and tensor.itemsize > 1


def check_report(info: Mapping[str, Any], title: str) -> None:
    """Refuses a model of which `from_pretrained` reports tensors that are missing, unexpected or mis-shaped."""
    remedy = "give the folder or repository of the complete model, as save_pretrained writes it"
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{title} lacks {counted(missing)} of its model, which would be random numbers: {named(missing)}; {remedy}"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, wanted = mismatched[0]
        raise UserError(
            f"{title} has {counted(mismatched)} of another shape than its config.json says: {name} is "
            f"{tuple(found)} and should be {tuple(wanted)}; {remedy}"
        )
    unknown = sorted(info["unexpected_keys"])
    if unexpected := [name for name in unknown if not (CONSTANTS.search(name) or TOWERS.search(name))]:
        raise UserError(
            f"{title} has {counted(unexpected)} that its model does not know, and that would be left out: "
            f"{named(unexpected)}; {remedy}"
        )


def check_values(files: Sequence[Path], title: str) -> None:
    """Refuses files with a number that is NaN or infinite; they are read once, and not kept."""
    for path in files:
        for name, tensor in load_state_dict(str(path)).items():
            if tensor.is_floating_point() and not _is_finite(tensor):
                raise UserError(f"{title} has numbers that are not finite in {name}; {MENDED}")


def check_finite(model: nn.Module, title: str, dtype: str) -> None:
    """Refuses a model in memory with a weight that is NaN or infinite; one pass on its device, without a copy."""
    for name, weight in model.named_parameters():
        if not _is_finite(weight.detach()):
            narrow = ", or set model.dtype=bfloat16 readout.dtype=bfloat16 where float16 is too narrow for them"
            remedy = f"{MENDED}{narrow if dtype == 'float16' else ''}"
            raise UserError(f"{title} has numbers that are not finite in {name}, read as {dtype}; {remedy}")


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.numel() or all(math.isfinite(end.item()) for end in torch.aminmax(tensor))


def counted(names: Sequence[object]) -> str:
    """The number of some tensors: 1 tensor, 2 tensors."""
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"


def named(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are."""
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


@contextmanager
def report_kept() -> Iterator[list[str]]:
    """Keeps what the loader of `transformers` would log, a table of many lines, and shows no bar."""
    kept: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        kept.append(record.getMessage())
        return False

    logger, had_bars = (
        logging.getLogger("transformers.modeling_utils"),
        transformers.utils.logging.is_progress_bar_enabled(),
    )
    logger.addFilter(keep)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield kept
    finally:
        logger.removeFilter(keep)
        if had_bars:
            transformers.utils.logging.enable_progress_bar()


@contextmanager
def _plain_conversion(report: Sequence[str], title: str) -> Iterator[None]:
    """Turns a failure to fuse tensors, such as those of a layer's experts, into one sentence."""
    try:
        yield
    except RuntimeError as error:
        targets = sorted(set(re.findall(r"destined for (\S+?)\. ", " ".join(report))))
        raise UserError(
            f"{title} has tensors that do not fit together{f' in {named(targets)}' if targets else ''}; "
            "give the folder or repository of the complete model, as save_pretrained writes it"
        ) from error
