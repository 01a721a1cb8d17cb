"""lm-eval's Hugging Face model, faster: the same log-likelihoods from a fraction of the tokens.

The answers to one question share its text.  lm-eval sends question + answer through the model once per answer; here all
answers of a document are one sequence, the shared text once and then each answer as a branch,

    position   0 1 2 3 4 | 5 6 | 5 6 7 | 5 6
    token      question  | a a | b b b | c c

with an attention mask that shows a branch the shared text and itself, and positions that make every branch start where
the shared text ends.  The language-model head, a fifth of SmolLM2's work and more of Gemma's, runs only at positions
that are scored.  What is left of lm-eval's model is everything else: tokenization, truncation, rolling windows,
generation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils.generic import ModelOutput

from evaluation.lm_eval_patches import SHARED_CONTEXTS
from matquant.errors import UserError
from matquant.models.families import backbone, shares_contexts
from matquant.models.head import logits_of

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

log = logging.getLogger(__name__)

PADDING = -1
"""The branch of the tokens that fill a row up; 0 is the shared text."""
LONGEST_ROW = 1024
"""The most tokens of several answers in one row; attention is quadratic in its length."""
WORTH_SHARING = 0.1
"""The share of tokens that has to be saved for answers to be put into one row."""
SHORTEST_IN_BATCH = 0.8
"""The share of a batch's longest row that its others reach at least; a shorter row waits for the next batch."""
POSITIONS_AT_ONCE = 1024
"""The scored positions that have logits at the same time: 0.5 GB for Gemma's 256 thousand tokens in bfloat16."""

Answer = tuple[float, bool]
"""Log-likelihood of a continuation in nats, and whether greedy decoding would produce it."""


class LogitsNotFiniteError(FloatingPointError):
    """Logits that are NaN or infinite, from which no answer can be chosen; `document` is where, if that is known."""

    def __init__(self, document: Hashable | None) -> None:
        super().__init__("logits are not finite")
        self.document = document


class Request(NamedTuple):
    """Tokens that the model is given, and the tokens that its last positions should predict."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]

    @classmethod
    def of(cls, context: Sequence[int], continuation: Sequence[int], *, max_length: int) -> Request:
        """A request cut from the left to what the model takes, as by lm-eval; UserError if the continuation is cut."""
        if len(continuation) > max_length:
            raise UserError(
                f"an answer of {len(continuation)} tokens is longer than the {max_length} tokens that the model takes; "
                "leave its task out of readout.tasks"
            )
        tokens = (*context, *continuation)[-(max_length + 1) :]
        return cls(tuple(tokens[:-1]), tuple(continuation))

    @property
    def first_scored(self) -> int:
        return len(self.inputs) - len(self.targets)


@dataclass(frozen=True)
class PackedRow:
    """Requests in one sequence: `branches` is 0 where text is shared, then 1, 2, ... for each request's own.

    `scored`: for each request, by its number, the places in the row whose next token is a target.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    branches: tuple[int, ...]
    scored: Mapping[int, tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.tokens)


def shared_length(sequences: Sequence[tuple[int, ...]]) -> int:
    """The number of tokens that all sequences have in common at their start."""
    first, last = min(sequences), max(sequences)  # all others lie between these two
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def row_of(requests: Mapping[int, Request]) -> PackedRow:
    """All requests in one row."""
    shared = shared_length([request.inputs for request in requests.values()])
    some = next(iter(requests.values()))
    tokens, positions, branches = list(some.inputs[:shared]), list(range(shared)), [0] * shared
    scored = {}
    for branch, (number, request) in enumerate(requests.items(), start=1):
        offset, length = len(tokens) - shared, len(request.inputs)
        tokens += request.inputs[shared:]
        positions += range(shared, length)
        branches += [branch] * (length - shared)
        places = range(request.first_scored, length)
        scored[number] = tuple(place if place < shared else place + offset for place in places)
    return PackedRow(tuple(tokens), tuple(positions), tuple(branches), scored)


