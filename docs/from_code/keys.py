"""The pages of configuration keys: each with its meaning, its values and its default, out of the code and conf/.

A meaning is the docstring below a field of the typed configuration; of a key that no type has, it is the comment behind
it in conf/.  A default is what composes when nothing is typed but the choice.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel

from docs.from_code.markdown import code, table
from matquant.config.compose import compose
from matquant.config.setup import Setup
from matquant.config.syntax.files import CONF
from matquant.config.syntax.grammar import as_typed
from matquant.config.syntax.keys import PLACES, leaves
from matquant.config.syntax.listing import described, file_of

SECTIONS = {"perplexity": "readout.perplexity", "search": "readout.search"}
"""Axes whose keys stand below another key."""
FIRST = {
    "model": ("smollm2_135m", "hub", "folder", "tiny"),
    "data": ("embedded", "hub", "text_files"),
    "perplexity": ("embedded", "wikitext2_gptq", "text_files"),
    "base": ("none", "minmax", "search", "omniquant", "qat", "gptq"),
    "cluster": ("local", "slurm", "debug"),
    "bits": ("matquant",),
    "grid": ("group_64",),
    "readout": ("embedded",),
    "search": ("evopress",),
    "scope": ("ffn",),
    "tracking": ("wandb",),
    "distill": ("none",),
    "extra_bit": ("off",),
    "weights": ("gemma2",),
}
"""The choices of an axis whose keys are shown, one for each kind; the page lists the others by what they change."""
REQUIRED = {"name": "mine", "repo": "owner/name", "path": "folder", "paths": "[a.txt]"}
"""Values that stand in for those a person has to give, so that a choice composes."""


class Key(NamedTuple):
    """A key as it is typed, its values, its default and its meaning."""

    name: str
    values: str
    default: str
    meaning: str


def axis_page(axis: str, kinds: Sequence[str] = ()) -> str:
    """The keys of an axis, a table for each kind of it or for those that are named."""
    return "\n\n".join(_kind(axis, choice) for choice in kinds or FIRST[axis])


def choices_table(axis: str) -> str:
    """The choices of an axis, each with the line that its file says about it."""
    return table(("choice", "in a line"), ((code(f"{axis}={one.name}"), one.line) for one in described(axis)))


def run_page() -> str:
    """The keys beside the axes: the experiment, folders, the device and the seed."""
    return _table(top_keys())


def _kind(axis: str, choice: str) -> str:
    found = keys(axis, choice)
    shown = _table(found) if found else "No keys of its own."
    return f"## {axis}={choice}\n\n{shown}"


def _table(found: Iterable[Key]) -> str:
    rows = ((code(key.name), key.values, code(key.default), key.meaning[:1].upper() + key.meaning[1:]) for key in found)
    return table(("key", "values", "default", "meaning"), rows)


def keys(axis: str, choice: str) -> list[Key]:
    """Every key below an axis as one of its choices composes it."""
    place = SECTIONS.get(axis, axis)
    lacking = _lacking(axis, choice)
    typed = [f"{place}.{name}={REQUIRED[name]}" for name in lacking]
    values = _at(compose([f"{axis}={choice}", *typed]), place)
    if not isinstance(values, Mapping):
        return [Key(place, "true, false", as_typed(values), comment_of(axis, choice, place))]
    spec = _spec(place, values.get("kind"))
    skipped = {"kind", *(name for name in values if f"{place}.{name}" in SECTIONS.values())}
    return [
        Key(
            f"{place}.{name}",
            values_of(spec, name) or " or ".join(_words(type(value))),
            "required" if name in lacking else _shown(value),
            meaning_of(spec, name) or comment_of(axis, choice, name),
        )
        for name, value in values.items()
        if name not in skipped
    ]


def top_keys() -> list[Key]:
    values = compose([])
    axes = {path.name for path in CONF.iterdir() if path.is_dir()}
    found = [name for name in values if name not in axes and name not in ("paths", "hydra", "experiment", "only")]
    rows = [
        Key(
            name,
            values_of(Setup, name) or " or ".join(_words(type(values[name]))),
            _shown(values[name]),
            meaning_of(Setup, name) or _comment(CONFIG, name),
        )
        for name in [*found, "only"]
    ]
    paths = [
        Key(f"paths.{name}", "a folder", str(value), meaning_of(PLACES["paths"], name))
        for name, value in values["paths"].items()
    ]
    return [*rows, *paths]


CONFIG = CONF / "config.yaml"


def _at(values: Mapping[str, Any], place: str) -> Any:
    found: Any = values
    for part in place.split("."):
        found = found[part]
    return found


def _spec(place: str, kind: str | None) -> type[BaseModel] | None:
    """The type of what stands below a key; of a union, the member of that kind."""
    specs = [one for one in leaves(PLACES.get(place)) if isinstance(one, type) and issubclass(one, BaseModel)]
    for spec in specs:
        if "kind" not in spec.model_fields or kind in get_args(spec.model_fields["kind"].annotation):
            return spec
    return None


def values_of(spec: type[BaseModel] | None, name: str) -> str:
    """The values that a key takes, in words."""
    field = spec.model_fields.get(name) if spec is not None else None
    return "" if field is None else " or ".join(dict.fromkeys(_words(field.annotation)))


WORDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true, false", Path: "a folder"}


def _words(annotation: Any) -> list[str]:
    origin, inner = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Literal:
        return [", ".join(as_typed(value) for value in inner)]
    if origin in (tuple, list):
        return ["a list"]
    if origin is dict:
        return ["a mapping"]
    if annotation is type(None):
        return ["null"]
    if annotation in WORDS:
        return [WORDS[annotation]]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return ["a section"]
    return [word for one in inner if not hasattr(one, "func") for word in _words(one)] if inner else []


def meaning_of(spec: type[BaseModel] | None, name: str) -> str:
    """The docstring below a field, in one line; of a field that is inherited, that of the class it comes from."""
    found = (_docstrings(one).get(name, "") for one in (spec.__mro__ if spec is not None else ()) if one is not object)
    return _as_yaml(next((text for text in found if text), ""))


def _as_yaml(text: str) -> str:
    """A meaning in the words of a command line: null and true for None and True."""
    for python, yaml_word in (("None", "null"), ("True", "true"), ("False", "false"), ("`Setup.", "`")):
        text = re.sub(rf"(?<!\w){python}", yaml_word, text) if python[0] != "`" else text.replace(python, yaml_word)
    return text


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) and value != value.strip() else as_typed(value)


@cache
def _docstrings(of: type) -> dict[str, str]:
    if not of.__module__.startswith("matquant."):
        return {}
    (tree,) = ast.parse(dedent(inspect.getsource(of))).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def comment_of(axis: str, choice: str, name: str) -> str:
    """The comment behind a key in the file of a choice, or in one that the file starts from."""
    return next((text for path in _files(axis, choice) if (text := _comment(path, name))), "")


def _comment(path: Path, name: str) -> str:
    found = re.search(rf"^ *{re.escape(name)}:.*?\s#\s*(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


def _files(axis: str, choice: str) -> list[Path]:
    """The file of a choice and those it starts from, the nearest first."""
    path = file_of(axis, choice)
    found = [path]
    for start in yaml.safe_load(path.read_text(encoding="utf-8")).get("defaults", []):
        match start:
            case str() if start != "_self_":
                found += _files(axis, start)
            case {"/data@_here_": name}:
                found += _files("data", name)
    return found


def _lacking(axis: str, choice: str) -> list[str]:
    """The keys that a person has to give with a choice."""
    values = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in reversed(_files(axis, choice))]
    merged = {name: value for one in values for name, value in one.items()}
    return [name for name, value in merged.items() if value == "???"]
