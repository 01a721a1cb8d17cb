"""A subcommand as data: its module, its words, its arguments and its examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Argument:
    """An argument or an option, with its settings for `argparse`."""

    name: str
    help: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    bare: str | None = None
    """The value of an option that is typed without one; another value is typed behind an equals sign."""


class Example(NamedTuple):
    """A line to type, and its purpose."""

    line: str
    purpose: str


@dataclass(frozen=True)
class Subcommand:
    """A word behind `matquant`.

    `module` has a function `main(arguments)`, which returns an exit status, or None for 0.
    """

    name: str
    module: str
    summary: str
    description: str
    arguments: tuple[Argument, ...]
    examples: tuple[Example, ...]
    notes: str = ""
    needs_clone: bool = True
    """True where files or packages beside `matquant/` are needed: conf/, evaluation/, analysis/, slurm/."""
    passes_on: bool = False
    """True where the arguments are read by another program; here they only complete what is typed."""

    takes_sweeps: bool = False
    """True where several choices of an axis are typed as in a multirun, `bits=int8,int4`."""

    @property
    def takes_overrides(self) -> bool:
        return any(argument.settings.get("metavar", "").endswith("KEY=VALUE") for argument in self.arguments)

    @property
    def options(self) -> tuple[Argument, ...]:
        return tuple(argument for argument in self.arguments if argument.name.startswith("-"))


class Group(NamedTuple):
    """Subcommands with one purpose."""

    title: str
    subcommands: tuple[Subcommand, ...]
