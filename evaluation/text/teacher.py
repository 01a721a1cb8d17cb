"""The unquantized model's reading of the held-out text, which quantized read-outs are compared with.

Its next-token distributions are kept as the input of the language-model head, from which the head makes them anew:

    bytes = tokens x hidden size x (2 or 4),     for Gemma-2 9B in bfloat16 7 KB a token, whatever the vocabulary

The distributions are whole and exact, where 16-bit log-probabilities of 256 thousand tokens would be 512 KB a token and
the most likely ones alone a lower bound.  It rests on the head being the same in both models: quantization reaches
blocks alone.  The file also has the nats of every block as the teacher found them, and what the head makes of the file
is held against these.

A file is of one model and one text by content, and of everything that changes a digit: dtype, batches, the kind of
device, the versions of torch and transformers.  It lies in `paths.cache`, is written beside and renamed, and may be
deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from evaluation.text.perplexity import nats_of, read_blocks
from matquant.config.home import at_home
from matquant.errors import NotFiniteError
from matquant.models.layers.head import listening
from matquant.runs.files import remove_leftovers, write_beside

FOLDER = "teachers"
MOST_BYTES = 32e9
"""The files that are kept besides the newest one; those that were used longest ago are deleted first."""
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

Facts = Mapping[str, str]


@dataclass(frozen=True)
class Teacher:
    """Hidden states of every block, `hidden[block]` at a time, and the mean nats of each."""

    hidden: Any
    nats: Float[Tensor, " blocks"]
    name: str
    """The file, or words for a teacher that lies in memory."""

    @property
    def log_pplx(self) -> float:
        return self.nats.mean().item()


def facts_of(model: nn.Module, text: Int[Tensor, "blocks tokens"], *, content: str, batch_size: int) -> Facts:
    """Everything that a teacher's numbers depend on; `content` is the fingerprint of its weights."""
    parameter = next(model.parameters())
    tokens = hashlib.sha256(f"{tuple(text.shape)}".encode() + text.long().contiguous().numpy().tobytes())
    return {
        "model": content,
        "text": f"sha256:{tokens.hexdigest()}",
        "dtype": str(parameter.dtype),
        "batch_size": str(batch_size),
        "device": parameter.device.type,
        **{library: metadata.version(library) for library in ("torch", "transformers")},
    }


def teacher_of(
    model: nn.Module, text: Int[Tensor, "blocks tokens"], *, content: str | None, batch_size: int, cache: Path
) -> Teacher:
    """The teacher of a text, from its file or by reading the text; `model` still has its own, unquantized weights.

    Without a fingerprint of the weights nothing is kept: no file could be known again.
    """
    if content is None:
        return _in_memory(model, text, batch_size)
    facts = facts_of(model, text, content=content, batch_size=batch_size)
    path = path_of(facts, cache)
    if (kept := _opened(path, facts)) is not None:
        return kept
    remove_leftovers(path.parent)  # of killed processes: they are large
    write_beside(path, lambda beside: _write(beside, model, text, batch_size, facts))
    _remove_oldest(path)
    # Another process may have deleted it meanwhile, to make room for its own.
    return _opened(path, facts) or _in_memory(model, text, batch_size)


def _in_memory(model: nn.Module, text: Int[Tensor, "blocks tokens"], batch_size: int) -> Teacher:
    # One tensor that is there from the first batch on: many small ones among large ones split the memory.
    nats, kept, done = torch.empty(len(text), dtype=torch.float64), torch.empty(0), 0
    for hidden, of_batch in _read(model, text, batch_size):
        if not done:
            kept = hidden.new_empty(len(text), *hidden.shape[1:])
        batch = slice(done, done + len(of_batch))
        kept[batch], nats[batch], done = hidden, of_batch, batch.stop
    return Teacher(kept, nats, "the model")


def path_of(facts: Facts, cache: Path) -> Path:
    """The file of a teacher."""
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()
    return at_home(cache) / FOLDER / f"{digest[:16]}.safetensors"


def _opened(path: Path, facts: Facts) -> Teacher | None:
    """A teacher from its file; None where there is none, or another one."""
    try:
        file = safe_open(path, "pt")
        if file.metadata() != dict(facts):
            return None
        os.utime(path)
        return Teacher(file.get_slice("hidden"), file.get_tensor("nats"), str(path))
    except (OSError, SafetensorError):
        return None


@torch.no_grad()
def _read(
    model: nn.Module, text: Int[Tensor, "blocks tokens"], batch_size: int
) -> Iterator[tuple[Float[Tensor, "batch tokens hidden"], Float[Tensor, " batch"]]]:
    """The hidden states and the nats of each block, batch by batch."""
    bar = tqdm(total=len(text), desc="the unquantized model reads the text", unit=" blocks", delay=2, disable=None)
    with bar, listening(model) as listener:
        for read in read_blocks(model, text, batch_size=batch_size):
            nats = nats_of(read)
            if not nats.isfinite().all():
                raise NotFiniteError(
                    "the logits of the unquantized model are not finite on held-out text, so that nothing can be "
                    "compared with it; set readout.dtype=float32, or readout.divergence=false"
                )
            del read  # its logits, before those of the next batch
            yield listener.hidden[:, :-1].cpu(), nats
            bar.update(len(nats))


def _write(path: Path, model: nn.Module, text: Int[Tensor, "blocks tokens"], batch_size: int, facts: Facts) -> None:
    """Writes a safetensors file batch by batch: what is in memory is one batch."""
    nats, done = torch.empty(len(text), dtype=torch.float64), 0
    with path.open("wb") as file:
        start = 0
        for hidden, of_batch in _read(model, text, batch_size):
            if not done:
                start = _write_head(file, (len(text), *hidden.shape[1:]), hidden.dtype, facts)
                file.write(nats.numpy().tobytes())  # their room
            file.write(hidden.contiguous().view(torch.uint8).numpy().data)
            nats[done : done + len(of_batch)] = of_batch
            done += len(of_batch)
        file.seek(start)
        file.write(nats.numpy().tobytes())


def _write_head(file: BinaryIO, shape: tuple[int, ...], dtype: torch.dtype, facts: Facts) -> int:
    """Writes the head of a safetensors file with the nats first, whose values come last; returns where data begin."""
    nats_end = 8 * shape[0]
    end = nats_end + math.prod(shape) * dtype.itemsize
    head = {
        "__metadata__": dict(facts),
        "nats": {"dtype": "F64", "shape": [shape[0]], "data_offsets": [0, nats_end]},
        "hidden": {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [nats_end, end]},
    }
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return 8 + len(text)


def _remove_oldest(newest: Path) -> None:
    """Deletes the files that were used longest ago, where there are more than `MOST_BYTES` of them."""
    states = []
    for path in newest.parent.glob("*.safetensors"):
        with suppress(OSError):  # another process may do the same
            states.append((path.stat(), path))
    total = 0.0
    for state, path in sorted(states, key=lambda found: -found[0].st_mtime):
        total += state.st_size if path != newest else 0.0
        if total > MOST_BYTES and path != newest:
            path.unlink(missing_ok=True)
