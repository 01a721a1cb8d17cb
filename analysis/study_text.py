"""The document of a study in markdown: what was run, claims with their verdicts, tables and figures, words by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import pandas as pd

from analysis.beside import side_by_side
from analysis.claims import CLAIMS, Claim, find, paper_text
from analysis.contents import gap_texts, provenance_rows
from analysis.drawing import markdown_rows, notes_of, to_markdown
from analysis.gallery import plots
from analysis.headline import FIGURE, headline
from analysis.load import COLUMNS, LoadedResults
from analysis.names import BASE_NAMES, model_name
from analysis.papers import DOUBLE_DAGGER, by_model
from analysis.prose import fill
from analysis.protocols import LEFT_OUT
from analysis.significance import LEVEL
from analysis.summary import CHANCE, task_name
from analysis.tables import significant_marks
from analysis.typeset import Entry, Section, Table
from analysis.verdicts import CHANGES, RULES, Word, rule_text
from evaluation.results import LOG_PPLX

if TYPE_CHECKING:
    from analysis.gallery import Plot
    from analysis.show import OpenStudy
    from matquant.config.cell import Cell

Opened = Mapping[str, "OpenStudy"]

GAP = "not measured yet"
CHANCE_NOTE = f"Who guesses has a Task Avg of {100 * sum(CHANCE.values()) / len(CHANCE):.1f}."
WORDS: tuple[Word, ...] = get_args(Word)
HEADS = ("Claim", "Source", "Case", "The paper, Task Avg", "Measured here", "Verdict")


@dataclass(frozen=True)
class Part:
    """An experiment of the study, `conf/experiment/study/NAME.yaml`, as a section of the document.

    `tables`: of MatQuant, to stand beside ours.  `figures`: of `gallery`.  `nested`: the objective of the checkpoint
    that Figure 1b follows, where the experiment has several of that name.
    """

    name: str
    title: str
    tables: tuple[int, ...] = ()
    figures: tuple[str, ...] = ()
    nested: str | None = None


@dataclass(frozen=True)
class HandWritten:
    """What people write: markdown with placeholders (`prose`)."""

    surprises: str
    deviations: str
    headline: str


@dataclass(frozen=True)
class Document:
    """The markdown, its figures by file name, and what stands of it in README.md."""

    text: str
    figures: Mapping[str, Plot]
    headline: str


def document(parts: Sequence[Part], opened: Opened, words: HandWritten, folder: str) -> Document:
    """`opened`: the experiments of `parts` that there are; `folder`: of the figures, as the markdown refers to it."""
    drawn = {part.name: figures_of(part, opened[part.name]) for part in parts if part.name in opened}
    blocks = [
        "# The study of SmolLM2-135M",
        "<!-- Written by `python -m analysis.study`; edit surprises.md and deviations.md beside it, not this file. -->",
        *_introduction(parts, opened),
        *_claims_section(opened),
        "## Experiments",
        *_legend(parts, opened),
        *(block for part in parts for block in _section(part, opened.get(part.name), drawn.get(part.name, {}), folder)),
        "## What surprised us",
        fill(words.surprises.strip(), opened),
        "## Deviations from the papers' settings",
        fill(words.deviations.strip(), opened),
        *_gaps(opened),
    ]
    figures = {file_name(part, name): plot for part, plots_ in drawn.items() for name, plot in plots_.items()}
    image = f"docs/{folder}/{file_name(*FIGURE)}"
    return Document("\n\n".join(blocks) + "\n", figures, headline(opened, words.headline, image))


def file_name(part: str, figure: str) -> str:
    return f"{part}_{figure}.png"


# --- what was run ----------------------------------------------------------------------------------------------------


def _introduction(parts: Sequence[Part], opened: Opened) -> Iterator[str]:
    loaded = together(opened)
    cells = {cell.id: cell for study in opened.values() for cell in study.study.cells}
    models = ", ".join(dict.fromkeys(model_name(cell.model.name) for cell in cells.values())) or "no model"
    measured = len(loaded.expected) - len(loaded.missing)
    yield (
        f"What the claims of MatQuant (arXiv:2502.06786v3) and MatGPTQ (arXiv:2602.03537) come to on {models}, at a "
        "scale that two cores reach. What stands in a table, in a figure or in the verdict on a claim is taken from "
        "result files by code; a claim that fails is a finding and stands here as one; what nobody has measured yet is "
        "a gap."
    )
    yield "\n".join(
        [
            "```",
            "make study           # measures what is missing: " + ", ".join(part.name for part in parts),
            "make study-report    # draws this document and its notebook again, from results alone",
            "```",
        ]
    )
    facts = [
        ("results", f"{measured} of {len(loaded.expected)} measured, of {len(cells)} cells"),
        ("documents", _documents_text(loaded)),
        ("log perplexity", _tokens_text(loaded)),
        *provenance_rows(loaded),
    ]
    yield "\n".join(f"- {name}: {text}" for name, text in facts)
    yield "What each algorithm is given, as configured:"
    yield markdown_rows(budgets(opened))


def together(opened: Opened) -> LoadedResults:
    """The results of all experiments, each once: they share cells.  A task is named with its number of documents."""
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
    """`boolq of 300`: the same task on more documents is another."""
    limit = study.study.setup.readout.limit or "all"
    return frame.assign(task=frame["task"].where(frame["task"] == LOG_PPLX, frame["task"] + f" of {limit}"))


def _documents_text(loaded: LoadedResults) -> str:
    """`50 of each: ARC-c, ARC-e`, tasks with equally many documents together."""
    if loaded.frame.empty:
        return GAP
    tasks: dict[int, list[str]] = {}
    for task, number in loaded.frame.groupby("task", sort=False)["num_documents"].max().items():
        if task != LOG_PPLX:
            tasks.setdefault(int(number), []).append(task_name(str(task).partition(" of ")[0]))
    return "; ".join(f"{number} of each: {', '.join(sorted(names))}" for number, names in tasks.items()) or GAP


def _tokens_text(loaded: LoadedResults) -> str:
    if loaded.frame.empty:
        return GAP
    of_text = loaded.frame[loaded.frame["task"] == LOG_PPLX]
    tokens = of_text.loc[of_text["metric"] == "num_tokens", ["value", "num_documents", "data"]].drop_duplicates()
    rows = tokens.to_dict("records")
    texts = [f"{row['value']:,.0f} tokens in {row['num_documents']} blocks, {row['data']}" for row in rows]
    return "; ".join(texts) or GAP


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
    text = f"{data.num_sequences} x {data.sequence_length} tokens, {data.kind}"
    grid = f"groups of {cell.grid.group_size}" if cell.grid.group_size else "per channel"
    shared = (BASE_NAMES[base.kind], str(cell.scope).replace("_", " + "), grid, text)
    match base.kind:
        case "omniquant":
            steps = f"{base.num_steps} steps of {base.batch_size} sequences, each block"
            tokens = base.num_steps * base.batch_size * data.sequence_length
            return (*shared, steps, f"{tokens:,}", f"{base.clipping_lr:g} (clipping)", base.loss)
        case "qat":
            steps = f"{base.num_steps} steps of {base.batch_size} sequences"
            tokens = base.num_steps * base.batch_size * data.sequence_length
            return (*shared, steps, f"{tokens:,}", f"{base.lr:g}", "cross entropy")
        case _:
            return (*shared, "one pass", f"{data.num_sequences * data.sequence_length:,}", "", "")


# --- claims ----------------------------------------------------------------------------------------------------------


def glance(opened: Opened, claims: Sequence[Claim] = CLAIMS) -> Table:
    """A row for each claim: how many of its cases came to which verdict, checks not among them."""
    heads = ("Claim", *(word.capitalize() for word in WORDS), "Checks")
    rows = []
    for claim in claims:
        found = [find(case, opened).verdict.word for case in claim.cases if not case.is_check]
        checks = sum(case.is_check for case in claim.cases)
        texts = (claim.words, *(str(found.count(word) or "") for word in WORDS), str(checks or ""))
        rows.append(tuple(map(Entry, texts)))
    return Table(heads, (Section("", "", tuple(rows)),), (), num_labels=1)


def claims_table(opened: Opened, claims: Sequence[Claim] = CLAIMS) -> Table:
    """A row for each case of each claim: what the paper prints, what we measured, and the verdict."""
    sections = []
    for claim in claims:
        rows = []
        for place, case in enumerate(claim.cases):
            found = find(case, opened)
            words = (claim.words, claim.source) if place == 0 else ("", "")
            where = f"{case.where} ({found.experiment})" if found.experiment else case.where
            texts = (*words, where, paper_text(case), found.measured, str(found.verdict))
            rows.append(tuple(map(Entry, texts)))
        sections.append(Section("", claim.words, tuple(rows)))
    return Table(HEADS, tuple(sections), CLAIM_NOTES, num_labels=len(HEADS))


CLAIM_NOTES = (
    "Differences are ours minus the other's on the same documents: nats per token of log perplexity (less is better) "
    "and percent points of Task Avg (more is better), ± standard error, with the p-value of a paired bootstrap.",
    "In square brackets: the 95 % interval.",
    f"p-values are not corrected for their number: of twenty differences that are none, one has p < {LEVEL}.",
    "By training alone: so far two trainings that differ in nothing but their seed, which draws their text and "
    "batches, may lie apart, 19 times in 20. Where nothing is said of it both read-outs are of one checkpoint, the "
    "algorithm was trained with one seed (GPTQ) and nobody knows, or the rule does not ask.",
    "In brackets after a case: the experiment below that it is read from.",
    "A check is a case of ours, added when the claim's own had been seen: it asks what their outcome is owed to.",
    "The paper: the same difference of Task Avg as its table prints it, model by model; – where it prints a dash. "
    "Empty where it prints none: MatGPTQ's accuracies and the points of figures are not among the numbers we have.",
)


def tally(opened: Opened, claims: Sequence[Claim] = CLAIMS) -> str:
    """`holds: 3; does not hold: 1`: how many cases came to which verdict, checks not among them."""
    found = [find(case, opened).verdict.word for claim in claims for case in claim.cases if not case.is_check]
    return "; ".join(f"{word}: {found.count(word)}" for word in WORDS if word in found)


def _claims_section(opened: Opened) -> Iterator[str]:
    checks = [case.is_check for claim in CLAIMS for case in claim.cases]
    yield "## Claims"
    yield (
        f"{checks.count(False)} cases of {len(CLAIMS)} claims. {tally(opened).capitalize()}. Besides them there are "
        f"{checks.count(True)} checks, cases of ours that ask what an outcome is owed to. By claim:"
    )
    yield markdown_rows(glance(opened))
    yield "Case by case:"
    yield to_markdown(claims_table(opened)).rstrip()
    yield "### How a verdict is reached"
    yield "The rules are the same for all claims."
    yield "\n".join(f"- *{name}.* {rule_text(rule)}" for name, rule in RULES.items())
    yield "When they were made, and what was altered after results had been seen:"
    yield "\n".join(f"- {change}" for change in CHANGES)


# --- experiments -----------------------------------------------------------------------------------------------------


def _legend(parts: Sequence[Part], opened: Opened) -> Iterator[str]:
    """The notes of all tables, the paper's among them, once."""
    notes = [note for study in opened.values() for note in notes_of(study.table().table)]
    for part in parts:
        papers = [beside(number, opened[part.name]) for number in part.tables if part.name in opened]
        notes += [note for table in papers for note in table.notes if note.startswith(DOUBLE_DAGGER)]
    notes.append(CHANCE_NOTE)
    # Without the number of comparisons, which is each experiment's own.
    distinct = dict.fromkeys(re.sub(r" \(\d+\)\.$", ".", note) for note in notes)
    if distinct:
        yield "\n".join(f"- {note}" for note in distinct)


