"""A small extension of Sphinx: pages out of the code, links that leave docs/, and a limit on the length of pages."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from docs.from_code.length import MOST_WORDS, num_words
from docs.from_code.pages import generated

log = logging.getLogger(__name__)


class FromCode(SphinxDirective):
    """Puts generated Markdown in its place: `{from_code} keys base`."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(generated(self.arguments[0]), allow_section_headings=True)


def lead_out(_: Sphinx, docname: str, source: list[str]) -> None:
    """Turns a link to a file beside docs/ into one that Sphinx copies into the site."""
    up = "../" * (docname.count("/") + 1)
    source[0] = re.sub(rf"\]\(({re.escape(up)}[^)#]+)(?:#[^)]*)?\)", r"](path:\1)", source[0])


def check_length(_: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Warns of a page that is longer than a reader wants, generated parts included."""
    words = num_words(doctree.astext())
    if words > MOST_WORDS:
        log.warning("%s has %d words, and a page has at most %d; divide it", docname, words, MOST_WORDS)


def as_rst(_: Sphinx, __: str, ___: str, ____: Any, _____: Any, lines: list[str]) -> None:
    """Sets the indented formulas of our docstrings as literal blocks, which reStructuredText wants to be told."""
    shown: list[str] = []
    for number, line in enumerate(lines):
        before = lines[number - 1] if number else ""
        if line.startswith("  ") and not before.strip():
            shown += ["::", ""] if not shown or not _in_block(shown) else []
        shown.append(line)
    lines[:] = shown


def _in_block(shown: list[str]) -> bool:
    """True where the last line with text is indented already."""
    return next((line.startswith("  ") for line in reversed(shown) if line.strip()), False)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("from_code", FromCode)
    app.connect("source-read", lead_out)
    app.connect("doctree-resolved", check_length)
    app.connect("autodoc-process-docstring", as_rst)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
