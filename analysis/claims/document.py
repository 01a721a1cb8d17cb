"""The document of a study in markdown: what was run, claims with their verdicts, tables and figures, words by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, assert_never

import pandas as pd

from analysis.claims.headline import headline_block
from analysis.claims.intervals import NAME as ANSWERS
from analysis.claims.intervals import intervals_plot
from analysis.claims.judges import rules_of
from analysis.claims.prose import fill
from analysis.claims.verdict_tables import claims_table, glance, tally
from analysis.claims.verdicts import rule_text
from analysis.figures.gallery import plots
from analysis.frame import grids
from analysis.frame.load import COLUMNS, LoadedResults
from analysis.frame.names import BASE_NAMES
from analysis.frame.otherwise import measured_otherwise
from analysis.frame.summary import CHANCE, task_name
from analysis.page.contents import gap_texts, provenance_rows
from analysis.tables.beside import side_by_side
from analysis.tables.drawing import markdown_rows, to_markdown
from analysis.tables.papers import DOUBLE_DAGGER, by_model
from analysis.tables.summary_table import significant_marks, summary_table, with_reference_notes
from analysis.tables.typeset import Entry, Section, Table
from evaluation.results.metrics import LOG_PPLX
from matquant.config.cell import ForeignBase, GPTQBase, MinMaxBase, NoBase, OmniQuantBase, QATBase, SearchBase
from matquant.config.grid_words import all_words

if TYPE_CHECKING:
    from analysis.claims.cases import Opened
    from analysis.claims.definition import DocumentPart, StudyDefinition, StudyFolder
    from analysis.figures.gallery import Plot
    from analysis.frame.opened import OpenStudy
    from matquant.config.cell import Cell

COMMAND = "matquant study"
GAP = "not measured yet"
HONESTY = (
    "Every number in a table, a figure or a verdict is taken from result files by code. A claim that fails is a "
    "finding and stands here as one. A number that nobody has measured yet is a gap."
)
SIGN = re.compile(r"\[\d+\] ")
"""How a note on single rows begins."""
CHANCE_NOTE = f"Guessing has a Task Avg of {100 * sum(CHANCE.values()) / len(CHANCE):.1f}."


@dataclass(frozen=True)
class Document:
    """The markdown, its figures by file name, and its share of README.md, if it has one."""

    text: str
    figures: Mapping[str, Plot]
    headline: str | None


def document(folder: StudyFolder, study: StudyDefinition, opened: Opened) -> Document:
    """The document of a study; `opened` has its experiments that exist, and `folder` its words."""
    drawn = {part.name: figures_of(part, opened[part.name]) for part in study.parts if part.name in opened}
    figures = {file_name(part, name): plot for part, plots_ in drawn.items() for name, plot in plots_.items()}
    answers = intervals_plot(study, opened)
    figures |= {} if answers is None else {f"{answers.name}.png": answers}
    shown = Shown(folder.figures.name, figures, frozenset(f"{stem}.png" for stem in study.carrying))
    blocks = [
        f"# {study.title}",
        f"<!-- Written by `{COMMAND} {folder.name}`; edit the words beside it, not this file. -->",
        *(fill(folder.words(name), opened) for name in study.answers),
        *(block for stem in study.carrying for block in shown.first(f"{stem}.png")),
        *_introduction(folder.name, study, opened),
        *_claims_section(study, opened, shown),
        "## Experiments",
        *_legend(study.parts, opened),
        *(block for part in study.parts for block in _section(folder, part, opened, shown)),
        *(fill(folder.words(name), opened) for name in study.words),
        *_gaps(opened),
    ]
    return Document("\n\n".join(blocks) + "\n", figures, _headline(folder, study, opened))


@dataclass(frozen=True)
class Shown:
    """The figures of a document by file name; those that carry the answers stand behind these, and nowhere else."""

    folder: str
    figures: Mapping[str, Plot]
    carrying: frozenset[str]

    def first(self, name: str) -> Iterator[str]:
        """A figure that carries the answers."""
        return (
            self._with_words(name) if name in self.figures else iter([f"*Figure {name.removesuffix('.png')}: {GAP}.*"])
        )

    def there(self, name: str, gap: str = "") -> Iterator[str]:
        """A figure in its section, with its words below it; nothing if it has been shown before."""
        if name in self.figures and name not in self.carrying:
            yield from self._with_words(name)
        elif name not in self.figures and gap:
            yield gap

    def _with_words(self, name: str) -> Iterator[str]:
        plot = self.figures[name]
        yield f"![{plot.title}]({self.folder}/{name})"
        yield f"*{plot.title}.{f' {plot.note}' if plot.note else ''}*"


def _headline(folder: StudyFolder, study: StudyDefinition, opened: Opened) -> str | None:
    if study.headline is None:
        return None
    image = f"studies/{folder.name}/{folder.figures.name}/{file_name(study.headline.part, study.headline.figure)}"
    return headline_block(study.headline, opened, folder.words("headline"), image)


def file_name(part: str, figure: str) -> str:
    return f"{part}_{figure}.png"


# --- what was run ----------------------------------------------------------------------------------------------------


def _introduction(name: str, study: StudyDefinition, opened: Opened) -> Iterator[str]:
    loaded = together(opened)
    cells = {cell.id for one in opened.values() for cell in one.study.cells}
    measured = len(loaded.expected) - len(loaded.missing)
    yield f"{study.introduction} {HONESTY}".strip()
    measure = f"matquant launch experiment={name}/PART"
    yield "\n".join(
        [
            "```",
            f"{measure}    # measures what is missing of a part: " + ", ".join(part.name for part in study.parts),
            f"{f'{COMMAND} {name}':{len(measure)}}    # draws this document again, from results alone",
            "```",
        ]
    )
    facts = [
        ("results", f"{measured} of {len(loaded.expected)} measured, of {len(cells)} cells"),
        *([("documents", _documents_text(loaded))] if loaded.tasks else []),
        ("log perplexity", _tokens_text(loaded)),
        *provenance_rows(loaded),
    ]
    yield "\n".join(f"- {name}: {text}" for name, text in facts)
    yield "The text and the training of each algorithm, as configured:"
    yield markdown_rows(budgets(opened))


def together(opened: Opened) -> LoadedResults:
    """The results of all experiments, each once: they share cells.

    A task is named with its number of documents, and held-out text with its part and the length of its blocks: the same
    cell on other text is another result.
    """
    keys = ["cell_id", "plan", "task"]
    expected = [_of_so_many(study, study.loaded.expected) for study in opened.values()]
    if not expected:
        return LoadedResults(pd.DataFrame(columns=list(COLUMNS)), pd.DataFrame(columns=keys))
    frames = [_of_so_many(study, study.loaded.frame) for study in opened.values()]
    frame = pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)
    return LoadedResults(
        frame.drop_duplicates([*keys, "metric"], ignore_index=True),
        pd.concat(expected, ignore_index=True).drop_duplicates(keys, ignore_index=True),
    )


def _of_so_many(study: OpenStudy, frame: pd.DataFrame) -> pd.DataFrame:
    """Tasks renamed to `boolq of 300` and `log_pplx of blocks of 32`: on other documents they are others."""
    readout = study.study.setup.readout
    text, words = readout.perplexity, ""
    if text is not None:
        part = "" if text.part == "test" else f" of {text.part} text"
        words = f"blocks of {text.sequence_length} tokens{part}"
    of_text = frame["task"] == LOG_PPLX
    return frame.assign(
        task=(frame["task"] + f" of {readout.limit or 'all'}").where(~of_text, f"{LOG_PPLX} of {words}")
    )


def _documents_text(loaded: LoadedResults) -> str:
    """`50 of each: ARC-c, ARC-e`, tasks with equally many documents together."""
    if loaded.frame.empty:
        return GAP
    tasks: dict[int, list[str]] = {}
    for task, number in loaded.frame.groupby("task", sort=False)["num_documents"].max().items():
        if not str(task).startswith(LOG_PPLX):
            tasks.setdefault(int(number), []).append(task_name(str(task).partition(" of ")[0]))
    return "; ".join(f"{number} of each: {', '.join(sorted(names))}" for number, names in tasks.items()) or GAP


def _tokens_text(loaded: LoadedResults) -> str:
    if loaded.frame.empty:
        return GAP
    of_text = loaded.frame[loaded.frame["task"].str.startswith(LOG_PPLX) & (loaded.frame["metric"] == "num_tokens")]
    rows = of_text[["task", "value", "num_documents", "data"]].drop_duplicates().to_dict("records")
    return "; ".join(map(_text_of, rows)) or GAP


def _text_of(row: Mapping[Any, Any]) -> str:
    """`9,920 tokens in 320 blocks of 32 tokens, prose of ...`."""
    blocks = str(row["task"]).removeprefix(f"{LOG_PPLX} of blocks")
    return f"{row['value']:,.0f} tokens in {row['num_documents']} blocks{blocks}, {row['data']}"


def budgets(opened: Opened) -> Table:
    """A row for each algorithm and text: what is trained or solved, from its cells' configurations, and where."""
    rows: dict[tuple[str, ...], dict[str, None]] = {}
    for name, study in opened.items():
        for cell in study.study.cells:
            if cell.data is not None:
                rows.setdefault(_budget(cell), {})[name] = None
    heads = ("Algorithm", "Layers", "Grid", "Text", "Training", "Tokens seen", "Learning rate", "Loss", "Experiments")
    drawn = tuple(tuple(map(Entry, (*row, ", ".join(names)))) for row, names in sorted(rows.items()))
    return Table(heads, (Section("", "", drawn),), (), num_labels=len(heads))


