"""Scoring on this GPU: documents a second beside lm-eval's HFLM, the same scores, and the speed of held-out text.

    python -m benchmarks.gpu.evaluation [--device cuda] [--small]

A model of Llama-3.2-1B's shapes with random weights answers made-up questions: 60 to 150 words, then four answers; then
questions behind the same examples, whose keys and values are kept; then held-out text, compared with a teacher.  In
bfloat16 a log-likelihood depends in its last digits on what else is in a batch, for lm-eval as for us.  So documents
that choose another answer are counted beside those of lm-eval's own model class at half the batch size, and the scores
themselves are compared in float32.
"""

from __future__ import annotations

import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.gpu.agreement import Silent
from benchmarks.gpu.guard import guarded
from benchmarks.gpu.lines import Line, Peak, Scale, estimated, holds, run_part, seconds_of
from benchmarks.gpu.made import LLAMA_3_2_1B, NUM_WORDS, TINY, model_of, word_tokenizer
from evaluation.planning.work import size_of
from matquant.config.setup import SlurmCluster
from matquant.config.study import load_study
from slurm.estimate import COMPARING_BYTES, GB, LAYER_S, MEMORY_BYTES_PER_S, text_bytes

BATCH_SIZES = (16, 64)
"""The answers in a batch: those of `readout=paper`, and as many as keep a large GPU busier."""
CHOICES = 4
Value = TypeVar("Value")
SCORES_AGREE = 1e-3
"""The difference in float32, in nats of an answer, from sums in another order."""


@dataclass(frozen=True)
class Work:
    """The amount of each measurement."""

    documents: int
    exact_documents: int
    context: tuple[int, int]
    examples: int
    """The words that stand before every question where documents begin alike."""
    blocks: int
    block_tokens: int
    batch_sizes: tuple[int, ...]

    @classmethod
    def of(cls, scale: Scale) -> Work:
        if scale.small:
            return cls(8, 4, (10, 20), 60, 3, 32, (8,))
        return cls(384, 32, (60, 150), 600, 32, 2048, BATCH_SIZES)


def evaluation(scale: Scale) -> Iterator[Line]:
    """The part."""
    work = Work.of(scale)
    model = model_of(TINY if scale.small else LLAMA_3_2_1B, scale, torch.bfloat16)
    tokenizer = word_tokenizer()
    for batch_size in work.batch_sizes:
        yield from guarded(
            f"documents a second, batch {batch_size}",
            partial(scoring, model, tokenizer, scale, work, batch_size),
        )
    yield from guarded("documents behind examples", partial(behind_examples, model, tokenizer, scale, work))
    yield from guarded("held-out text", lambda: held_out(model, scale, work))
    yield from guarded("the same scores in float32", lambda: same_scores(model.float(), tokenizer, work))


# --- questions --------------------------------------------------------------------------------------------------------


def questions(work: Work, number: int, *, seed: int = 0, examples: int = 0) -> list[Any]:
    """The requests of made-up documents: a context, and four answers of one to six words.

    `examples`: words that all contexts begin with.
    """
    from lm_eval.api.instance import Instance

    draw = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(f"w{draw.randrange(NUM_WORDS)}" for _ in range(draw.randint(low, high)))

    beginning = f"{words(examples, examples)} " if examples else ""
    contexts = [beginning + words(*work.context) for _ in range(number)]
    return [
        Instance("loglikelihood", {}, (context, f" {words(1, 6)}"), choice, ("made_up", document, 1))
        for document, context in enumerate(contexts)
        for choice in range(CHOICES)
    ]


def models_of_lm_eval(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> tuple[Any, Any, Any]:
    """Ours, lm-eval's, and lm-eval's at half the batch size, of one model."""
    from lm_eval.models.huggingface import HFLM

    from evaluation.lm_eval_patches import quiet_lm_eval
    from evaluation.tasks.scoring import language_model

    ours = language_model(model, tokenizer, batch_size=batch_size, add_bos=False)
    with quiet_lm_eval():
        theirs, half = (
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)  # pyright: ignore[reportCallIssue]
            for size in (batch_size, batch_size // 2)
        )
    return ours, theirs, half


def answers(lm: Any, requests: Sequence[Any]) -> list[float]:
    """The log-likelihoods of requests."""
    from evaluation.lm_eval_patches import quiet_lm_eval

    with quiet_lm_eval():
        return [score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)]


def chosen(scores: Sequence[float]) -> list[int]:
    """The likeliest answer of every document."""
    documents = [scores[first : first + CHOICES] for first in range(0, len(scores), CHOICES)]
    return [max(range(CHOICES), key=of_document.__getitem__) for of_document in documents]


def flips(scores: Sequence[float], others: Sequence[float]) -> int:
    """The number of documents that choose another answer."""
    return sum(a != b for a, b in zip(chosen(scores), chosen(others), strict=True))