def _section(part: Part, study: OpenStudy | None, figures: Mapping[str, Plot], folder: str) -> Iterator[str]:
    yield f"### {part.title}"
    if study is None:
        yield f"*There is no conf/experiment/study/{part.name}.yaml yet.*"
        return
    limit = study.study.setup.readout.limit
    yield f"`python -m slurm.launch experiment=study/{part.name}` ({limit or 'all'} documents of each task)"
    yield markdown_rows(study.table().table)
    for number in part.tables:
        yield markdown_rows(beside(number, study))
    for name in part.figures:
        if name in figures:
            plot = figures[name]
            yield f"![{plot.title}]({folder}/{file_name(part.name, name)})"
            yield f"*{plot.title}.{f' {plot.note}' if plot.note else ''}*"
        else:
            yield f"*Figure {name}: {GAP}.*"


def beside(number: int, study: OpenStudy) -> Table:
    """Table `number` of MatQuant, the rows of the study's algorithms, with ours as further columns."""
    entries = side_by_side(number, study.rows, significant_marks(study.comparisons))
    kept = entries["base"].isin([*study.rows["base"].unique(), "none"])
    table = by_model(number, entries[kept].reset_index(drop=True))
    return replace(table, caption=f"MatQuant, {table.caption}")


def figures_of(part: Part, study: OpenStudy) -> dict[str, Plot]:
    """Those of the part's figures that its results make up."""
    if study.loaded.frame.empty:
        return {}
    found = {}
    for name in part.figures:
        rows = _rows_of(name, part, study.rows)
        found |= {plot.name: plot for plot in plots(study.study, study.loaded, rows) if plot.name == name}
    return found


def _rows_of(figure: str, part: Part, rows: pd.DataFrame) -> pd.DataFrame:
    """Of the codes Baseline and MatQuant alone; at the widths one checkpoint of each name."""
    if figure == "codes":
        return rows[rows["method"].isin(["Baseline", "MatQuant"]) & (rows["base"] != "minmax")]
    if part.nested is not None and figure.startswith("widths"):
        return rows[(rows["method"] != "MatQuant") | (rows["objective"] == part.nested)]
    return rows


def _gaps(opened: Opened) -> Iterator[str]:
    """What is missing and what is wrong, at the end; nothing where there is neither."""
    # Experiments share cells, and each leaves out what another one has measured on more documents, or fewer.
    problems = dict.fromkeys(
        problem for study in opened.values() for problem in study.loaded.problems if LEFT_OUT not in problem
    )
    missing = {name: gap_texts(study.loaded) for name, study in opened.items()}
    if problems:
        yield "## Problems"
        yield "\n".join(f"- {problem}" for problem in problems)
    if any(missing.values()):
        yield "## Not measured yet"
        yield "\n".join(f"- {name}: {len(gaps)} cells or read-outs" for name, gaps in missing.items() if gaps)