def _budget(cell: Cell) -> tuple[str, ...]:
    assert cell.data is not None
    assert cell.grid is not None
    base, data = cell.base, cell.data
    assert data.num_sequences is not None
    text = f"{data.num_sequences} x {data.sequence_length} tokens, {data.kind}"
    shared = (BASE_NAMES[base.kind], str(cell.scope).replace("_", " + "), all_words(cell), text)
    match base:
        case OmniQuantBase():
            steps = f"{base.num_steps} steps of {base.batch_size} sequences, each block"
            tokens = base.num_steps * base.batch_size * data.sequence_length
            return (*shared, steps, f"{tokens:,}", f"{base.clipping_lr:g} (clipping)", base.loss)
        case QATBase():
            steps = f"{base.num_steps} steps of {base.batch_size} sequences"
            tokens = base.num_steps * base.batch_size * data.sequence_length
            return (*shared, steps, f"{tokens:,}", f"{base.lr:g}", "cross entropy")
        case GPTQBase() | SearchBase():
            return (*shared, "one pass", f"{data.num_sequences * data.sequence_length:,}", "", "")
        case NoBase() | ForeignBase() | MinMaxBase():
            raise AssertionError(f"base={base.kind} reads no text")
        case _:
            assert_never(base)


# --- claims ----------------------------------------------------------------------------------------------------------


