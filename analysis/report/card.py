"""The model card of a nested folder, README.md: how it is read, what every width measured, and how it was made.

    README.md      for people, and for a hub: front matter, five lines of Python, the table, the recipe, the versions
    pareto.png     quality against bits, if there are two results to draw

Numbers come from the results folder of the export, and are those of the codes in the folder alone: they are compared by
checksum.  A card never costs an export: what cannot be read is one sentence on it, and one on stderr.  It says nothing
of the machine that it was written on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from analysis.frame.names import base_name, model_name, objective_text
from analysis.report.card_words import content_name, model_words, protocol_lines, settings_words, without_folders
from analysis.report.files import write_text
from matquant.codes.layouts import slices_of
from matquant.config.grid_words import all_words
from matquant.errors import UserError

if TYPE_CHECKING:
    from analysis.report.card_numbers import CardNumbers, Exported
    from analysis.tables.summary_table import Column
    from matquant.config.cell import Cell
    from matquant.config.setup import Setup
    from matquant.notation import Plan

PICTURE = "pareto.png"
PAPER = "[arXiv:2502.06786](https://arxiv.org/abs/2502.06786)"
FIVE_LINES = """```python
import matquant                                    # pip install matquant
model, tokenizer = matquant.load("DIR", "int4")    # this folder, or its repository on the hub
inputs = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))
matquant.reread(model, "int2")                     # another width, in place, without loading again
```"""
MORE = "Any width can be read, and mixed ones such as `pyramid@3`; `packed=True` keeps weights at that width in memory."
SCOPES = {"ffn": "feed-forward", "ffn_attention": "feed-forward and attention"}


def write_card(cell: Cell, setup: Setup, folder: Path) -> None:
    """Writes the card of a cell beside its codes; `folder` holds the nested folder, whole but for its card."""
    facts = json.loads((folder / "nested.json").read_text(encoding="utf-8"))
    numbers, problems = _numbers(cell, setup, facts)
    if numbers is not None and _draw(numbers, folder / PICTURE):
        picture = f"![Quality against bits]({PICTURE})\n\n"
    else:
        picture = ""
    problems = [without_folders(problem, setup.paths.results) for problem in problems]
    for problem in problems:
        tqdm.write(f"model card: {problem}", file=sys.stderr)
    parts = [
        _front_matter(cell),
        f"# {model_name(cell.model.name)} at every width, out of one checkpoint",
        _what_it_is(cell, facts),
        FIVE_LINES,
        MORE,
        "## Every width",
        picture + _measured(numbers, Bytes(facts, folder)),
        *(["Problems:\n\n" + "\n".join(f"- {problem}." for problem in problems)] if problems else []),
        "## How it was made",
        "\n".join(f"- {line}" for line in _recipe(cell, facts)),
        "## Versions",
        "\n".join(f"- {line}" for line in _versions(facts, numbers)),
    ]
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def _numbers(cell: Cell, setup: Setup, facts: Mapping[str, Any]) -> tuple[CardNumbers | None, Sequence[str]]:
    """The numbers, and what is wrong with them; None if the results cannot be read, or there are none."""
    from analysis.report.card_numbers import Exported, card_numbers
    from evaluation.results.store import ResultStore

    content = facts.get("sources", {}).get("model")
    exported: Exported = Exported(cell, facts["checksum"], content, facts.get("plans") or {})
    try:
        found = card_numbers(exported, setup.readout, ResultStore(setup.paths.results))
    except (UserError, OSError, ValueError) as error:
        return None, [f"results cannot be read: {str(error).splitlines()[0]}"]
    return found, found.problems


# --- words -----------------------------------------------------------------------------------------------------------


def _front_matter(cell: Cell) -> str:
    """The facts that a hub reads; no licence, since that of the model is not known here."""
    lines = [
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: {json.dumps(['matquant', 'matryoshka-quantization', cell.base.kind])}",
    ]
    if cell.model.kind == "hub":
        lines += [f"base_model: {json.dumps(cell.model.repo)}", "base_model_relation: quantized"]
    return "\n".join(["---", *lines, "---"])


def _what_it_is(cell: Cell, facts: Mapping[str, Any]) -> str:
    """Two sentences."""
    assert cell.objective is not None
    objective, algorithm = cell.objective, base_name(cell)
    parent, trained = f"int{objective.parent_bits}", [str(part) for part in sorted(objective.trained, reverse=True)]
    if not objective.is_nested:
        made = f"by {algorithm} at {parent}, of which narrower widths are slices"
    else:
        made = f"by {algorithm} for {', '.join(trained)}{' at once' if len(trained) > 1 else ' out of ' + parent}"
    part = "a part of the " if cell.partial_scope else "the "
    return (
        f"{model_words(cell.model)}, with {part}{SCOPES[cell.scope or 'ffn']} weights "
        f"({len(facts['layers'])} matrices) quantized {made} (Matryoshka Quantization, {PAPER}), "
        "and everything else as it was published. "
        f"The {parent} codes are stored as bit planes, most significant first: a read-out at r bits reads the first "
        "r + 1 planes and not a byte more."
    )


def _recipe(cell: Cell, facts: Mapping[str, Any]) -> Iterator[str]:
    assert cell.objective is not None
    yield f"Cell `{facts['cell_id']}`, checksum of its codes `{facts['checksum'][:12]}`."
    yield f"Algorithm: {base_name(cell)}{settings_words(cell.base)}; `nested.json` has every setting."
    yield f"Objective: `{objective_text(cell.objective)}`, in int{cell.objective.parent_bits} codes."
    yield f"Grid: {all_words(cell)}."
    if cell.data is not None:
        amount = f"{cell.data.num_sequences} sequences of {cell.data.sequence_length} tokens"
        text = facts.get("sources", {}).get("text", cell.data.kind)
        yield f"Calibration text: {amount} of {content_name(text)}."
    yield f"Seed: {cell.seed}."
    if model := facts.get("sources", {}).get("model"):
        yield f"Quantized model: `{content_name(model)}`."


def _versions(facts: Mapping[str, Any], numbers: CardNumbers | None) -> Iterator[str]:
    yield f"Written by matquant at commit {_commit(facts)}: {_listed(facts.get('versions', {}))}."
    if numbers is None or numbers.loaded.frame.empty:
        return
    frame = numbers.loaded.frame.fillna({"device": "unknown"})
    for (commit, device, versions), _ in frame.groupby(["commit", "device", "versions"], sort=False):
        yield f"Measured at commit {commit} on {device}: {versions or 'unknown versions'}."


def _commit(facts: Mapping[str, Any]) -> str:
    return str(facts.get("commit", "unknown"))[:12] + ("+edited" if facts.get("dirty") else "")


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "unknown versions"


# --- the table and the figure ----------------------------------------------------------------------------------------


class Bytes:
    """The bytes of a nested folder that a plan reads."""

    def __init__(self, facts: Mapping[str, Any], folder: Path) -> None:
        self.layers = facts["layers"]
        self.grids = facts["files"]["nested-grids.safetensors"]["bytes"]
        self.rest = sum(file.stat().st_size for file in folder.glob("nested-unquantized*.safetensors"))

    def planes(self, plan: Plan) -> int:
        """Those of planes: r + 1 of them for int-r, or all of the parent (`matquant.codes.planes`)."""
        total = 0
        for name, part in slices_of(plan, self.layers).items():
            layer = self.layers[name]
            rows, columns = layer["shape"]
            total += min(part.bits + 1, layer["parent_bits"]) * rows * -(-columns // 8)
        return total

    def all(self, plan: Plan) -> int:
        return self.planes(plan) + self.grids + self.rest

    def note(self) -> str:
        return (
            f"Reads: the megabytes of this folder that a width reads: its planes, {self.grids / 1e6:.4g} of scales and "
            f"zeros, and {self.rest / 1e6:.4g} of weights that are not quantized."
        )


def _measured(numbers: CardNumbers | None, sizes: Bytes) -> str:
    """The table of all widths with what has to be said of it."""
    if numbers is None:
        return "There are no results to show."
    from analysis.tables.drawing import markdown_rows, without
    from analysis.tables.summary_table import BITS_NOTE, GRID, MISSING_NOTE, OVERFLOW, summary_table
    from analysis.tables.typeset import MISSING

    loaded = numbers.loaded
    more = _size_columns(numbers, sizes)
    table = summary_table(numbers.rows, loaded.tasks, metrics=loaded.metrics, directions=loaded.directions, more=more)
    rows = [row for section in table.sections for row in section.rows]
    gaps = {head for number, head in enumerate(table.heads) if all(row[number].missing for row in rows)}
    table = without(table, {GRID, OVERFLOW, *gaps})
    drawn = markdown_rows(table)
    replaced = {BITS_NOTE: BITS, **({} if f"| {MISSING} |" in drawn else {MISSING_NOTE: ""})}
    notes = [replaced.get(note, note) for note in table.all_notes] if len(loaded.frame) else []
    notes = [sizes.note(), *filter(None, notes), *protocol_lines(numbers.protocols)]
    nothing = [] if len(loaded.frame) else [NO_RESULTS, ""]
    return "\n".join([*nothing, drawn, "", *(f"- {note}" for note in notes)])


BITS = (
    "Bits: the paper's count, per quantized weight.  Stored: everything, in bits per parameter of the whole model, "
    "unquantized ones in 16 bits."
)
NO_RESULTS = (
    "Nothing was measured on these codes yet: `matquant run` with the overrides of the cell measures them, and a "
    "folder exported after that has the numbers on its card."
)


def _size_columns(numbers: CardNumbers, sizes: Bytes) -> Sequence[Column]:
    from analysis.tables.summary_table import Column

    def column(head: str, size: Callable[[Plan], int]) -> Column:
        def text(row: Mapping[Any, Any]) -> str:
            is_own = row["cell_id"] == numbers.cell_id
            return f"{size(numbers.reads[row['plan']]) / 1e6:.4g}" if is_own else ""

        return Column(head, text)

    return [column("Planes, MB", sizes.planes), column("Reads, MB", sizes.all)]


def _draw(numbers: CardNumbers, path: Path) -> bool:
    """Draws quality against bits, if there is something to compare."""
    from evaluation.results.metrics import LOG_PPLX, TASK_AVG

    rows = numbers.rows
    measured = rows[rows["base"] != "none"].dropna(subset=[TASK_AVG, LOG_PPLX], how="all")
    if len(measured) < 2:
        return False
    from analysis.figures.pareto import PANELS, pareto_figure
    from analysis.figures.style import save_figure

    panels = [panel for panel in PANELS if measured[panel.value].notna().any()]
    save_figure(pareto_figure(rows, numbers.loaded.tasks, panels=panels), path, "png")
    return True
