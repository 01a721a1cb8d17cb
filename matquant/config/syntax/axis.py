"""The words of an axis: the choice that each of them means, or a sentence with the choices.

`bits=8` is `bits=int8`, `extra_bit=true` is `extra_bit=on`, `distill=null` is `distill=none`.  Hydra would keep the
last entry of a list and end in a TypeError for a number.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Glob, Override

from matquant.config.syntax.files import choices, choices_in_words, nearest
from matquant.config.syntax.grammar import RUN, as_typed, parsed_override
from matquant.errors import UserError

NOTHING = {"null", "none", "false", "off"}
MEANINGS = {
    "extra_bit": {"on": {"true", "yes", "1"}, "off": NOTHING | {"no", "0"}},
    "distill": {"none": NOTHING},
    "weights": {"uniform": NOTHING},
    "tracking": {"none": NOTHING, "wandb": {"true", "on"}},
    "experiment": {"null": NOTHING},
    "data": {"null": NOTHING},
    "perplexity": {"null": NOTHING},
}
"""Other words for a choice, where there is one obvious meaning; `null` is no file at all."""
# Hydra has no null on an axis.  Files of other axes may set values below readout.perplexity: a value has the last word.
WITHOUT = {"experiment": "", "data": "~data", "perplexity": "readout.perplexity=null"}
CELL_AXES = ("model", "data", "base", "bits", "weights", "distill", "extra_bit", "slicing", "scope", "grid", "seed")
"""The keys that can tell two cells of a study apart."""


def chosen(sign: str, axis: str, value: str, *, swept: bool) -> str:
    """The override that chooses what a word of an axis means; UserError with the choices for a word without meaning."""
    parsed = parsed_override(f"{axis}={value}")
    if parsed is None:
        raise UserError(f"'{axis}={value}' cannot be read; {nearest(value, choices(axis), cutoff=0.5)}{_choose(axis)}")
    if parsed.is_sweep_override():
        return _swept_axis(sign, axis, value, parsed, swept=swept)
    given: Any = parsed.value()
    if isinstance(given, dict) and given:
        raise UserError(f"{axis} holds values of its own; {_one_by_one(axis, given)}")
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if isinstance(given, list) and given:
        raise UserError(_several(axis, [_choice(axis, as_typed(one)) for one in given], f"{axis}={value}"))
    word = "null" if isinstance(given, (dict, list)) else as_typed(given)
    choice = _choice(axis, word, f"{axis}={value}")
    return f"{sign}{axis}={choice}" if choice != "null" else WITHOUT[axis]


def _choice(axis: str, word: str, typed: str | None = None) -> str:
    """The choice that a word means; the word itself if it is the name of a file, or of none."""
    typed = f"{axis}={word}" if typed is None else typed
    found = choices(axis)
    if word in found:
        return word
    if re.fullmatch(r"\d+", word) and axis not in MEANINGS:  # bits=8, grid=64
        named = [name for name in (f"int{word}", f"group_{word}") if name in found]
        if named:
            return named[0]
    for choice, words in MEANINGS.get(axis, {}).items():
        if word.lower() in words:
            return choice
    same = [name for name in found if name.lower() == word.lower()]
    if same:
        return same[0]
    if word.lower() in NOTHING | {"true"} or _is_number(word):
        raise UserError(f"{typed} is not a choice of {axis}; {_choose(axis, word)}")
    return word


def _is_number(word: str) -> bool:
    """True for everything that Hydra takes for a number, `-1`, `nan` and `1e3` too: it would end in a traceback."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def _one_by_one(axis: str, given: Mapping[str, Any]) -> str:
    """The end of a sentence about a mapping on an axis."""
    typed = " ".join(f"++{axis}.{name}={as_typed(content)}" for name, content in given.items())
    if axis == "weights":
        return f"set one of them with +{axis}.NAME=VALUE, here {typed}"
    return f"type single ones as {axis}.NAME=VALUE, and choose {axis} by name, {choices_in_words(axis)}"


def _choose(axis: str, word: str = "") -> str:
    other = f"; another size is grid.group_size={word}" if axis == "grid" and re.fullmatch(r"\d+", word) else ""
    return choices_in_words(axis) + other


def _several(axis: str, words: Sequence[str], given: str) -> str:
    """The sentence about several choices of an axis in one cell, with every remedy that fits."""
    if "null" in words:  # has no file, so that it cannot be swept
        remedies = [f"choose one, {axis}={next(word for word in words if word != 'null')} or {axis}=null"]
    else:
        remedies = [f"as cells of their own, type {RUN} {axis}={','.join(words)}"]
    if axis == "bits" and all(re.fullmatch(r"int\d", word) for word in words):
        remedies.append(f"nested in one checkpoint, bits.widths=[{','.join(words)}]")
    elif axis in CELL_AXES:
        cells = f"cells=[{{{axis}:[{','.join(words)}]}}]"
        remedies.append(f"in any command, {shlex.quote(cells)}")
    return f"{given} names several choices, and a cell has one of {axis}; {'; or '.join(remedies)}"


def _swept_axis(sign: str, axis: str, value: str, parsed: Override, *, swept: bool) -> str:
    given = parsed.value()
    if isinstance(given, Glob):
        words = given.filter(choices(axis))
        if not words:
            raise UserError(f"{axis}={value} matches no choice of {axis}; {_choose(axis)}")
    elif parsed.is_discrete_sweep():
        words = [_choice(axis, word.strip("'\"")) for word in parsed.sweep_string_iterator()]
    else:
        raise UserError(f"{axis}={value} is a search space of numbers; {_choose(axis)}")
    if "null" in words:
        raise UserError(f"{axis}=null cannot be swept beside other choices; run it alone: python run.py {axis}=null")
    if not swept:
        raise UserError(f"{_several(axis, words, f'{axis}={value}')} (a sweep needs --multirun, or -m)")
    for word in words if not axis.startswith("hydra/") else ():  # mistyped: no point that is refused alone
        if word not in choices(axis):
            raise UserError(f"{axis}={word} does not exist; {nearest(word, choices(axis), cutoff=0.4)}{_choose(axis)}")
    return f"{sign}{axis}={','.join(words)}"