def pack(requests: Sequence[Request], documents: Sequence[Hashable]) -> list[PackedRow]:
    """Rows that hold every request once, those of a document together where that saves tokens."""
    by_document: dict[Hashable, dict[int, Request]] = {}
    for number, (request, document) in enumerate(zip(requests, documents, strict=True)):
        by_document.setdefault(document, {})[number] = request
    return [row for together in by_document.values() for row in _rows_of_document(together)]


def _rows_of_document(requests: Mapping[int, Request]) -> Iterator[PackedRow]:
    one_by_one = sum(len(request.inputs) for request in requests.values())
    together: dict[int, Request] = {}
    rows = []
    for number, request in requests.items():
        grown = {**together, number: request}
        if together and len(row_of(grown)) > LONGEST_ROW:
            rows.append(row_of(together))
            grown = {number: request}
        together = grown
    rows.append(row_of(together))
    if sum(len(row) for row in rows) <= (1 - WORTH_SHARING) * one_by_one:
        yield from rows
    else:
        yield from (row_of({number: request}) for number, request in requests.items())


def batches_of(rows: Iterable[PackedRow], *, batch_size: int) -> Iterator[list[PackedRow]]:
    """Rows of similar length, longest first, with at most `batch_size` requests in a batch (or a single row).

    A batch also ends where filling its next row up to its longest would waste too much.
    """
    batch: list[PackedRow] = []
    size = 0
    for row in sorted(rows, key=lambda row: (-len(row), row.tokens)):
        if batch and (size + len(row.scored) > batch_size or len(row) < SHORTEST_IN_BATCH * len(batch[0])):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += len(row.scored)
    if batch:
        yield batch


class Reach(NamedTuple):
    """The positions that attention reaches back to; None: all."""

    window: int | None = None
    """The number of positions back, a token's own included."""
    chunk: int | None = None
    """The length of the chunks that a text is cut into; a token reaches those before it in its own (Llama-4)."""

    @classmethod
    def of(cls, config: Any) -> dict[str, Reach]:
        """The reach of each type of layer, by a model's configuration; of a model with one type, under any name.

        A key that the configuration's class does not know is no setting: the model does not look at it.
        """
        known = {field.name for field in fields(config)}
        window, chunk = (
            getattr(config, name) if name in known else None for name in ("sliding_window", "attention_chunk_size")
        )
        by_kind = {"sliding_attention": cls(window=window), "chunked_attention": cls(chunk=chunk)}
        kinds = getattr(config, "layer_types", None)
        return {kind: by_kind.get(kind, cls()) for kind in kinds} if kinds else {"": cls(window=window)}


def attention_mask(branches: Tensor, positions: Tensor, reach: Reach) -> Tensor:
    """[rows, 1, tokens, tokens], True where a token may look: the shared text and its own branch, up to itself."""
    own, other = branches.unsqueeze(-1), branches.unsqueeze(-2)
    place = torch.arange(branches.shape[-1], device=branches.device)
    visible = ((other == 0) | (own == other)) & (place.unsqueeze(-1) >= place)
    if reach.window is not None:
        visible &= positions.unsqueeze(-1) - positions.unsqueeze(-2) < reach.window
    if reach.chunk is not None:
        visible &= positions.unsqueeze(-1) // reach.chunk == positions.unsqueeze(-2) // reach.chunk
    # Padding sees itself at least: a softmax over nothing is not a number, and spreads.
    return (visible | torch.eye(len(place), dtype=torch.bool, device=branches.device)).unsqueeze(1)


# lm-eval's decorator hides the class's signature from type checkers.
_HFLM: Any = HFLM


