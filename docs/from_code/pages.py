"""Generated text by name: what a page asks for with `{from_code} NAME WORDS`."""

from __future__ import annotations

from collections.abc import Callable

from docs.from_code.commands import commands
from docs.from_code.experiments import experiments
from docs.from_code.keys import axis_page, choices_table, run_page

GENERATORS: dict[str, Callable[[list[str]], str]] = {
    "commands": lambda words: commands(*words),
    "keys": lambda words: axis_page(words[0], words[1:]),
    "choices": lambda words: choices_table(*words),
    "run_keys": lambda _: run_page(),
    "experiments": lambda words: experiments(*words),
}


def generated(request: str) -> str:
    """The Markdown that a page asks for in a few words, such as `keys base omniquant qat`."""
    name, *words = request.split()
    return GENERATORS[name](words)
