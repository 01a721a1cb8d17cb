"""Five lines to serve a checkpoint: a model at one precision, and at another without loading it again."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from matquant.notation import Plan, Slice
from matquant.serving.places import nested_folder
from matquant.serving.reading import read_into, reading_of
from matquant.serving.with_transformers import MatQuantConfig


def load(
    source: str | Path,
    plan: str | Slice | Plan | None = None,
    *,
    packed: bool = False,
    revision: str | None = None,
    **arguments: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model read at one precision out of a nested folder, and its tokenizer.

    `source` is a folder that `matquant export nested` wrote, or a repository of the hub that holds one; of the latter
    only the planes that the plan needs are fetched.  `plan` is `int3`, `int2+ep`, `pyramid@3`, a plan that was searched
    for, or the path of a plan file; None is the whole parent.  `packed` keeps weights at that width in memory.  Other
    arguments go to `from_pretrained`, such as `dtype` and `device_map`.

    UserError for a folder that is missing, cut short or foreign, and for a plan that it cannot be read at.
    """
    folder = nested_folder(source, revision)
    read = folder.plan(plan)
    with warnings.catch_warnings():
        # It says that the plan given here is taken instead of the folder's own: that is what was asked for.
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")
        model = AutoModelForCausalLM.from_pretrained(
            source, revision=revision or "main", quantization_config=MatQuantConfig(read, packed=packed), **arguments
        )
    return model, AutoTokenizer.from_pretrained(source, revision=revision or "main")


def reread(model: nn.Module, plan: str | Slice | Plan | None = None) -> nn.Module:
    """Reads a loaded model at another precision, in place, and returns it; UserError as for `load`.

    What is not quantized stays where it is.  A plan that the folder cannot be read at changes nothing.
    """
    reading = reading_of(model)
    read_into(model, reading.folder, reading.folder.plan(plan), packed=reading.packed)
    return model
