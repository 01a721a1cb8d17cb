"""Arguments of a subcommand: its parser and its help, made from the table."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Sequence
from typing import NoReturn

from matquant.command.subcommand import Example, Subcommand
from matquant.command.table import SUBCOMMANDS
from matquant.errors import UserError

WIDEST = 72
"""Characters of an example; the purpose of a longer one stands right behind it."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows how")


def parse(name: str, arguments: Sequence[str]) -> Namespace:
    """The arguments of a subcommand as typed values; UserError for a mistake."""
    subcommand = SUBCOMMANDS[name]
    bare = {one.name: f"{one.name}={one.bare}" for one in subcommand.arguments if one.bare is not None}
    return parser_of(subcommand).parse_intermixed_args([bare.get(argument, argument) for argument in arguments])


def parser_of(subcommand: Subcommand) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"matquant {subcommand.name}",
        description=subcommand.description.strip("\n"),
        epilog="\n\n".join(filter(None, ["examples:\n" + lines(subcommand.examples), subcommand.notes.strip("\n")])),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for argument in subcommand.arguments:
        parser.add_argument(argument.name, help=argument.help, **argument.settings)
    return parser


def lines(examples: Sequence[Example]) -> str:
    """Examples beneath each other, their purposes in a column."""
    width = max((len(example.line) for example in examples if len(example.line) <= WIDEST), default=0)
    return "\n".join(f"  {example.line:{width}}   {example.purpose}".rstrip() for example in examples)