def _claims_section(study: StudyDefinition, opened: Opened, shown: Shown) -> Iterator[str]:
    if not study.claims:
        return
    checks = [case.is_check for case in study.cases]
    yield "## Claims"
    sentence = f"{checks.count(False)} cases of {len(study.claims)} claims. {tally(study, opened).capitalize()}."
    besides = (
        f" Besides them there are {checks.count(True)} checks: cases of ours that look for the cause of an outcome."
        if any(checks)
        else ""
    )
    yield f"{sentence}{besides} By claim:"
    yield markdown_rows(glance(study, opened))
    yield from shown.there(f"{ANSWERS}.png")
    yield "Case by case:"
    yield to_markdown(claims_table(study, opened)).rstrip()
    yield "### How a verdict is reached"
    yield "The rules are the same for all claims."
    rules = {
        name: rule_text(rule, unigram=study.unigram, remark=study.remarks.get(name, ""))
        for name, rule in rules_of(case.judge for case in study.cases).items()
    }
    yield "\n".join(f"- *{name}.* {text}" for name, text in rules.items())
    if study.changes:
        yield "The making of the rules, and their changes after results had been seen:"
        yield "\n".join(f"- {change}" for change in study.changes)


# --- experiments -----------------------------------------------------------------------------------------------------


def _legend(parts: Sequence[DocumentPart], opened: Opened) -> Iterator[str]:
    """The notes of all tables, the paper's among them, once; those of single rows stand below their own table."""
    # Each section says the grid of its own rows.
    sentences = {grids.sentence(study.rows) for study in opened.values()}
    notes = [note for study in opened.values() for note in _table_of(study).all_notes if note not in sentences]
    for part in parts:
        papers = [beside(number, opened[part.name]) for number in part.tables if part.name in opened]
        notes += [note for table in papers for note in table.notes if note.startswith(DOUBLE_DAGGER)]
    if any(study.loaded.tasks for study in opened.values()):
        notes.append(CHANCE_NOTE)
    # Without the number of comparisons, which is each experiment's own.
    distinct = dict.fromkeys(re.sub(r" \(\d+\)\.$", ".", note) for note in notes if not SIGN.match(note))
    if distinct:
        yield "\n".join(f"- {note}" for note in distinct)


