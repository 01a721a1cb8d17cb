"""The documentation as tests read it: pages, their links, and the commands that they show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from matquant.checkout import PROJECT

DOCS = PROJECT / "docs"
BESIDE = [PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CONVENTIONS.md", "CHANGELOG.md")]
PAGES = sorted(DOCS.rglob("*.md"))
FILES = [*PAGES, *BESIDE, PROJECT / "studies" / "README.md"]
FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=ticks)$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PLACEHOLDER = re.compile(r"\.\.\.|<[^>]+>|\b[A-Z][A-Z_]{2,}\b")
"""A part of a word that stands for the reader's own: CELL, DIR, a name in pointed brackets, dots."""
OURS = ("matquant", "python", "make", "torchrun", "pip")


class Shown(NamedTuple):
    """A command line on a page, without its comment, in words."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return FENCE.sub("", text)


def links(path: Path) -> list[str]:
    """The targets of a page's links inside the project."""
    found = LINK.findall(re.sub(r"`[^`\n]*`", "", prose(path.read_text(encoding="utf-8"))))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as hosts of Markdown make them."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def blocks(path: Path, *languages: str) -> Iterator[str]:
    """The fenced blocks of a page in one of some languages; the empty one is that of commands and their output."""
    for match in FENCE.finditer(path.read_text(encoding="utf-8")):
        if match["info"].strip() in languages:
            yield match["text"]


def commands(path: Path) -> Iterator[Shown]:
    """The command lines of ours that a page shows, in fenced blocks."""
    for block in blocks(path, "", "bash", "sh", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s&&\s|\s\|\s", line):
                if words := _words(part):
                    yield Shown(name(path), words)


def inline(path: Path) -> Iterator[Shown]:
    """The command lines that a page names in its prose and tables."""
    for text in re.findall(r"`([^`\n]+)`", prose(path.read_text(encoding="utf-8"))):
        first, others, _ = text.replace("\\|", "|").partition(" | ")
        words = _words(f"{first} ..." if others else first)
        if len(words) > 1 and words[0] in ("matquant", "python", "make"):
            yield Shown(name(path), words)


def _words(line: str) -> tuple[str, ...]:
    """The words of a command of ours; none for another line."""
    if match := re.fullmatch(r'eval "\$\((.+)\)"', line.partition(" #")[0].strip()):
        line = match[1]
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return ()
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # VARIABLE=VALUE before a command
        words.pop(0)
    return tuple(words) if words and Path(words[0]).name in OURS else ()
