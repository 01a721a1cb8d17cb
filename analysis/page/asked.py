"""The question of a report in words: the experiment's claim, the rows, the widths, and what they are measured on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.frame.names import model_name
from analysis.frame.summary import task_name
from evaluation.results.metrics import LOG_PPLX
from matquant.config.syntax import listing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.frame.load import LoadedResults
    from matquant.config.setup import Readout

MOST_NAMED = 6


def claim_of(overrides: Sequence[str] | None) -> str:
    """The claim that the file of an experiment opens with; empty for anything else than one experiment."""
    named = [word.partition("=")[2] for word in overrides or () if word.lstrip("+").startswith("experiment=")]
    if len(named) != 1 or "," in named[0]:
        return ""
    try:
        return listing.line(listing.file_of("experiment", named[0]))
    except (StopIteration, OSError, UnicodeDecodeError):
        return ""


def asked_of(loaded: LoadedResults, readout: Readout) -> list[tuple[str, str]]:
    """Names and values: models, rows, widths, tasks and text."""
    expected = loaded.expected
    models = [model_name(model) for model in expected["model"].unique()]
    quantized = expected[expected["base"] != "none"].sort_values("bits", ascending=False, kind="stable")
    facts = {
        "model" if len(models) == 1 else "models": _listed(models),
        "rows": _listed(list(expected["label"].unique())),
        "read at": _listed(list(quantized["plan"].unique()), 20),
        "tasks": _tasks(readout),
        "text": _text(readout) if LOG_PPLX in set(expected["task"]) else "",
    }
    return [(name, value) for name, value in facts.items() if value]


def _listed(names: Sequence[str], most: int = MOST_NAMED) -> str:
    left = len(names) - most
    return "; ".join(names if left < 2 else [*names[:most], f"and {left} more"])


def _tasks(readout: Readout) -> str:
    if not readout.tasks:
        return ""
    each = "all documents" if readout.limit is None else f"the first {readout.limit} documents"
    return f"{', '.join(map(task_name, readout.tasks))}; {each}{' of each' if len(readout.tasks) > 1 else ''}"


def _text(readout: Readout) -> str:
    text = readout.perplexity
    if text is None:
        return ""
    blocks = "all blocks" if text.num_sequences is None else f"{text.num_sequences} blocks"
    return f"log perplexity on {blocks} of {text.sequence_length} tokens, {text.part} text ({text.kind})"
