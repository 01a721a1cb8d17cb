"""The pages of subcommands, from the table that the command line itself is made of."""

from __future__ import annotations

from argparse import SUPPRESS

from docs.from_code.markdown import code, fenced, table
from matquant.command.parsing import parser_of
from matquant.command.subcommand import Argument, Subcommand
from matquant.command.table import GROUPS


def commands(group: str) -> str:
    """The subcommands of one purpose: what each does, its arguments and its examples."""
    (found,) = (one.subcommands for one in GROUPS if one.title == group)
    return "\n\n".join(map(_subcommand, found))


def _subcommand(subcommand: Subcommand) -> str:
    shown = [one for one in subcommand.arguments if one.help != SUPPRESS]
    usage = " ".join(parser_of(subcommand).format_usage().removeprefix("usage: ").split())
    parts = [
        f"## matquant {subcommand.name}",
        _paragraphs(subcommand.description),
        fenced(usage),
        table(("argument", "meaning"), ((code(_typed(one)), one.help) for one in shown)) if shown else "",
        table(("example", ""), ((code(one.line), one.purpose) for one in subcommand.examples)),
        _paragraphs(subcommand.notes),
    ]
    return "\n\n".join(part for part in parts if part)


def _typed(argument: Argument) -> str:
    """An argument as it is typed, with its choices or the name of its value."""
    settings = argument.settings
    value = settings.get("metavar") or "|".join(settings.get("choices", ()))
    if not argument.name.startswith("-"):
        return value or argument.name
    return f"{argument.name} {value}".strip().replace(" =", "=")


def _paragraphs(text: str) -> str:
    """Text of a help, whose indented lines are a list in columns."""
    parts: list[str] = []
    for paragraph in text.strip("\n").split("\n\n"):
        prose = [line for line in paragraph.splitlines() if not line.startswith("  ")]
        listed = [line for line in paragraph.splitlines() if line.startswith("  ")]
        if not listed:
            parts.append(paragraph)
            continue
        after = [line for line in paragraph[paragraph.rindex(listed[-1]) :].splitlines()[1:] if line in prose]
        before = prose[: len(prose) - len(after)]
        parts += ["\n".join(before), fenced("\n".join(listed)), "\n".join(after)]
    return "\n\n".join(part for part in parts if part)