def timed(action: Callable[[], Value], device: torch.device) -> tuple[Value, float]:
    """An answer, and the wall time that it took."""
    wait_for(device)
    start = time.perf_counter()
    value = action()
    wait_for(device)
    return value, time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def scoring(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, scale: Scale, work: Work, batch_size: int
) -> Iterator[Line]:
    """Documents a second beside lm-eval's, the share of the GPU's speed, and the choices that differ."""
    ours, theirs, half = models_of_lm_eval(model, tokenizer, batch_size)
    warm_up = questions(work, batch_size, seed=1)
    for lm in (ours, theirs):
        answers(lm, warm_up)
    requests = questions(work, work.documents)
    our_scores, our_seconds = timed(lambda: answers(ours, requests), scale.device)
    their_scores, their_seconds = timed(lambda: answers(theirs, requests), scale.device)
    name = f"batch {batch_size}"
    yield Line(
        f"documents a second, {name}",
        work.documents / our_seconds,
        "/s",
        work.documents / their_seconds,
        "lm-eval's HFLM",
        f"shared contexts: {'yes' if ours.shares_contexts else 'no'}",
        "" if ours.shares_contexts else "the model does not score with shared contexts",
    )
    rows = rows_of(ours, requests)
    tokens = sum(map(len, rows))
    yield scoring_time(f"scoring, {name}", model, tokens, our_seconds, scale, work=work, batch_size=batch_size)
    differences = [abs(a - b) for a, b in zip(our_scores, their_scores, strict=True)]
    yield Line(
        f"log-likelihoods in bfloat16, {name}",
        sum(differences) / len(differences),
        "nats from HFLM's on average",
        max(differences),
        "at most",
    )
    half_scores = answers(half, requests)
    theirs_flip = flips(half_scores, their_scores)
    # Those of lm-eval itself say what bfloat16 does; a few more are chance.
    yield holds(
        f"documents that choose another answer than HFLM's, {name}",
        flips(our_scores, their_scores),
        2 * theirs_flip + max(2.0, work.documents / 50),
        note=f"of {work.documents}; HFLM at half the batch size: {theirs_flip}",
    )
    yield from waits(ours, rows, requests, scale)


