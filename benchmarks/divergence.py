"""The divergence of round-to-nearest SmolLM2 from SmolLM2: what it costs, and what the most likely tokens see of it.

    python -m benchmarks.divergence

Seconds are those of the processor, on one thread, so that other work on the machine hardly changes them.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.timing import NoProgress
from evaluation.results.metrics import KL, KL_99, KL_MEDIAN, RMS_DP, SAME_TOP
from evaluation.text.divergence import divergences, summarized
from evaluation.text.perplexity import block_nats, nats_of, read_blocks
from evaluation.text.teacher import Teacher, teacher_of
from matquant.algorithms import minmax
from matquant.codes.nested import materialize
from matquant.config.study import load_study
from matquant.models.divergence import TokenDivergence, TopTokens, bucketed, most_likely
from matquant.models.layers.head import listening
from matquant.models.loading import load_model
from matquant.models.text.tokens import heldout_tokens
from matquant.notation import Plan

BLOCKS, BATCH = 8, 4
TOP = (16, 64, 256, 1024)
PLANS = ("int8", "int6", "int4", "int3", "int2")


def log_pplx_seconds(model: nn.Module, text: Tensor) -> float:
    """The seconds of log perplexity alone."""
    start = time.process_time()
    for _ in block_nats(model, text, batch_size=BATCH):
        pass
    return time.process_time() - start


def measured(model: nn.Module, text: Tensor, teacher: Teacher) -> tuple[dict[str, float], float]:
    """The measures of a read-out, and the seconds of these and log perplexity."""
    start, blocks = time.process_time(), list[TokenDivergence]()
    with listening(model) as listener:
        for read in read_blocks(model, text, batch_size=BATCH):
            nats_of(read)
            blocks += divergences(model, listener, teacher, len(blocks), read)
    return summarized(blocks, teacher)[0], time.process_time() - start


def seen_by(tops: list[TopTokens], model: nn.Module, text: Tensor) -> float:
    """The divergence over the most likely tokens and a bucket for all others."""
    found = zip(tops, read_blocks(model, text, batch_size=BATCH), strict=True)
    return torch.cat([bucketed(top, read.logits) for top, read in found]).mean().item()


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    amount = f"readout.perplexity.num_sequences={BLOCKS}"
    study = load_study(["model=smollm2_135m", "base=minmax", "bits=int8", "tracking=none", amount])
    (cell,), setup = study.cells, study.setup
    assert setup.readout.perplexity is not None
    assert cell.scope is not None
    assert cell.grid is not None
    model, tokenizer = load_model(cell.model, cache=setup.paths.cache, dtype="float32", device=torch.device("cpu"))
    text = heldout_tokens(setup.readout.perplexity, tokenizer, add_bos=cell.sets_bos)
    layers = minmax.fit(model, parent_bits=8, scope=cell.scope, grid=cell.grid, progress=NoProgress())
    tops = {top: [most_likely(read.logits, top) for read in read_blocks(model, text, batch_size=BATCH)] for top in TOP}
    with tempfile.TemporaryDirectory() as folder:
        teacher = teacher_of(model, text, content="benchmark", batch_size=BATCH, cache=Path(folder))
        print(f"{text.numel():,} tokens; share of KL that the most likely tokens and a bucket see: {TOP}")
        for name in PLANS:
            materialize(model, layers, Plan.parse(name))
            alone = log_pplx_seconds(model, text)
            metrics, both = measured(model, text, teacher)
            shares = [f"{seen_by(of_top, model, text) / metrics[KL]:.1%}" for of_top in tops.values()]
            values = ", ".join(f"{metric} {metrics[metric]:.4g}" for metric in (KL, KL_MEDIAN, KL_99, SAME_TOP, RMS_DP))
            print(f"{name}: {values}; {', '.join(shares)}; log pplx {alone:.1f} s, with divergence {both:.1f} s")


if __name__ == "__main__":
    main()
