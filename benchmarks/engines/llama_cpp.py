"""Exported GGUF files in llama.cpp: its tokens, perplexity and speed beside ours, with the same weights and tokens.

    python -m benchmarks.engines.llama_cpp                   SmolLM2-135M rounded to nearest, about five minutes
    python -m benchmarks.engines.llama_cpp CELL              a trained cell: its id, its folder, or overrides
    python -m benchmarks.engines.llama_cpp --families        tiny models of every family that is written, seconds

llama.cpp rounds the inputs of a layer of blocks to 8 bits, and attention to float16, which the file has no part in.  So
a file is opened twice: as it is, and with the same numbers in float32, where llama.cpp computes as we do.  The wheel's
own file shows what its rounding amounts to without any export of ours.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.engines.cells import trained_cell
from benchmarks.engines.environment import Environment, skipped
from benchmarks.engines.gguf_families import FAMILIES, write_family
from evaluation.text.perplexity import block_nats
from matquant.codes.layouts import slices_of
from matquant.codes.sliced import sliced
from matquant.config.cell import EmbeddedModel
from matquant.errors import UserError
from matquant.models.embedded import whole_file
from matquant.models.loading import load_model
from matquant.models.text.documents import documents
from matquant.models.text.tokens import HELDOUT_SEED, heldout_tokens
from matquant.notation import Plan
from matquant.serving.export import Trained, export_readout
from matquant.serving.gguf.file import FILE, Gguf

LLAMA_CPP = Environment("llama_cpp", ("xllamacpp==2026.10.11549", "numpy"))
PROGRAM = Path(__file__).with_name("in_llama_cpp.py")
PLANS = ("int4", "int3", "pyramid@3")
THREADS = 1
DECODED = 64
"""Tokens that are written to measure speed."""
SAME = 3e-4
"""Nats by which a block of text may differ in float32; Gemma's do by 1e-4, others by less than 1e-5.

ggml looks GELU up in a table of float16, which is the likely reason.
"""
ROUNDED = 0.05
"""Nats by which a block of text may differ where inputs of layers are rounded to 8 bits."""
HEAD = f"  {'':32}{'MB':>8}{'llama.cpp':>11}{'ours':>9}{'apart':>9}{'furthest':>10}{'tokens/s':>10}"


class Row(NamedTuple):
    """The measures of one file in llama.cpp, and in transformers: nats a token, block by block of the text."""

    name: str
    megabytes: float
    nats: Float[Tensor, " blocks"]
    ours: Float[Tensor, " blocks"]
    limit: float
    speed: float | None
    tokens: list[list[int]]

    @property
    def furthest(self) -> float:
        """The difference of the block whose numbers lie furthest apart."""
        return (self.nats - self.ours).abs().max().item()

    @property
    def is_met(self) -> bool:
        return self.furthest <= self.limit

    def __str__(self) -> str:
        speed = "" if self.speed is None else f"{self.speed:.1f}"
        verdict = "met" if self.is_met else f"MISSED (at most {self.limit:g})"
        nats, ours = self.nats.mean().item(), self.ours.mean().item()
        numbers = f"{nats:11.4f}{ours:9.4f}{nats - ours:+9.5f}{self.furthest:10.5f}"
        return f"  {self.name:32}{self.megabytes:8.1f}{numbers}{speed:>10}  {verdict}"


def row(
    name: str,
    path: Path,
    text: Int[Tensor, "blocks tokens"],
    ours: Float[Tensor, " blocks"],
    limit: float,
    *,
    texts: Sequence[str] = (),
    decode: int = 0,
) -> Row:
    """A file as llama.cpp reads it."""
    reply = LLAMA_CPP.ask(
        PROGRAM,
        {
            "file": str(path),
            "blocks": text.tolist(),
            "texts": list(texts),
            "threads": THREADS,
            "decode": decode,
            "in_float32": limit == SAME,
        },
    )
    nats = torch.tensor(reply["nats"], dtype=torch.float64)
    return Row(name, path.stat().st_size / 1e6, nats, ours, limit, reply.get("tokens_per_second"), reply["tokens"])


def in_float32(path: Path, target: Path) -> Path:
    """A copy of a GGUF file with every tensor in float32."""
    from gguf import GGUFReader, GGUFWriter
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture", "general.file_type")):
            of_items = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], of_items)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@torch.no_grad()
def hold(model: PreTrainedModel, trained: Trained, plan: Plan) -> None:
    """Writes a read-out into a model, with scales as a GGUF file rounds them."""
    layers = trained.checkpoint().layers
    for name, part in slices_of(plan, layers).items():
        held = Gguf().hold(name, sliced(layers[name], part))
        model.get_submodule(name).get_parameter("weight").copy_(held.affine().weight)


def nats_of(model: PreTrainedModel, text: Int[Tensor, "blocks tokens"]) -> Float[Tensor, " blocks"]:
    return torch.cat(list(block_nats(model, text, batch_size=4)))


@torch.no_grad()
def transformers_speed(model: PreTrainedModel) -> float:
    """Tokens a second that transformers writes in float32, greedily, on as many threads as llama.cpp has."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        best = 0.0
        for _ in range(3):
            reply = model(torch.tensor([[1, 2, 3, 4]]), use_cache=True)
            start = time.perf_counter()
            for _ in range(DECODED):
                token = reply.logits[:, -1:].argmax(-1)
                reply = model(token, past_key_values=reply.past_key_values, use_cache=True)
            best = max(best, DECODED / (time.perf_counter() - start))
        return best
    finally:
        torch.set_num_threads(before)


