"""lm-eval's Hugging Face model, faster: the same log-likelihoods from a fraction of the tokens.

The answers to one question share its text.  lm-eval sends question + answer through the model once per answer; here all
answers of a document are one sequence, the shared text once and then each answer as a branch (`rows`).  Documents that
begin with the same examples share those (`prefixes`).  An attention mask shows a branch the shared text and itself, and
positions make it start where the shared text ends.  The language-model head, a fifth of SmolLM2's work and more of
Gemma's, runs only at positions that are scored.  On a CPU every thread has a batch of its own.  What is left of
lm-eval's model is everything else: tokenization, truncation, rolling windows, generation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.utils.generic import ModelOutput

from evaluation.lm_eval_patches import SHARED_CONTEXTS
from evaluation.tasks.prefixes import Family, Strip, families, strip_mask, strips
from evaluation.tasks.rows import PADDING, PackedRow, Reach, Request, attention_mask, batches_of, pack
from matquant.errors import UserError
from matquant.models.layers.families import backbone, reads_side_by_side, shares_contexts
from matquant.models.layers.head import logits_of
from matquant.threads import side_by_side

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

log = logging.getLogger(__name__)

POSITIONS_AT_ONCE = 1024
"""The scored positions that have logits at the same time: 0.5 GB for Gemma's 256 thousand tokens in bfloat16."""
TOKENS_AT_ONCE = 8192
"""The tokens, padding included, of the batches that a CPU has at once, unless a single one has more.

Large batches gain nothing from it: they keep threads busy that share their products.
"""

Answer = tuple[float, bool]
"""Log-likelihood of a continuation in nats, and whether greedy decoding would produce it."""


class LogitsNotFiniteError(FloatingPointError):
    """Logits that are NaN or infinite, from which no answer can be chosen; `document` is where, if that is known."""

    def __init__(self, document: Hashable | None) -> None:
        super().__init__("logits are not finite")
        self.document = document


# lm-eval's decorator hides the class's signature from type checkers.
_HFLM: Any = HFLM


