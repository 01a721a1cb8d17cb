"""Draws a table: for a terminal, as GitHub markdown, as HTML and as LaTeX (booktabs)."""

from __future__ import annotations

import textwrap
from collections.abc import Container, Sequence
from dataclasses import replace

import pandas as pd

from analysis.tables.markup import draw
from analysis.tables.summary_table import GRID, OVERFLOW
from analysis.tables.typeset import Entry, Table
from matquant.checkout import PROJECT

TABLES = PROJECT / "analysis" / "tables" / "templates"
NOTE_WIDTH = 130
METHOD_WIDTH = 29
"""The characters of a method's name, or its grid's, in a line; a longer one is wrapped, so that a table fits into 135
columns."""
ROWS = "rows of the table"
LINES_A_PAGE = 60
"""Rows of a LaTeX table that fit on a page in the size of a footnote; more become a longtable."""


def to_text(table: Table) -> str:
    """Aligned columns for a terminal, a blank line between data types; only the page shows the parts of Stored."""
    table = without(table, {GRID, OVERFLOW})
    blocks = []
    for section in table.sections:
        lines: list[list[str]] = []
        for row in section.rows:
            lines += _text_lines([entry.text for entry in row], table, first=not lines)
        blocks.append(lines)
    heads = _flat_heads(table)
    widths = [
        max(len(line[i]) for line in [[*heads], *(line for lines in blocks for line in lines)])
        for i in range(len(heads))
    ]
    drawn = [_text_line(heads, widths, table), "  ".join("-" * width for width in widths)]
    for number, (section, lines) in enumerate(zip(table.sections, blocks, strict=True)):
        if table.starts_model(number):
            drawn += ["", f"{section.model}"]
        drawn += ["", *(_text_line(line, widths, table) for line in lines)]
    return "\n".join([*drawn, "", *(line for note in table.notes for line in textwrap.wrap(note, NOTE_WIDTH))])


def _text_lines(texts: Sequence[str], table: Table, *, first: bool) -> list[list[str]]:
    """One row as lines of a terminal: long names are wrapped, the data type stands in the first row of a section."""
    wrapped = [textwrap.wrap(text, METHOD_WIDTH) or [""] for text in texts[1 : table.num_labels]]
    lines = [[texts[0] if first else "", *(parts[0] for parts in wrapped), *texts[table.num_labels :]]]
    for number in range(1, max(map(len, wrapped), default=0)):
        more = [f"  {parts[number]}" if number < len(parts) else "" for parts in wrapped]
        lines.append(["", *more, *[""] * (len(texts) - table.num_labels)])
    return lines


def without(table: Table, heads: Container[str]) -> Table:
    """A table without some of its columns."""
    kept = [number for number, head in enumerate(table.heads) if head not in heads]
    if len(kept) == len(table.heads):
        return table
    sections = [
        replace(section, rows=tuple(tuple(row[number] for number in kept) for row in section.rows))
        for section in table.sections
    ]
    return replace(table, heads=tuple(table.heads[number] for number in kept), sections=tuple(sections))


def _text_line(texts: Sequence[str], widths: Sequence[int], table: Table) -> str:
    """Names to the left, numbers to the right."""
    sides = ["<" if i < table.num_labels else ">" for i in range(len(texts))]
    return "  ".join(f"{text:{side}{width}}" for text, side, width in zip(texts, sides, widths, strict=True)).rstrip()


def _over_heads(table: Table) -> list[str]:
    """The group that stands over each head."""
    return [name for name, span in table.groups for _ in range(span)]


def _flat_heads(table: Table) -> list[str]:
    """Heads in one line, with the name of their group where there are groups."""
    return [f"{over} {head}".strip() for over, head in zip(_over_heads(table) or [""] * 99, table.heads, strict=False)]


# --- markdown --------------------------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """A GitHub table, with what is significantly the best in bold, the notes as a list below."""
    return "\n".join([markdown_rows(table), "", *(f"- {note}" for note in table.all_notes), ""])


def markdown_rows(table: Table) -> str:
    """The same without the notes."""
    drawn = [
        _markdown_line(_flat_heads(table)),
        "|" + "|".join("---" if i < table.num_labels else "--:" for i in range(len(table.heads))) + "|",
    ]
    for number, section in enumerate(table.sections):
        if table.starts_model(number):
            drawn.append(_markdown_line([f"**{_markdown_escape(section.model)}**", *[""] * (len(table.heads) - 1)]))
        drawn += [_markdown_line([_markdown_entry(entry) for entry in row]) for row in section.rows]
    title = [f"**{_markdown_escape(table.caption)}**", ""] if table.caption else []
    return "\n".join([*title, *drawn])


