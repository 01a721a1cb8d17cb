"""Small pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """The text as it may stand in a row of a table."""
    return " ".join(text.split()).replace("|", r"\|")


def code(text: str) -> str:
    """The text as code, with a backtick in it too."""
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}" if text else ""


def fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text}\n```"
