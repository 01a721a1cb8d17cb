"""The one door for overrides: a command line as a person types it becomes the one that Hydra reads.

A word without one obvious meaning is refused by name, in one sentence, whatever the command.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import cache

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from matquant.config.syntax.axis import chosen
from matquant.config.syntax.files import choices_in_words, is_group
from matquant.config.syntax.grammar import RUN, is_searched, parsed_override
from matquant.config.syntax.value import valued
from matquant.errors import UserError

OPTIONS = "cluster.sbatch"
"""The section whose keys are sbatch's own."""


def key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def understood(overrides: Sequence[str], *, swept: bool = False) -> list[str]:
    """The overrides in the words that Hydra reads; UserError, in one line, for one that has no clear meaning.

    `swept` is true for a multirun, where commas divide choices.  A sweeper that searches draws from search spaces too.
    """
    searched = swept and is_searched(overrides)
    words = [word for text in overrides if (word := _understood(text, swept=swept, searched=searched))]
    _all_have_an_effect(words)
    return words


def sweeps(overrides: Sequence[str]) -> bool:
    """True if several values of one key are typed."""
    parsed = map(parsed_override, overrides)
    return any(override is not None and override.is_sweep_override() for override in parsed)


def sweep_points(overrides: Sequence[str]) -> list[list[str]]:
    """The command lines that Hydra's multirun makes of `base=minmax,omniquant bits=int2,matquant`."""
    parsed = OverridesParser.create().parse_overrides(understood(overrides, swept=True))
    points = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    if not points:
        raise UserError(f"{' '.join(overrides)} sweeps over no value; a range has a start below its end: range(0,3)")
    return [understood(point) for point in points]


def for_hydra(overrides: Sequence[str]) -> list[str]:
    """The words of a multirun as Hydra is given them: below a swept axis, every value is one of the points alone.

    Hydra composes the words that are not swept before any point, with the default of the axis: `base.lr=0.1` beside
    `base=qat,gptq` would be looked for in OmniQuant.
    """
    parsed = [(word, parsed_override(word)) for word in overrides]
    axes = {
        key_of(word) for word, one in parsed if one is not None and one.is_sweep_override() and is_group(key_of(word))
    }
    return [
        f"{word.partition('=')[0]}=choice({word.partition('=')[2]})"
        if one is not None
        and not one.is_sweep_override()
        and not word.startswith("~")
        and key_of(word).partition(".")[0] in axes
        else word
        for word, one in parsed
    ]


def _all_have_an_effect(words: Sequence[str]) -> None:
    """Refuses a word below a key that another word sets to null: Hydra drops it silently if it comes first."""
    for emptied in (key_of(word) for word in words if word.partition("=")[2] == "null"):
        for word in words:
            if key_of(word).startswith(f"{emptied}."):
                raise UserError(
                    f"{emptied}=null leaves nothing to set {key_of(word)} of; leave out {shlex.quote(word)}"
                )


@cache
def _understood(text: str, *, swept: bool, searched: bool) -> str:
    if text.startswith("~"):
        if parsed_override(text) is None:
            raise UserError(f"'{text}' cannot be read; write ~KEY, once for every key that is left out")
        return text
    typed_key, equals, value = text.partition("=")
    key = typed_key.lstrip("+")
    sign = typed_key.removesuffix(key)
    if not equals or not key.strip() or re.search(r"\s|^-|:", key):
        raise UserError(f"'{text}' cannot be read: {_not_an_override(key, equals, value)}")
    if key.startswith("hydra.sweeper.params") and not searched:
        raise UserError(f"{key} is not read; type what is swept as overrides: {RUN} base.num_steps=10,20")
    if key.startswith(OPTIONS) and key.removeprefix(OPTIONS)[:1] in ("", "."):
        sign = "++"  # options are added to those of the file, and take their place
    if is_group(key):
        return chosen(sign, key, value, swept=swept)
    return valued(sign, key, value, swept=swept, searched=searched)


def _not_an_override(key: str, equals: str, value: str) -> str:
    """The sentence about a word that is not KEY=VALUE."""
    if not equals and is_group(key):
        return f"it has no value; write {key}=CHOICE, {choices_in_words(key)}"
    if not equals and ":" in key:
        return f"write {'='.join(part.strip() for part in key.split(':', 1))}"
    if equals and key.startswith("-"):
        return f"an override has no dashes; write {key.lstrip('-')}={value}"
    return "write KEY=VALUE, without spaces around the equals sign"