def behind_examples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, scale: Scale, work: Work
) -> Iterator[Line]:
    """Documents a second that all begin alike, as a task with examples does, beside lm-eval's."""
    batch_size, number = work.batch_sizes[0], max(4, work.documents // 8)
    ours, theirs, half = models_of_lm_eval(model, tokenizer, batch_size)
    requests = questions(work, number, examples=work.examples, seed=3)
    for lm in (ours, theirs):
        answers(lm, requests[: 2 * CHOICES])
    scores, seconds = timed(lambda: answers(ours, requests), scale.device)
    their_scores, their_seconds = timed(lambda: answers(theirs, requests), scale.device)
    yield Line(
        f"documents a second behind {work.examples} words of examples, batch {batch_size}",
        number / seconds,
        "/s",
        number / their_seconds,
        "lm-eval's HFLM",
        f"kept beginnings: {'yes' if ours.keeps_beginnings else 'no'}",
        "" if ours.keeps_beginnings else "the model does not score after a beginning that is kept",
    )
    theirs_flip = flips(answers(half, requests), their_scores)
    yield holds(
        "documents behind examples that choose another answer than HFLM's",
        flips(scores, their_scores),
        2 * theirs_flip + max(2.0, number / 50),
        note=f"of {number}; HFLM at half the batch size: {theirs_flip}",
    )


def rows_of(lm: Any, requests: Sequence[Any]) -> list[Any]:
    """The rows in which our model scores requests."""
    from evaluation.tasks.rows import pack

    return pack(encoded(lm, requests), [request.doc_id for request in requests])


def encoded(lm: Any, requests: Sequence[Any]) -> list[Any]:
    """The tokens of requests."""
    from evaluation.tasks.rows import Request

    pairs = (lm._encode_pair(*request.args) for request in requests)
    return [Request.of(context, continuation, max_length=lm.max_length) for context, continuation in pairs]


def waits(lm: Any, rows: Sequence[Any], requests: Sequence[Any], scale: Scale) -> Iterator[Line]:
    """The times that the program waits for the GPU in one batch: inputs that go there, scores that come back."""
    from evaluation.tasks.rows import batches_of

    if scale.device.type != "cuda":
        return
    batch = next(batches_of(rows, batch_size=lm.micro_batch_size))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            lm._score_batch(encoded(lm, requests), batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    count = sum("synchroniz" in str(one.message) for one in caught)
    yield Line(f"waits for the GPU in one batch, batch {lm.batch_size}", count, "", note=f"{len(batch)} rows")


def speed(what: str, model: PreTrainedModel, tokens: int, seconds: float, scale: Scale) -> Line:
    """Operations a second beside those that the plan of a study counts with."""
    reached = operations(model, tokens) / seconds / 1e12
    return estimated(what, reached, SlurmCluster.model_fields["tflops"].default, "TFLOP/s", scale=scale)


def scoring_time(
    what: str, model: PreTrainedModel, tokens: int, seconds: float, scale: Scale, *, work: Work, batch_size: int
) -> Line:
    """Seconds beside those of the plan of a study: a time for each layer of a batch, and the operations."""
    layers = model.config.get_text_config().num_hidden_layers
    launches = LAYER_S * layers * work.documents * CHOICES / batch_size
    fastest = 1e12 * SlurmCluster.model_fields["tflops"].default
    reached = operations(model, tokens)
    note = f"{tokens} tokens, {reached / seconds / 1e12:.3g} TFLOP/s"
    return estimated(what, seconds, launches + reached / fastest, "s", scale=scale, note=note)


def operations(model: PreTrainedModel, tokens: int) -> float:
    """Floating point operations of a forward pass; a tied head is a product, an embedding is not."""
    return 2 * sum(parameter.numel() for parameter in model.parameters()) * tokens


# --- held-out text ----------------------------------------------------------------------------------------------------


def held_out(model: PreTrainedModel, scale: Scale, work: Work) -> Iterator[Line]:
    """Tokens a second of the perplexity pass, beside a plain forward pass of the same blocks."""
    from evaluation.text.perplexity import block_nats

    draw = torch.Generator().manual_seed(0)
    blocks = torch.randint(1, NUM_WORDS, (work.blocks, work.block_tokens), generator=draw)
    batch_size = min(16, work.blocks)

    @torch.no_grad()
    def forward() -> None:
        for batch in blocks.split(4):
            model(input_ids=batch.to(scale.device), use_cache=False)

    def perplexity() -> None:
        for _ in block_nats(model, blocks, batch_size=batch_size):
            pass

    peak = Peak(scale.device)
    ours, plain = (seconds_of(action, repeats=1, device=scale.device) for action in (perplexity, forward))
    most, weights = peak.bytes(), sum(parameter.nbytes for parameter in model.parameters())
    tokens = blocks.numel()
    yield Line("tokens a second of held-out text", tokens / ours, "/s", tokens / plain, "forward pass alone")
    yield speed("speed of held-out text", model, tokens, ours, scale)
    if most is not None:
        yield estimated("memory beside the model", (most - weights) / GB, text_gb(model, work), "GB", scale=scale)
    yield from compared(model, blocks, ours, scale, batch_size=batch_size)


def text_gb(model: PreTrainedModel, work: Work) -> float:
    """The memory that logits of the text are estimated to take."""
    words = ("model=tiny", "base=none", "perplexity=embedded", "readout.tasks=[]", "readout.dtype=bfloat16")
    length = (
        f"readout.perplexity.sequence_length={work.block_tokens}",
        f"readout.perplexity.num_sequences={work.blocks}",
    )
    study = load_study([*words, *length])
    size = size_of(study.one_cell(), study.setup.paths.cache)
    return text_bytes(study.setup.readout, replace(size, vocabulary=model.config.get_text_config().vocab_size)) / GB


def compared(
    model: PreTrainedModel, blocks: torch.Tensor, plain: float, scale: Scale, *, batch_size: int
) -> Iterator[Line]:
    """Held-out text that is compared with the unquantized model's, here with itself: seconds, and a divergence of 0."""
    from evaluation.results.metrics import KL
    from evaluation.text.scores import score_text
    from evaluation.text.teacher import teacher_of

    with tempfile.TemporaryDirectory() as folder:
        words = {"batch_size": batch_size}
        teacher, made = timed(
            lambda: teacher_of(model, blocks, content="made on the spot", cache=Path(folder), **words), scale.device
        )
        found, seconds = timed(
            lambda: score_text(model, blocks, teacher, description="the check", bar=Silent(), **words), scale.device
        )
    config = model.config.get_text_config()
    logits = (blocks.numel() - len(blocks)) * config.vocab_size
    fastest = 1e12 * SlurmCluster.model_fields["tflops"].default
    more = logits * (COMPARING_BYTES / MEMORY_BYTES_PER_S + 2 * config.hidden_size / fastest)
    note = f"{seconds / plain:.2f} times log perplexity alone"
    yield estimated("text compared with a teacher", seconds, plain + more, "s", scale=scale, note=note)
    yield Line("the teacher reads and writes its file", made, "s", plain, "log perplexity alone")
    # Its logits are made anew out of 16 bits of its last states by a product of another shape.
    yield holds("divergence of the model from itself", found.metrics[KL], 1e-4, unit="nats a token")


def same_scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, work: Work) -> Iterator[Line]:
    """Our scores and lm-eval's in float32."""
    ours, theirs, _ = models_of_lm_eval(model, tokenizer, 8)
    requests = questions(work, work.exact_documents, seed=2)
    pairs = list(zip(answers(ours, requests), answers(theirs, requests), strict=True))
    yield holds("log-likelihoods in float32", max(abs(a - b) for a, b in pairs), SCORES_AGREE, unit="nats")
    yield holds(
        "documents that choose another answer in float32",
        flips([ours for ours, _ in pairs], [theirs for _, theirs in pairs]),
        0,
        note=f"of {work.exact_documents}",
    )


def main() -> None:
    run_part(evaluation, __doc__)


if __name__ == "__main__":
    main()