class SharedContextLM(_HFLM):
    """`HFLM` with shared contexts; `batch_size` counts requests, as lm-eval's does.

    Where the model lacks the memory for a batch, it is halved until it fits; a score does not depend on what else is in
    a batch.  Models that cannot be given an attention mask of their own are scored request by request.
    """

    def __init__(self, **arguments: Any) -> None:
        SHARED_CONTEXTS.require()
        super().__init__(**arguments)
        self._encoded: dict[tuple[str, str], Any] = {}
        self.micro_batch_size = int(self.batch_size)
        self.shares_contexts = self._sharing_is_right()

    # --- what lm-eval calls ------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Answer]:
        """Scores continuations; requests of one document share what their texts have in common."""
        self._documents = [(request.task_name, request.doc_id) for request in requests]
        try:
            return super().loglikelihood(requests, disable_tqdm=True)
        finally:
            del self._documents

    _documents: list[Hashable]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokenizes every pair once: the same texts are scored for every plan."""
        key = (context, continuation)
        if key not in self._encoded:
            self._encoded[key] = super()._encode_pair(context, continuation)
        return self._encoded[key]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[Answer]:
        texts = [Request.of(context, continuation, max_length=self.max_length) for _, context, continuation in requests]
        documents: Sequence[Hashable] = getattr(self, "_documents", range(len(texts)))  # rolling windows share nothing
        rows = pack(texts, documents if self.shares_contexts else range(len(texts)))
        answers = self._score(texts, rows)
        for document, (score, _is_greedy) in zip(documents, answers, strict=True):
            if not math.isfinite(score):
                # lm-eval would take the answer with a NaN for the likeliest, and count it as right or wrong.
                raise LogitsNotFiniteError(document[1] if isinstance(document, tuple) else None)
        return answers

    def _model_generate(self, *positional: Any, **keywords: Any) -> Tensor:
        """Generates as lm-eval does; LogitsNotFiniteError where logits are no numbers to choose a token by."""

        def check(_: nn.Module, __: Any, output: Any) -> None:
            # Its largest is NaN if one is; tokens that are masked out are minus infinity.
            if not output.logits[:, -1].amax(-1).isfinite().all():
                raise LogitsNotFiniteError(None)

        handle = self.model.register_forward_hook(check)
        try:
            return super()._model_generate(*positional, **keywords)
        finally:
            handle.remove()

    # --- scoring -----------------------------------------------------------------------------------------------------

    def _score(self, requests: Sequence[Request], rows: Iterable[PackedRow]) -> list[Answer]:
        answers: dict[int, Answer] = {}
        waiting = list(batches_of(rows, batch_size=self.micro_batch_size))[::-1]
        while waiting:
            batch = waiting.pop()
            try:
                answers |= self._score_batch(requests, batch)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise UserError(
                        f"a single row of {len(batch[0])} tokens does not fit into the memory of {self.device}; "
                        "use a larger device, or readout.dtype=bfloat16"
                    ) from error
                waiting += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
            else:
                self.on_scored(sum(len(row.scored) for row in batch))
                continue
            # After the handler: the error holds the tensors that did not fit, and no cache could be emptied of them.
            self._remember_smaller(batch)
        return [answers[number] for number in range(len(requests))]

    def on_scored(self, num_answers: int, /) -> None:
        """Called after every batch; a caller puts the update of its progress bar in this place."""

    def _remember_smaller(self, batch: Sequence[PackedRow]) -> None:
        size = max(1, sum(len(row.scored) for row in batch) // 2)
        if size < self.micro_batch_size:
            log.warning("out of memory: going on with %d requests at a time; scores do not depend on it", size)
            self.micro_batch_size = size
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def _score_batch(self, requests: Sequence[Request], rows: Sequence[PackedRow]) -> dict[int, Answer]:
        hidden = self._hidden_states(rows)
        spans = [(number, row, places) for row, of_row in enumerate(rows) for number, places in of_row.scored.items()]
        where = torch.tensor(
            [(row, place) for _, row, places in spans for place in places], device=self.device, dtype=torch.long
        )
        targets = torch.tensor([token for number, *_ in spans for token in requests[number].targets])
        scores, greedy = self._log_probabilities(hidden[where[:, 0], where[:, 1]], targets.to(self.device))
        lengths = [len(places) for *_, places in spans]
        return {
            # Summed in the dtype of the logits, as lm-eval does.
            number: (float(of_span.sum()), bool(is_greedy.all()))
            for (number, *_), of_span, is_greedy in zip(
                spans, scores.cpu().split(lengths), greedy.cpu().split(lengths), strict=True
            )
        }

    def _hidden_states(self, rows: Sequence[PackedRow]) -> Tensor:
        """The input of the language-model head, [rows, tokens, hidden]."""
        tokens = self._padded([row.tokens for row in rows], 0)
        if all(len(row.scored) == 1 for row in rows):
            # Padding stands on the right, where causal attention does not look.
            return self._backbone(input_ids=tokens)
        positions = self._padded([row.positions for row in rows], 0)
        branches = self._padded([row.branches for row in rows], PADDING)
        return self._backbone(input_ids=tokens, position_ids=positions, attention_mask=self._masks(branches, positions))

    def _backbone(self, **arguments: Any) -> Tensor:
        output = backbone(self.model)(**arguments, use_cache=False)
        self._output_type = type(output)
        return output.last_hidden_state

    _output_type: type[ModelOutput]
    """The class of what the backbone returns: the head of a mixture of experts asks its backbone for router logits."""

    def _padded(self, sequences: Sequence[Sequence[int]], filler: int) -> Tensor:
        length = max(map(len, sequences))
        return torch.tensor([[*row, *[filler] * (length - len(row))] for row in sequences], device=self.device)

    def _masks(self, branches: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """One mask for all layers, or one for each type of layer of a model that has several (Gemma-2)."""
        masks = {
            kind: self._mask(branches, positions, reach)
            for kind, reach in Reach.of(self.model.config.get_text_config()).items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _mask(self, branches: Tensor, positions: Tensor, reach: Reach) -> Tensor:
        visible = attention_mask(branches, positions, reach)
        if self.model.config.get_text_config()._attn_implementation == "sdpa":
            return visible
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros_like(visible, dtype=self.model.dtype).masked_fill_(~visible, lowest)

    def _log_probabilities(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The log probability of each target, and True where no other token is likelier: [positions] each."""
        scores, greedy = [], []
        for some, wanted in zip(hidden.split(POSITIONS_AT_ONCE), targets.split(POSITIONS_AT_ONCE), strict=True):
            logits = F.log_softmax(self._head(some), dim=-1, dtype=self.softmax_dtype)
            scores.append(logits.gather(-1, wanted.unsqueeze(-1)).squeeze(-1))
            greedy.append(logits.argmax(-1) == wanted)
        return torch.cat(scores), torch.cat(greedy)

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits at some positions, by the whole model with its backbone's answer given: its own soft-capping too."""
        return logits_of(self.model, hidden, self._output_type)

    def _sharing_is_right(self) -> bool:
        """True if this model gives made-up tokens the same scores with shared contexts as without.

        A window that is longer than these few tokens would not show in them: what is known of a family comes first.
        """
        if not shares_contexts(self.model):
            return False
        tokens = torch.arange(3, 40) % max(4, self.vocab_size - 1)
        texts = [Request(tuple(tokens[:30].tolist()), (7,) * 10), Request(tuple(tokens[2:35].tolist()), (5,) * 12)]
        texts += [Request((*texts[0].inputs[:24], *range(1, 9)), (9, 8, 7, 6))]
        apart = self._score(texts, pack(texts, range(3)))
        try:
            together = self._score(texts, pack(texts, [0, 1, 0]))
        except (TypeError, ValueError, RuntimeError) as error:
            log.warning(
                "%s does not take our attention mask (%s); going on without shared contexts, which is slower",
                *(type(self.model).__name__, error),
            )
            return False
        if not all(math.isfinite(score) for score, _ in (*apart, *together)):
            return True  # whoever asks for a score is told
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.05
        right = all(abs(a - b) <= tolerance * abs(a) for (a, _), (b, _) in zip(apart, together, strict=True))
        if not right:
            log.warning(
                "%s scores shared contexts differently; going on without them, which is slower",
                type(self.model).__name__,
            )
        return right
