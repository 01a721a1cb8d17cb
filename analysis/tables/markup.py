"""Draws HTML from jinja2 templates.

A template escapes every text that it is given.  HTML comes as `Markup`, and goes in as it is.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from jinja2 import Environment


def draw(template: str, folders: tuple[Path, ...], **values: Any) -> str:
    """A template, filled in; it and what it includes are looked up in the folders, in their order."""
    return environment(folders).get_template(template).render(values)


@cache
def environment(folders: tuple[Path, ...]) -> Environment:
    """The templates of some folders; a value that a template misses is an error, never an empty text."""
    # Imported here, so that a command that draws nothing starts without it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
