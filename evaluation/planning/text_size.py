"""The number of sequences that a held-out text gives, for estimates alone: exact where a configuration sets it.

Tokens are counted where no tokenizer is at hand, so that a whole text is good to a fifth.
"""

from __future__ import annotations

from typing import NamedTuple, assert_never

from matquant.config.cell import EmbeddedText, FilesText, HubText, TextSpec
from matquant.config.home import at_home
from matquant.models.text.documents import HELDOUT_SHARE

CHARACTERS_OF_A_TOKEN = 4.2
"""Of English prose and a vocabulary of 50,000."""
TOKENS_OF_ANOTHER_TEXT = 500_000


class _Rows(NamedTuple):
    """The rows of a data set's held-out split, and the mean of their tokens."""

    number: int
    tokens: float


EMBEDDED = _Rows(628, 350)
KNOWN = {
    ("Salesforce/wikitext", "wikitext-2-raw-v1"): _Rows(4_358, 66),
    ("allenai/c4", "en"): _Rows(364_608, 480),
}


def sequences_of(spec: TextSpec) -> int:
    """The sequences that are read of a held-out text."""
    if spec.num_sequences is not None:
        return spec.num_sequences
    number = max(1, int(_tokens(spec)) // spec.sequence_length)
    most = spec.most_sequences if isinstance(spec, HubText) else None
    return min(number, most or number)


def _tokens(spec: TextSpec) -> float:
    """The tokens of all of a held-out text; of tuning text the half."""
    share = 0.5 if spec.part == "tuning" else 1.0
    match spec:
        case EmbeddedText():
            return share * EMBEDDED.number * min(EMBEDDED.tokens, spec.tokens_per_document or EMBEDDED.tokens)
        case FilesText():
            sizes = (path.stat().st_size for path in map(at_home, spec.paths) if path.is_file())
            return share * sum(sizes) / HELDOUT_SHARE / CHARACTERS_OF_A_TOKEN
        case HubText():
            known = KNOWN.get((spec.repo, spec.subset or ""))
            if known is None:
                return TOKENS_OF_ANOTHER_TEXT
            return min(known.number, spec.num_rows or known.number) * known.tokens
        case _:
            assert_never(spec)