def files(trained: Trained, folder: Path) -> list[Row]:
    """Every plan of a cell, and the file that its model came from, in llama.cpp."""
    cell, setup = trained.cell, trained.setup
    model, tokenizer = load_model(cell.model, cache=setup.paths.cache, dtype="float32", device=torch.device("cpu"))
    spec = setup.readout.perplexity
    assert spec is not None
    text = heldout_tokens(spec, tokenizer, add_bos=cell.sets_bos)
    texts = [document[:2000] for document in islice(documents(spec, "heldout", seed=HELDOUT_SEED), 20)]
    print(f"{cell.id}, {text.shape[0]} x {text.shape[1]} tokens, {THREADS} thread")
    print(HEAD)
    rows: list[Row] = []

    def show(one: Row) -> Row:
        print(one, flush=True)
        rows.append(one)
        return one

    full = nats_of(model, text)
    if isinstance(cell.model, EmbeddedModel):
        with whole_file(cell.model, folder / "joined") as path:
            show(row("the wheel's own file", path, text, full, ROUNDED, decode=DECODED))
    speed = transformers_speed(model)
    print(f"  {'transformers in float32':32}{'':19}{full.mean().item():9.4f}{'':19}{speed:10.1f}", flush=True)
    for plan in map(Plan.parse, PLANS):
        target = folder / plan.label
        try:
            export_readout(trained, Gguf(), plan, target)
        except UserError as refused:
            print(f"  {plan} is refused: {refused}", flush=True)
            continue
        hold(model, trained, plan)
        ours = nats_of(model, text)
        first = show(row(f"gguf {plan}", target / FILE, text, ours, ROUNDED, texts=texts, decode=DECODED))
        if str(plan) == PLANS[0]:
            show(row(f"gguf {plan}, in float32", in_float32(target / FILE, folder / "dense.gguf"), text, ours, SAME))
            _show_tokens(first, texts, tokenizer)
    return rows


def _show_tokens(first: Row, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
    same = sum(
        ours == theirs
        for ours, theirs in zip(
            tokenizer(list(texts), add_special_tokens=False)["input_ids"], first.tokens, strict=True
        )
    )
    print(f"  {same} of {len(texts)} texts have the same tokens in llama.cpp", flush=True)


def families(folder: Path) -> list[Row]:
    """Tiny models of every family that is written, with q and k among the quantized layers, in float32."""
    print("tiny models of random weights, all linear layers quantized, in float32")
    print(HEAD)
    rows = []
    text = torch.randint(0, 256, (2, 48), generator=torch.Generator().manual_seed(0))
    for name in FAMILIES:
        target = folder / name
        target.mkdir()
        model = write_family(name, target)
        path = in_float32(target / FILE, target / "dense.gguf")
        rows.append(row(name, path, text, nats_of(model, text), SAME))
        print(rows[-1], flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cell", nargs="*", help="a cell id, the folder of a run, or overrides")
    parser.add_argument("--families", action="store_true", help="tiny models of every family alone")
    given = parser.parse_args(arguments)
    rows: list[Row] = []
    with skipped(), tempfile.TemporaryDirectory() as folder:
        LLAMA_CPP.python()
        rows += families(Path(folder))
        if not given.families:
            rows += files(trained_cell(given.cell, Path(folder)), Path(folder))
    return 0 if all(one.is_met for one in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
