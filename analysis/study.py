"""The study of SmolLM2-135M as a document: docs/study_135m.md, its figures and the head of README.md, from results.

    python -m analysis.study            writes it
    python -m analysis.study --check    writes nothing; exits with 1 and names what is out of date

Another experiment of the study is a file under conf/experiment/study/ and a line in PARTS.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.figures.style import TEXT, save_figure
from analysis.files import write_text
from analysis.headline import placed
from analysis.show import SCREEN_DPI, OpenStudy, ShownPlot, ShownTable, ShownText
from analysis.study_text import GAP, Document, HandWritten, Part, beside, claims_table, document, figures_of, tally
from matquant.checkout import PROJECT
from matquant.errors import UserError
from matquant.runs.files import write_beside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.study_text import Opened

WIDTHS = ("widths", "widths_log_pplx")
PARTS = (
    Part("headline", "OmniQuant, FFN, with more documents", (1,), ("pareto",)),
    Part("headline_seeds", "OmniQuant and QAT, FFN: int2 with three seeds and more documents"),
    Part("omniquant", "OmniQuant, FFN", (1, 5, 7), (*WIDTHS, "codes", "pareto")),
    Part("omniquant_seeds", "OmniQuant, FFN: three seeds"),
    Part("omniquant_ablations", "OmniQuant, FFN: loss weights and co-distillation", (3, 4)),
    Part("omniquant_budget", "OmniQuant, FFN: int2 with four times the budget"),
    Part("headline_qat", "QAT, FFN, with more documents", (2,), ("pareto",)),
    Part("qat", "QAT, FFN", (2, 5, 30), (*WIDTHS, "codes", "pareto")),
    Part("qat_seeds", "QAT, FFN: int2 with three seeds"),
    Part("extra_level", "The overflow bucket without Extra Precision"),
    Part("ffn_attention", "FFN and attention", (6,)),
    Part("attention_budget", "FFN and attention: QAT with three times the budget"),
    Part("gptq", "GPTQ and MatGPTQ, FFN", (), (*WIDTHS, "pareto"), nested="{int8: 1, int4: 1, int3: 1}"),
    Part("gptq_budget", "GPTQ and MatGPTQ, FFN: int3 with eight times the text"),
    Part("mixnmatch", "Mix'n'Match: four layouts and two searches", (), ("mixnmatch", "plans")),
    Part("mixnmatch_seeds", "Mix'n'Match: four layouts with three seeds"),
    Part("mixnmatch_budget", "Mix'n'Match: four layouts with four times the budget"),
)

NAME = "study_135m"
DOCS = PROJECT / "docs"
README = PROJECT / "README.md"
CONF = PROJECT / "conf" / "experiment" / "study"
SHOWN_LINES = 20


def open_parts(*overrides: str, parts: Sequence[Part] = PARTS) -> Opened:
    """Every experiment of the study that there is; `overrides` are those of run.py, such as `paths.results=DIR`."""
    from matquant.config.study import load_study

    written = [part.name for part in parts if (CONF / f"{part.name}.yaml").exists()]
    return {name: OpenStudy(load_study([f"experiment=study/{name}", *overrides])) for name in written}


def draw(opened: Opened, docs: Path = DOCS) -> Document:
    """The document, with the words that lie beside it."""
    folder = docs / NAME
    words = [(folder / f"{name}.md").read_text(encoding="utf-8") for name in ("surprises", "deviations", "headline")]
    return document(PARTS, opened, HandWritten(*words), NAME)


def write(drawn: Document, docs: Path = DOCS, readme: Path | None = None) -> Path:
    """Writes the markdown, every figure, and the head of a README; returns the markdown's path."""
    for name, plot in drawn.figures.items():
        figure = plot.draw(TEXT if TEXT in plot.widths else max(plot.widths))
        write_beside(docs / NAME / name, partial(save_figure, figure, form="png", dpi=SCREEN_DPI))
    path = docs / f"{NAME}.md"
    write_text(path, drawn.text)
    if readme is not None:
        write_text(readme, placed(readme.read_text(encoding="utf-8"), drawn.headline))
    return path


def out_of_date(drawn: Document, docs: Path = DOCS, readme: Path | None = None) -> list[str]:
    """A sentence for each file that is not what would be written; figures have to be there, whatever is in them."""
    texts = {docs / f"{NAME}.md": drawn.text}
    if readme is not None:
        texts[readme] = placed(readme.read_text(encoding="utf-8"), drawn.headline)
    found = []
    for path, text in texts.items():
        written = path.read_text(encoding="utf-8") if path.exists() else ""
        if written != text:
            changes = difflib.unified_diff(written.splitlines(), text.splitlines(), "written", "now", "", "", 0, "")
            found.append("\n".join([f"{_place(path)} is out of date:", *islice(changes, SHOWN_LINES)]))
    figures = [docs / NAME / name for name in drawn.figures]
    return found + [f"{_place(figure)} is missing" for figure in figures if not figure.exists()]


def _place(path: Path) -> Path:
    return path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path


# --- for the notebook ------------------------------------------------------------------------------------------------


def claims(opened: Opened) -> ShownTable:
    """Every claim with what was measured and the verdict."""
    return ShownTable(claims_table(opened))


def verdicts(opened: Opened) -> ShownText:
    """How many cases came to which verdict, checks not among them."""
    return ShownText(tally(opened).split("; "))


def figure(opened: Opened, experiment: str, name: str) -> ShownPlot | ShownText:
    """A figure of the document, or a sentence where its results are missing."""
    part = next(part for part in PARTS if part.name == experiment)
    plots = figures_of(part, opened[experiment])
    return ShownPlot(plots[name]) if name in plots else ShownText([f"{experiment}, {name}: {GAP}."])


def beside_paper(opened: Opened, experiment: str, number: int) -> ShownTable:
    """Table `number` of MatQuant, ours in its last columns."""
    return ShownTable(beside(number, opened[experiment]))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 if the document is written, or up to date; 1 if it is not; 2 for a mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of run.py: paths.results=DIR")
    parser.add_argument("--check", action="store_true", help="write nothing, and say what is out of date")
    parser.add_argument(
        "--docs",
        type=Path,
        default=DOCS,
        help="the folder of the document; another one than docs leaves README.md alone",
    )
    options = parser.parse_intermixed_args(arguments)
    try:
        drawn = draw(open_parts(*options.overrides), options.docs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    readme = README if options.docs == DOCS else None
    if not options.check:
        print(f"study: {write(drawn, options.docs, readme)}")
        return 0
    found = out_of_date(drawn, options.docs, readme)
    print("\n".join([*found, "run: python -m analysis.study"] if found else ["up to date"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
