"""Five lines to serve a checkpoint: a model at one precision, and at another without loading it again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from matquant.errors import UserError
from matquant.models.checks import first_sentence
from matquant.notation import Plan, Slice
from matquant.serving.nested import unquantized
from matquant.serving.nested.folder import AGAIN, NestedFolder
from matquant.serving.nested.places import HUB, commit_of, nested_folder
from matquant.serving.nested.reading import read_into, reading_of
from matquant.serving.with_transformers import MatQuantConfig, opened


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
    for, or the path of a plan file; None is the whole parent.  `packed` keeps weights at that width in memory.
    `revision`, `token`, `cache_dir`, `subfolder` and `local_files_only` are those of transformers and count for all
    files.  Other arguments go to `from_pretrained`, such as `dtype` and `device_map`.

    UserError for a folder that is missing, cut short or foreign, and for a plan that it cannot be read at.
    """
    words: dict[str, Any] = {name: arguments.pop(name) for name in HUB if name in arguments}
    folder = nested_folder(source, revision, **words)
    read = folder.plan(plan)
    folder.find("config.json")
    unquantized.files(folder)
    # `~` is known to no function of transformers.
    words["revision"] = commit_of(folder) or "main"
    place = local if (local := Path(source).expanduser()).is_dir() else source
    with warnings.catch_warnings():
        # It says that the plan given here is taken instead of the folder's own: that is what was asked for.
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")
        chosen = MatQuantConfig(read, packed=packed)
        models: Any = AutoModelForCausalLM
        with opened(folder), _readable(folder, "the weights that are not quantized"):
            model, found = models.from_pretrained(
                place, quantization_config=chosen, output_loading_info=True, **words, **arguments
            )
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"{folder.title} lacks {missing[0]} and {len(missing) - 1} other weights that are not quantized; {AGAIN}"
        )
    with _readable(folder, "the tokenizer", ValueError):
        return model, AutoTokenizer.from_pretrained(place, **words)


@contextmanager
def _readable(folder: NestedFolder, what: str, *errors: type[Exception]) -> Iterator[None]:
    """Says in one sentence that files beside the planes are missing or cut short."""
    try:
        yield
    except UserError:
        raise
    except (OSError, SafetensorError, *errors) as error:
        raise UserError(f"{what} of {folder.title} cannot be read ({first_sentence(error)}); {AGAIN}") from error


def reread(model: nn.Module, plan: str | Slice | Plan | None = None) -> nn.Module:
    """Reads a loaded model at another precision, in place, and returns it; UserError as for `load`.

    What is not quantized stays where it is.  A plan that the folder cannot be read at changes nothing.
    """
    reading = reading_of(model)
    read = reading.folder.plan(plan)
    read_into(model, reading.folder, read, packed=reading.packed)
    said = getattr(getattr(model, "config", None), "quantization_config", None)
    if isinstance(said, MatQuantConfig):
        said.plan, said.given = str(read), read
    return model
