"""Legends: short names of rows, the key to what they leave out, and a legend that fits under its figure."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.frame.names import head_of, named_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

LONGEST = 38
"""The characters of a name that a legend holds; facts that make it longer become a letter."""

CHARACTER, HANDLE = 3.65, 28.0
"""The points that a character of a legend takes on average, and those of its handle with the gap to the next column."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class ShortNames:
    """The short name of each label, and a sentence for what they leave out; empty where that is nothing."""

    names: Mapping[str, str]
    key: str


def short_names(labels: Iterable[str]) -> ShortNames:
    """Names without the facts that all labels share; where they are long, a letter stands for all facts of a label."""
    labels = list(dict.fromkeys(labels))
    split = {label: _parts(named_weights(label)) for label in labels}
    shared = set.intersection(*(set(facts) for _, facts in split.values())) if len(split) > 1 else set()
    facts_of = {label: tuple(fact for fact in facts if fact not in shared) for label, (_, facts) in split.items()}
    heads = {label: head for label, (head, _) in split.items()}
    whole = {label: ", ".join([heads[label], *map(_short, facts)]) for label, facts in facts_of.items()}
    if max(map(len, whole.values()), default=0) <= LONGEST:
        return ShortNames(whole, _key({}, shared))
    letters: dict[tuple[str, ...], str] = {}
    for label, facts in facts_of.items():
        if facts and len(whole[label]) > LONGEST:
            number = len(letters)
            letters.setdefault(facts, LETTERS[number % 26] + ("" if number < 26 else str(number // 26)))
    names = {
        label: f"{heads[label]}, {letters[facts]}" if facts in letters and facts else whole[label]
        for label, facts in facts_of.items()
    }
    return ShortNames(names, _key({letter: facts for facts, letter in letters.items()}, shared))


def _parts(label: str) -> tuple[str, list[str]]:
    """`MatQuant [8, 4, 8->2] (OmniQuant)` and the facts behind it; the commas of brackets are not between facts."""
    head, facts = head_of(label), []
    rest = label[len(head) :].removeprefix(", ")
    while rest:
        facts.append(head_of(rest))
        rest = rest[len(facts[-1]) :].removeprefix(", ")
    return head, facts


def _short(fact: str) -> str:
    """`num_steps=16` of `base.num_steps=16`."""
    name, equals, value = fact.partition("=")
    return f"{name.rpartition('.')[2]}={value}" if equals else fact


def _key(letters: Mapping[str, Sequence[str]], shared: set[str]) -> str:
    told = [f"{letter}: {', '.join(map(_short, facts))}." for letter, facts in letters.items()]
    return " ".join([*([f"All: {', '.join(sorted(shared))}."] if shared else []), *told])


def legend_below(figure: Figure, handles: Sequence[Line2D | Patch]) -> None:
    """A legend under the panels in as many columns as its names leave room for; a name that is too long is wrapped."""
    if handles:
        look = {"loc": "outside lower center", "ncols": columns(figure, handles), "columnspacing": 1.2}
        figure.legend(handles=wrapped(figure, handles), **look)


def columns(figure: Figure, handles: Sequence[Line2D | Patch]) -> int:
    longest = max(len(line) for handle in handles for line in str(handle.get_label()).splitlines())
    return max(1, min(len(handles), int(72 * figure.get_figwidth() / (CHARACTER * longest + HANDLE))))


def rows(figure: Figure, handles: Sequence[Line2D | Patch]) -> int:
    """The lines that the legend takes."""
    return -(-len(handles) // columns(figure, handles)) if handles else 0


def wrapped(figure: Figure, handles: Sequence[Line2D | Patch]) -> Sequence[Line2D | Patch]:
    room = int((72 * figure.get_figwidth() - HANDLE) / CHARACTER)
    for handle in handles:
        handle.set_label("\n".join(textwrap.wrap(str(handle.get_label()), room)))
    return handles


def fitting(title: str, width: float) -> str:
    """A title in as many lines as the width of a figure, in inches, asks for."""
    return "\n".join(textwrap.wrap(title, int(72 * (width - 0.5) / 4.6)))
