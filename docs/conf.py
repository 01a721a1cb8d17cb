"""Sphinx for this documentation: `make docs` writes it to out/docs, without network.

Sphinx with MyST and the theme of pandas, NumPy and SciPy: all three have had releases in the last weeks and are kept by
teams.  MkDocs 1 has had none since 2024, its second version drops the plugins that Material needs, Material itself
takes repairs alone, and Zensical, its successor, is at 0.1 and passes over settings that it does not know.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

with (DOCS.parent / "pyproject.toml").open("rb") as file:
    release = version = tomllib.load(file)["project"]["version"]
project = "matquant"
copyright = "the authors of matquant, Apache-2.0"
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "docs.extension"]
exclude_patterns = ["from_code", "pictures/*.py"]
nitpicky = False  # types of torch and jaxtyping have no pages here
default_role = "code"
smartquotes = False  # two dashes are an option's

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Fenced lines without a language are commands and their output.
highlight_language = "text"

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"

html_theme = "pydata_sphinx_theme"
html_title = "matquant"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
    "back_to_top_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": []}