def _section(folder: StudyFolder, part: DocumentPart, opened: Opened, shown: Shown) -> Iterator[str]:
    yield f"### {part.title}"
    if part.name not in opened:
        yield f"*There is no experiment {folder.name}/{part.name} yet.*"
        return
    study = opened[part.name]
    limit = study.study.setup.readout.limit
    documents = [f"{limit or 'all'} documents of each task"] if study.loaded.tasks else []
    facts = "; ".join([*documents, *filter(None, [grids.shared_text(study.rows)])])
    yield f"`matquant launch experiment={folder.name}/{part.name}`" + (f" ({facts})" if facts else "")
    if study.loaded.frame.empty:
        yield f"*{GAP.capitalize()}.*"
    else:
        yield from _with_row_notes(_table_of(study))
    for number in part.tables:
        yield from _with_row_notes(beside(number, study))
    for name in part.figures:
        yield from shown.there(file_name(part.name, name), f"*Figure {name}: {GAP}.*")


def _with_row_notes(table: Table) -> Iterator[str]:
    """A table and the notes on its rows, whose numbers mean something below it alone."""
    yield markdown_rows(table)
    if of_rows := [note for note in table.all_notes if SIGN.match(note)]:
        yield "\n".join(f"- {note}" for note in of_rows)


def _table_of(study: OpenStudy) -> Table:
    """Every read-out of an experiment."""
    loaded = study.loaded
    return summary_table(study.rows, loaded.tasks, study.comparisons, loaded.metrics, loaded.directions)


def beside(number: int, study: OpenStudy) -> Table:
    """Table `number` of MatQuant, the rows of the study's algorithms, with ours as further columns."""
    noted, marks = with_reference_notes(study.rows, study.comparisons), significant_marks(study.comparisons)
    entries = side_by_side(number, noted, marks, otherwise=measured_otherwise(study.loaded))
    kept = entries["base"].isin([*study.rows["base"].unique(), "none"])
    table = by_model(number, entries[kept].reset_index(drop=True))
    return replace(table, caption=f"MatQuant, {table.caption}")


def figures_of(part: DocumentPart, study: OpenStudy) -> dict[str, Plot]:
    """The figures of a part for which there are results."""
    if study.loaded.frame.empty:
        return {}
    found = {}
    for name in part.figures:
        rows = _rows_of(name, part, study.rows)
        found |= {plot.name: plot for plot in plots(study.study, study.loaded, rows) if plot.name == name}
    return found


def _rows_of(figure: str, part: DocumentPart, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a figure: codes show Baseline and MatQuant alone, Figure 1b one MatQuant checkpoint."""
    if figure == "codes":
        return rows[rows["method"].isin(["Baseline", "MatQuant"]) & (rows["base"] != "minmax")]
    if part.nested is not None and figure.startswith("widths"):
        return rows[(rows["method"] != "MatQuant") | (rows["objective"] == part.nested)]
    return rows


def _gaps(opened: Opened) -> Iterator[str]:
    """The problems and the missing results, at the end; nothing if there are none."""
    # Not those of other protocols: experiments share cells, and each has results of another on more or fewer documents.
    problems = dict.fromkeys(problem for study in opened.values() for problem in study.loaded.problems)
    missing = {name: gap_texts(study.loaded) for name, study in opened.items()}
    if problems:
        yield "## Problems"
        yield "\n".join(f"- {problem}" for problem in problems)
    if any(missing.values()):
        yield "## Not measured yet"
        yield "\n".join(f"- {name}: {len(gaps)} cells or read-outs" for name, gaps in missing.items() if gaps)