def _markdown_line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _markdown_entry(entry: Entry) -> str:
    text = _markdown_escape(entry.text)
    return f"**{text}**" if entry.best else text


MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in "\\|*_`<>[]"})


def _markdown_escape(text: str) -> str:
    return text.translate(MARKDOWN)


# --- HTML ------------------------------------------------------------------------------------------------------------


def to_html(table: Table) -> str:
    """A `<table>` for each model, without style of its own: classes name what an entry is (`best`, `missing`, `quiet`).

    Rows that belong together are one `<tbody>`, which is also what a page sorts by.
    """
    return draw("table.html.jinja", (TABLES,), table=table)


# --- LaTeX -----------------------------------------------------------------------------------------------------------

PREAMBLE = r"""\documentclass{article}
\usepackage[a4paper,margin=15mm]{geometry}
\usepackage{amssymb,array,booktabs,graphicx,longtable,textcomp,xcolor}
\begin{document}
"""
LATEX = str.maketrans(
    {
        **{mark: f"\\{mark}" for mark in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "−": r"$-$",
        "–": "--",
        "†": r"$\dagger$",
        "‡": r"$\ddagger$",
        "▲": r"$\blacktriangle$",
        "▼": r"$\blacktriangledown$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "→": r"$\to$",
        "λ": r"$\lambda$",
    }
)
"""The characters that LaTeX would read otherwise, and the marks that its fonts lack."""


def to_latex(table: Table) -> str:
    """A booktabs tabular, scaled to the line where it is wide; a longtable if it is longer than a page."""
    lines: list[list[str]] = []
    for number, section in enumerate(table.sections):
        start = len(lines)
        lines += [[_latex_entry(entry) for entry in row] for row in section.rows]
        rule = r"\midrule" + "\n" if start else ""
        if table.starts_model(number):
            rule += rf"\multicolumn{{{len(table.heads)}}}{{l}}{{\textbf{{{latex_text(section.model)}}}}} \\" + "\n"
        if len(lines) > start:
            lines[start][0] = rule + lines[start][0]
    heads = [latex_text(head) for head in table.heads]
    over = [latex_text(name) for name in _over_heads(table)]
    columns = pd.MultiIndex.from_arrays([over, heads]) if over else heads
    long = len(lines) > LINES_A_PAGE
    # pandas draws the head and what a longtable needs around one row, and the rows take its place: a Styler with all
    # rows takes longer than everything else that is done with a table.
    frame = pd.DataFrame([[ROWS, *[""] * (len(heads) - 1)]], columns=columns)
    drawn = frame.style.hide(axis="index").to_latex(
        hrules=True,
        column_format="l" * table.num_labels + "r" * (len(heads) - table.num_labels),
        multicol_align="c",
        environment="longtable" if long else None,
    )
    before, _, after = drawn.partition(ROWS)
    tabular = before + "\n".join(rf"{' & '.join(line)} \\" for line in lines) + after[after.index("\n") :]
    fitted = "\n".join([r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%", f"{tabular}}}"])
    body = tabular if long else fitted
    caption = [rf"\textbf{{{latex_text(table.caption)}}}\par\smallskip"] if table.caption else []
    notes = [rf"{latex_text(note)}\par" for note in table.all_notes]
    return "\n".join(
        [
            r"{\footnotesize\centering",
            *caption,
            body,
            r"\par\smallskip}",
            r"{\scriptsize\raggedright\noindent",
            *notes,
            "}",
            "",
        ]
    )


def document(tables: Sequence[str]) -> str:
    """LaTeX tables as a document that compiles on its own."""
    return PREAMBLE + "\n\\clearpage\n".join(tables) + "\n\\end{document}\n"


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it is, without a character that its fonts may lack."""
    text = text.translate(LATEX)
    return text if text.isascii() else "".join(mark if mark.isascii() else "?" for mark in text)


def _latex_entry(entry: Entry) -> str:
    text = latex_text(entry.text)
    if entry.quiet:
        text = rf"\textcolor{{gray}}{{{text}}}"
    return rf"\textbf{{{text}}}" if entry.best else text
