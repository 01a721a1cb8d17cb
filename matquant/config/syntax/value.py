"""The value of a key as a person types it: text with any character in it, and a list of one without brackets."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString

from matquant.config.syntax.files import choices_in_words
from matquant.config.syntax.grammar import RUN, parsed_override
from matquant.config.syntax.keys import is_list, is_list_of_text, is_text
from matquant.errors import UserError

SECTIONS = ("readout.perplexity", "readout.search")
"""Keys whose values are those of an axis with another name."""


def valued(sign: str, key: str, value: str, *, swept: bool, searched: bool = False) -> str:
    """The override that gives a key its value, in quotes where Hydra would read another value, or none."""
    parsed = parsed_override(f"{key}={value}")
    if is_text(key) and not _is_quoted(value) and _is_path(value):
        as_it_stands = parsed is not None and _literal(parsed) == value and "${" not in value
        return f"{sign}{key}={value if as_it_stands else _quoted(value)}"
    if key in SECTIONS and parsed is not None and not parsed.is_sweep_override():
        return f"{sign}{key}={_section(key, value, parsed.value())}"
    if parsed is None:
        return f"{sign}{key}={_raw(key, value, swept=swept)}"
    if parsed.is_sweep_override():
        _check_sweep(key, value, parsed, swept=swept, searched=searched)
    elif is_list(key):
        return f"{sign}{key}={_listed(key, value, parsed.value())}"
    elif is_text(key) and isinstance(parsed.value(), (bool, int, float)):
        return f"{sign}{key}={_quoted(value)}"
    return f"{sign}{key}={value}"


def _raw(key: str, value: str, *, swept: bool) -> str:
    """A value that Hydra's grammar does not take, in quotes; a list keeps its brackets."""
    parts, inner = _split(value), value.strip()
    if swept and len(parts) > 1:
        return ",".join(valued("", key, part, swept=False).partition("=")[2] for part in parts)
    if inner.startswith("[") and (is_list(key) or not is_text(key)):
        if not inner.endswith("]"):
            raise UserError(f"'{key}={value}' cannot be read: a list ends with a bracket; write [a,b]")
        return _texts(inner)
    if inner.startswith("{") and key == "cluster.sbatch":
        raise UserError(
            f"'{key}={value}' cannot be read; write a value with brackets alone: 'cluster.sbatch.exclude=node[1-3]'"
        )
    if inner.startswith("{") and not is_text(key):
        raise UserError(f"'{key}={value}' cannot be read; write a mapping as {shlex.quote('{name: value}')}")
    return _texts(f"[{value}]") if is_list(key) else _quoted(value)


def _section(key: str, value: str, given: Any) -> str:
    """The value of a key with values below it, which are those of an axis."""
    axis = key.rpartition(".")[2]
    if isinstance(given, dict) and given:
        return value
    if axis == "perplexity" and (given in (None, False, "none") or given in ([], {})):
        return "null"
    raise UserError(f"{key}={value} is a section with values of its own; choose {axis}=..., {choices_in_words(axis)}")


def _listed(key: str, value: str, given: Any) -> str:
    """The value of a key that holds a list: one alone is a list of one."""
    if given is None:
        return "[]"
    if isinstance(given, list):
        are_texts = not is_list_of_text(key) or all(isinstance(one, str) for one in given)
        return value if are_texts else _texts(value)
    return _texts(f"[{value}]") if is_list_of_text(key) else f"[{value}]"


def _texts(value: str) -> str:
    """A list of texts, each of them in quotes."""
    return f"[{','.join(map(_item, _split(value.strip()[1:-1])))}]"


def _item(text: str) -> str:
    return text if _is_quoted(text) else _quoted(text)


def _check_sweep(key: str, value: str, parsed: Override, *, swept: bool, searched: bool) -> None:
    """Refuses several values where one is expected, and a search space where a list of values is."""
    if not parsed.is_discrete_sweep():
        if searched:
            return
        raise UserError(
            f"{key}={value} is a search space, and a sweep is made of single values; {_single_values(key, parsed)}; "
            "a sweeper that searches takes it as it is (docs/how_to/sweeps.md)"
        )
    if isinstance(parsed.value(), Glob):
        raise UserError(f"{key}={value}: a glob chooses among the files of an axis; write its values: {RUN} {key}=a,b")
    if swept:
        return
    remedies = [f"as cells of their own, type {RUN} {shlex.quote(f'{key}={value}')}"]
    if is_list(key):
        remedies.insert(0, f"as a list, write {shlex.quote(f'{key}=[{value}]')}")
    if is_text(key):
        remedies.insert(0, f"as one text, write {shlex.quote(f'{key}={_quoted(value)}')}")
    raise UserError(f"{key}={value} holds several values; {'; or '.join(remedies)} (a sweep needs --multirun, or -m)")


def _single_values(key: str, parsed: Override) -> str:
    """The end of a sentence about a search space: sweeps of single values inside it."""
    interval: Any = parsed.value()
    start, end = interval.start, interval.end
    some = f"type {RUN} {key}={start:g},{end:g}"
    if re.search(r"[.e]", str(parsed.input_line).partition("=")[2].partition("(")[2]):
        return some
    return f"{some}, or every one of them: {RUN} '{key}=range({start:g},{end + 1:g})'"


def _literal(parsed: Override) -> str | None:
    given = None if parsed.is_sweep_override() else parsed.value()
    return given if isinstance(given, str) else None


def _is_path(value: str) -> bool:
    try:
        return bool(value) and Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] and text[0] in "'\""


def _quoted(text: str) -> str:
    """The text in Hydra's double quotes, with no interpolation in it where it is a path that is there."""
    plain = text.replace("${", r"\${") if _is_path(text) else text
    return QuotedString(plain, Quote.double).with_quotes()


def _split(text: str) -> list[str]:
    """The parts between commas; a comma between quotes or brackets divides nothing."""
    return [part.strip() for part in re.findall(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\[[^\]]*\]|[^,])+""", text)]
