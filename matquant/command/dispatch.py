"""Finds the subcommand that was typed, and calls its module."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING

from matquant.checkout import PROJECT, left_in_the_clone
from matquant.command.parsing import lines, parse, parser_of
from matquant.command.subcommand import Subcommand
from matquant.command.table import CELL, FIRST_STEPS, GROUPS, SUBCOMMANDS
from matquant.command.terminal import ended, log_to_stderr
from matquant.errors import UserError

if TYPE_CHECKING:
    from matquant.config.setup import Paths

log = logging.getLogger("matquant")
INSTALL = "pip install --editable '.[harness]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command `matquant`; returns its exit status."""
    return ended(lambda: _dispatch(sys.argv[1:] if arguments is None else list(arguments)))


def _dispatch(words: list[str]) -> int | None:
    match words:
        case [] | [("-h" | "--help" | "help")]:
            print(overview())
            return 0
        case [("-h" | "--help" | "help"), name, *_]:
            return call(name, ["--help"])
        case [("-V" | "--version"), *_]:
            print(version())
            return 0
        case _:
            return call(words[0], words[1:])


def call(name: str, arguments: Sequence[str]) -> int | None:
    """Runs a subcommand; returns its exit status."""
    if name not in SUBCOMMANDS:
        near = difflib.get_close_matches(name, SUBCOMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"there is no subcommand {name}; {hint}matquant --help lists them")
    subcommand = SUBCOMMANDS[name]
    overrides: Sequence[str] | None = None
    if not subcommand.passes_on:
        if not {"-h", "--help"}.isdisjoint(arguments):
            print(parser_of(subcommand).format_help(), end="")
            return 0
        overrides = getattr(parse(name, arguments), "overrides", None)
    if subcommand.needs_clone:
        require_clone(subcommand)
    if subcommand.takes_overrides and subcommand.needs_clone:
        from matquant.config.syntax.listing import listing

        if (asked := listing(arguments)) is not None:
            print(asked)
            return 0
    log_to_stderr()
    if overrides is not None:  # a mistake is answered before anything heavy is imported
        say_where(_checked(subcommand, overrides))
    elif subcommand.takes_overrides and not subcommand.passes_on:
        _say_where_of(arguments)
    return import_module(subcommand.module).main(arguments)


def _checked(subcommand: Subcommand, overrides: Sequence[str]) -> Paths:
    """The folders of a command line that composes; UserError for one that does not."""
    if subcommand.takes_sweeps:
        from matquant.config.sweep import load_joint

        joints, _ = load_joint(overrides)
        return joints[0][0].setup.paths
    from matquant.config.study import load_study

    study = load_study(overrides)
    if CELL in subcommand.arguments:
        study.one_cell()
    return study.setup.paths


def say_where(paths: Paths) -> None:
    """Says where runs and results are looked for, if that is not where the clone has them."""
    if (told := left_in_the_clone(runs=paths.runs, results=paths.results)) is not None:
        log.info("%s", told)


def _say_where_of(arguments: Sequence[str]) -> None:
    """The same for a subcommand whose words are overrides and others; a mistake among them is its own to name."""
    from matquant.config.study import load_study

    try:
        say_where(load_study([word for word in arguments if "=" in word and not word.startswith("-")]).setup.paths)
    except UserError:
        return


def require_clone(subcommand: Subcommand) -> None:
    """Raises UserError where only the wheel is installed, or the clone without the libraries of the harness."""
    if not is_clone():
        raise UserError(
            f"matquant {subcommand.name} needs the repository, and only the package is installed; "
            f"clone the repository and run `{INSTALL}` in it"
        )
    if find_spec("hydra") is None:  # one of them stands for all
        raise UserError(
            f"matquant {subcommand.name} needs libraries that are not installed; run `{INSTALL}` in the clone"
        )


def is_clone() -> bool:
    """True where the repository lies around the package."""
    return (PROJECT / "run.py").is_file() and (PROJECT / "conf").is_dir()


def overview() -> str:
    """The map: every subcommand in a line, by purpose."""
    width = max(map(len, SUBCOMMANDS))
    groups = "\n\n".join(
        f"{title}\n" + "\n".join(f"  {one.name:{width}}   {one.summary}" for one in subcommands)
        for title, subcommands in GROUPS
    )
    return f"""\
matquant: one nested checkpoint, read at every precision, compared with honest baselines

usage: matquant SUBCOMMAND ...

{groups}

examples
{lines(FIRST_STEPS)}

matquant SUBCOMMAND --help    more about one, with examples
matquant --version            the version and the commit
README.md tells how to begin, docs/ explains every part."""


def version() -> str:
    """The version and, in a clone, the commit it is at."""
    from matquant.runs.provenance import source_commit

    source = source_commit() if is_clone() else {"commit": "unknown", "dirty": None}
    try:
        number = metadata.version("matquant")
    except metadata.PackageNotFoundError:
        number = "(not installed)"
    commit = "" if source["commit"] == "unknown" else f", commit {source['commit']}"
    return f"matquant {number}{commit}{', edited' if source['dirty'] else ''}"