class SharedContextLM(_HFLM):
    """`HFLM` with shared contexts; `batch_size` counts requests, as lm-eval's does.

    Where the model lacks the memory for a batch, it is halved until it fits; a score does not depend on what else is in
    a batch.  Models that cannot be given an attention mask of their own are scored request by request.
    """

    batches_at_once = 1
    """The most batches that are in the model at the same time: on a CPU one for each thread."""

    def __init__(self, **arguments: Any) -> None:
        SHARED_CONTEXTS.require()
        super().__init__(**arguments)
        self._encoded: dict[tuple[str, str], Any] = {}
        self.micro_batch_size = int(self.batch_size)
        if self.device.type == "cpu" and reads_side_by_side(self.model):
            self.batches_at_once = torch.get_num_threads()
        self.shares_contexts = self._sharing_is_right()
        self.keeps_beginnings = self.shares_contexts and self._keeping_is_right()

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
        answers = self._score_families(texts, families(rows) if self.keeps_beginnings else [Family((), rows)])
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
            generated = super()._model_generate(*positional, **keywords)
        finally:
            handle.remove()
        self.on_scored(len(generated))
        return generated

    # --- scoring -----------------------------------------------------------------------------------------------------

    def _score_families(self, requests: Sequence[Request], found: Sequence[Family]) -> list[Answer]:
        answers: dict[int, Answer] = {}
        for family in found:
            answers |= self._score_kept(requests, family) if family.beginning else {}
            # All, or those that memory was too small for.
            rows = [row for row in family.rows if not answers.keys() >= row.scored.keys()]
            answers |= self._score(requests, rows)
        return [answers[number] for number in range(len(requests))]

    @torch.no_grad()
    def _score_kept(self, requests: Sequence[Request], family: Family) -> dict[int, Answer]:
        """The answers of rows whose beginning goes through the model once, as far as memory is large enough."""
        answers: dict[int, Answer] = {}
        kept, length = DynamicCache(), len(family.beginning)
        try:
            self._backbone(input_ids=self._padded([family.beginning], 0), past_key_values=kept, use_cache=True)
            for strip in strips(family, batch_size=self.micro_batch_size):
                answers |= self._answers(requests, [strip.row], self._after(kept, length, strip))
                self.on_scored(len(strip.row.scored))
        except torch.OutOfMemoryError:
            log.warning("out of memory: going on without keeping the beginning of %d tokens, which is slower", length)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return answers

    def _after(self, kept: DynamicCache, length: int, strip: Strip) -> Tensor:
        """The hidden states of a strip after a beginning that is kept, which stays as it is."""
        hidden = self._backbone(
            input_ids=self._padded([strip.row.tokens], 0),
            position_ids=self._padded([strip.row.positions], 0),
            attention_mask=self._masks(lambda reach: strip_mask(strip, length, reach, self.device)),
            past_key_values=kept,
            use_cache=True,
        )
        kept.crop(-len(strip.row))
        return hidden

    def _score(self, requests: Sequence[Request], rows: Iterable[PackedRow]) -> dict[int, Answer]:
        batches = list(batches_of(rows, batch_size=self.micro_batch_size))
        largest = max((len(batch) * len(batch[0]) for batch in batches), default=1)
        if (number := min(self.batches_at_once, len(batches), TOKENS_AT_ONCE // largest)) > 1:
            return self._score_side_by_side(requests, batches, number)
        answers: dict[int, Answer] = {}
        waiting = batches[::-1]
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
        return answers

    def _score_side_by_side(
        self, requests: Sequence[Request], batches: Sequence[Sequence[PackedRow]], number: int
    ) -> dict[int, Answer]:
        """The same by several threads of a CPU: two that share a small batch do less than one batch each."""
        answers: dict[int, Answer] = {}
        with side_by_side(number) as each:
            for batch, found in zip(batches, each(partial(self._score_batch, requests), batches), strict=True):
                answers |= found
                self.on_scored(sum(len(row.scored) for row in batch))
        return answers

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
        return self._answers(requests, rows, self._hidden_states(rows))

    def _answers(self, requests: Sequence[Request], rows: Sequence[PackedRow], hidden: Tensor) -> dict[int, Answer]:
        spans = [(number, row, places) for row, of_row in enumerate(rows) for number, places in of_row.scored.items()]
        where = torch.tensor(
            [(row, place) for _, row, places in spans for place in places], device=self.device, dtype=torch.long
        )
        wanted = [token for number, *_ in spans for token in requests[number].targets]
        targets = torch.tensor(wanted, device=self.device)
        scores, greedy = self._log_probabilities(hidden[where[:, 0], where[:, 1]], targets)
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
        masks = self._masks(lambda reach: attention_mask(branches, positions, reach))
        return self._backbone(input_ids=tokens, position_ids=positions, attention_mask=masks)

    def _backbone(self, *, use_cache: bool = False, **arguments: Any) -> Tensor:
        output = backbone(self.model)(**arguments, use_cache=use_cache)
        self._output_type = type(output)
        return output.last_hidden_state

    _output_type: type[ModelOutput]
    """The class of what the backbone returns: the head of a mixture of experts asks its backbone for router logits."""

    def _padded(self, sequences: Sequence[Sequence[int]], filler: int) -> Tensor:
        length = max(map(len, sequences))
        return torch.tensor([[*row, *[filler] * (length - len(row))] for row in sequences], device=self.device)

    def _masks(self, visible: Callable[[Reach], Tensor]) -> Tensor | dict[str, Tensor]:
        """One mask for all layers, or one for each type of layer of a model that has several (Gemma-2)."""
        reaches = Reach.of(self.model.config.get_text_config())
        masks = {kind: self._mask(visible(reach)) for kind, reach in reaches.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _mask(self, visible: Tensor) -> Tensor:
        if self.model.config.get_text_config()._attn_implementation == "sdpa":
            return visible
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros_like(visible, dtype=self.model.dtype).masked_fill_(~visible, lowest)

    def _log_probabilities(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The log probability of each target, and True where no other token is likelier: [positions] each."""
        scores, greedy = [], []
        at_once = max(1, POSITIONS_AT_ONCE // self.batches_at_once)
        for some, wanted in zip(hidden.split(at_once), targets.split(at_once), strict=True):
            logits = F.log_softmax(self._head(some), dim=-1, dtype=self.softmax_dtype)
            scores.append(logits.gather(-1, wanted.unsqueeze(-1)).squeeze(-1))
            # The first of equals, as by lm-eval's argmax, which takes six times as long on a CPU.
            greedy.append(logits.max(-1).indices == wanted)
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
        apart = _in_order(self._score(texts, pack(texts, range(3))))
        try:
            together = _in_order(self._score(texts, pack(texts, [0, 1, 0])))
        except (TypeError, ValueError, RuntimeError) as error:
            log.warning(
                "%s does not take our attention mask (%s); going on without shared contexts, which is slower",
                *(type(self.model).__name__, error),
            )
            return False
        if not all(math.isfinite(score) for score, _ in (*apart, *together)):
            return True  # whoever asks for a score is told
        if not (right := self._agree(apart, together)):
            log.warning(
                "%s scores shared contexts differently; going on without them, which is slower",
                type(self.model).__name__,
            )
        return right

    def _keeping_is_right(self) -> bool:
        """True if this model gives made-up tokens the same scores after a beginning that is kept."""
        tokens = tuple((torch.arange(3, 60) % max(4, self.vocab_size - 1)).tolist())
        texts = [Request((*tokens[:40], *tokens[more : more + 9]), (7, 5)) for more in (1, 5, 11)]
        rows = pack(texts, range(3))
        apart = _in_order(self._score(texts, rows))
        try:
            together = self._score_families(texts, [Family(tokens[:36], rows)])
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            log.warning("%s cannot keep the beginning of a text (%s)", type(self.model).__name__, error)
            return False
        return not all(math.isfinite(score) for score, _ in apart) or self._agree(apart, together)

    def _agree(self, apart: Sequence[Answer], together: Sequence[Answer]) -> bool:
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.05
        return all(abs(a - b) <= tolerance * abs(a) for (a, _), (b, _) in zip(apart, together, strict=True))


def _in_order(answers: Mapping[int, Answer]) -> list[Answer]:
    return [answers[number] for number in sorted(answers)]
