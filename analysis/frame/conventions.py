"""Log perplexity by another convention than ours: the windows of the GPTQ papers, in words and as options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.frame.options import SIZES, Option, other_text, written

if TYPE_CHECKING:
    from evaluation.results.store import Protocol
    from matquant.config.setup import Readout

OF_ANY_TEXT = ("batch_size", "dtype")
"""The facts that compare two texts of different conventions."""
BLOCKS = {"Salesforce/wikitext/wikitext-2-raw-v1": "wikitext2", "allenai/c4/en": "c4"}
"""The choices of `perplexity` by the data set that they pack from document to document."""
WINDOWS = {
    ("Salesforce/wikitext/wikitext-2-raw-v1", "\n\n", None, None): "wikitext2_gptq",
    ("allenai/c4/en", " ", 1100, 256): "c4_gptq",
}
"""The choices of `perplexity` by data set, separator, rows and most sequences of their windows."""
USUAL = {"num_sequences": None, "sequence_length": 2048, "special_tokens": False}
"""The facts of those choices that one may have typed."""


def is_of_windows(protocol: Protocol) -> bool:
    """True for a log perplexity that was measured as the GPTQ papers measure it."""
    return protocol.get("convention") == "gptq"


def windows_words(protocol: Protocol) -> str:
    """`all windows of 2048 tokens of allenai/c4/en@main, the first 1100 rows as one text, without BOS`."""
    number, most, rows = (protocol.get(name) for name in ("num_sequences", "most_sequences", "num_rows"))
    windows = f"the first {number}" if number else f"the first {most}" if most else "all"
    joined = f"the first {rows} rows" if rows else "all rows"
    bos = "with the tokenizer's special tokens once" if protocol.get("special_tokens") else "without BOS"
    return (
        f"{windows} windows of {protocol.get('sequence_length')} tokens of {protocol.get('data')}, "
        f"{joined} as one text, {bos}"
    )


def windows_note(protocol: Protocol) -> str:
    """The sentence below a table that tells its log perplexity from ours."""
    return (
        f"log pplx is measured as in the GPTQ papers: {windows_words(protocol)}; its exp is the perplexity they print"
    )


def is_other_convention(stored: Protocol, asked: Protocol, *, is_asked: bool) -> bool:
    """True if a stored text is none of those asked for, and one of the two is of windows."""
    if not (is_of_windows(stored) or is_of_windows(asked)):
        return False
    return not is_asked or is_of_windows(stored) != is_of_windows(asked)


def option_of_convention(stored: Protocol, asked: Readout) -> Option:
    """Another text or convention, and the option that asks for it; one that no choice tells wholly has none."""
    data, _, revision = str(stored.get("data")).partition("@")
    if is_of_windows(stored):
        facts = (stored.get(name) for name in ("separator", "num_rows", "most_sequences"))
        name, sizes = WINDOWS.get((data, *facts), ""), [key for key in USUAL if stored.get(key) != USUAL[key]]
        difference = f"{data} in windows of the gptq convention"
    else:
        name, sizes = BLOCKS.get(data, ""), list(SIZES)
        difference = f"{data} in blocks"
    if not name:
        return other_text(stored, asked)
    typed = [f"perplexity={name}", *(f"readout.perplexity.{key}={written(stored.get(key))}" for key in sizes)]
    typed += [f"readout.perplexity.revision={revision}"] if revision != "main" else []
    typed += [f"readout.perplexity.part={stored['part']}"] if "part" in stored else []
    return Option(f"text {difference} instead of {_asked(asked)}", " ".join(typed))


def _asked(readout: Readout) -> str:
    """The text that is asked for, in a few words."""
    spec = readout.perplexity
    if spec is None:
        return "none"
    is_windows = spec.kind == "hub" and spec.convention == "gptq"
    name = f"{spec.repo}/{spec.subset or ''}" if spec.kind == "hub" else f"the {spec.kind} text"
    return f"{name} in {'windows of the gptq convention' if is_windows else 'blocks'}"
