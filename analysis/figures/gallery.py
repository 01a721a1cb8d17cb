"""The figures of a study, each drawn at the width that is asked for, with the words that explain it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from analysis.figures.curves import curves_figure, read_log, terms_of
from analysis.figures.every_width import of_one_checkpoint, of_one_grid, points, printed_points, widths_figure
from analysis.figures.histograms import MAX_CELLS, histogram_figure
from analysis.figures.legends import short_names
from analysis.figures.mixed_widths import mixnmatch_figure
from analysis.figures.pareto import DIVERGENCE_PANELS, PANELS, SIZES, method_styles, panel_of, pareto_figure, sizes
from analysis.figures.plans import plan_figure
from analysis.figures.style import COLUMN, TEXT
from analysis.frame import grids
from analysis.frame.axes import USUAL_AXES
from analysis.frame.code_counts import codes_of, num_parameters
from analysis.frame.names import model_name
from analysis.frame.otherwise import measured_otherwise
from evaluation.results.metrics import KL, LOG_PPLX, TASK_AVG
from matquant.runs.folder import RunDir

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from analysis.figures.style import Style
    from analysis.frame.code_counts import Codes
    from analysis.frame.load import LoadedResults
    from evaluation.results.store import ResultStore
    from matquant.config.study import Study
    from matquant.notation import Plan

BESIDE = "Markers that would hide each other stand side by side; an arrow has the value of one beyond the edge."
MAX_PANELS = 6
"""The most panels of curves or plans in a figure; notebooks show the others."""


@dataclass(frozen=True)
class Plot:
    """A figure of a study: its file's stem, a title, a sentence for what is seen, and how it is drawn at a width."""

    name: str
    title: str
    note: str
    draw: Callable[[float], Figure]
    widths: tuple[float, ...] = (TEXT, COLUMN)


def plots(study: Study, loaded: LoadedResults, rows: pd.DataFrame, measures: Sequence[str] = USUAL_AXES) -> list[Plot]:
    """The figures that a study's results make up; Pareto plots first, and those without results as an empty frame.

    `measures`: what Pareto plots have on their vertical axes, by column.

    The note of each says the grid that all rows share; where rows differ in it, their labels do.
    """
    codes = codes_of(loaded.store, [cell.id for cell in study.cells])
    grid = grids.sentence(rows)
    styles = method_styles(rows)
    key = short_names(styles).key
    found = [
        *_pareto(loaded, rows, codes, measures, styles, key),
        *_widths(rows, measured_otherwise(loaded)),
        *_mixed(study, loaded.store, rows, codes, styles, key),
        *_histograms(rows, codes, styles, key),
        *_curves(study, loaded.store, rows, styles, key),
    ]
    return [replace(plot, note=" ".join(filter(None, (plot.note.strip(), grid)))) for plot in found]


def _pareto(
    loaded: LoadedResults,
    rows: pd.DataFrame,
    codes: dict[str, Codes],
    measures: Sequence[str],
    styles: dict[str, Style],
    key: str,
) -> Iterator[Plot]:
    parameters = num_parameters(rows, codes)
    usual = {panel.value: panel for panel in PANELS}
    panels = [usual.get(name) or panel_of(name) for name in measures]
    if not loaded.tasks:  # log perplexity alone was asked for
        panels = [panel for panel in panels if panel.value != TASK_AVG] or panels
    for size, label in SIZES.items():
        if size == "effective" or sizes(rows, size, parameters)[rows["base"] != "none"].notna().any():
            yield Plot(
                "pareto" if size == "effective" else f"pareto_{size}",
                label,
                "Bars: one standard error over documents. The pale stairs pass through the read-outs that no other "
                f"one beats at the same or a smaller size; all others are faint. {BESIDE} {key}".strip(),
                lambda width, size=size: pareto_figure(
                    rows, loaded.tasks, size=size, num_parameters=parameters, width=width, panels=panels, styles=styles
                ),
            )
    if rows[KL].notna().any() and KL not in measures:
        yield Plot(
            "pareto_divergence",
            "Distance from the unquantized model",
            f"Bars: one standard error over blocks of text. {BESIDE} {key}".strip(),
            lambda width: pareto_figure(rows, loaded.tasks, width=width, panels=DIVERGENCE_PANELS, styles=styles),
        )


def _widths(rows: pd.DataFrame, otherwise: Mapping[str, str]) -> Iterator[Plot]:
    """Figure 1b, for the algorithm that has a nested checkpoint; without the paper's lines where ours are otherwise."""
    nested = rows[rows["method"].str.startswith("MatQuant")]
    base = nested["base"].iloc[0] if len(nested) else None
    several = bool(grids.differing(rows))
    rows = of_one_grid(rows)
    labels = list(rows.loc[(rows["method"] == "MatQuant") & (rows["base"] == base), "label"].unique())
    rows = of_one_checkpoint(rows)
    chosen = f" Of several grids this is one: {grids.text_of(nested.iloc[0].to_dict())}." if several and base else ""
    if len(labels) > 1:
        chosen += f" Of {len(labels)} checkpoints this is one: {labels[0]}."
    printed = base is not None and any(
        len(printed_points(str(model), base, LOG_PPLX)) for model in rows["model"].unique()
    )
    for value, name in ((TASK_AVG, "widths"), (LOG_PPLX, "widths_log_pplx")):
        left = (
            f" The paper's points are left out: ours are {otherwise[value]}." if printed and value in otherwise else ""
        )
        if base is None or points(rows, base, value).query("line != 'full'")["bits"].nunique() < 3:
            continue
        yield Plot(
            name,
            f"Figure 1b: {'Task Avg' if value == TASK_AVG else 'log perplexity'} at every width",
            "Hollow: interpolated, read at a width that was not trained. A line breaks where a width is not measured. "
            + BESIDE
            + chosen
            + left,
            lambda _, value=value: widths_figure(rows, base=base, value=value, beside=value not in otherwise),
            (COLUMN,),
        )


def _mixed(
    study: Study,
    store: ResultStore | None,
    rows: pd.DataFrame,
    codes: dict[str, Codes],
    styles: dict[str, Style],
    key: str,
) -> Iterator[Plot]:
    mixed = rows[rows["method"].str.startswith(("Mix'n'Match", "Searched"))]
    if mixed.empty:
        return
    panels = [panel for panel in PANELS if study.setup.readout.tasks or panel.value != TASK_AVG]
    if mixed["method"].str.startswith("Mix'n'Match").any():
        yield Plot(
            "mixnmatch",
            "Figures 2 and 3: Mix'n'Match",
            f"Layers of 2, 4 and 8 bits out of one checkpoint, beside its uniform widths. {BESIDE} {key}".strip(),
            lambda width: mixnmatch_figure(rows, width=width, styles=styles, panels=panels),
        )
    cell = next((cell for cell in study.cells if cell.id in codes and cell.id in _ids(mixed)), None)
    if cell is not None and store is not None:
        plans: dict[str, Plan] = {plan.label: store.plan(cell.id, plan) for plan in study.setup.readout.plans_of(cell)}
        # The widths of a searched plan are known once it has been searched for.
        known = {label for label, plan in plans.items() if plan.strategy is None or plan.layers is not None}
        shown = {label: plans[label] for label in dict.fromkeys(mixed["plan"]) if label in known}
        layers = list(codes[cell.id].num_weights)
        first = dict(list(shown.items())[:MAX_PANELS])
        yield Plot(
            "plans", "The width that each layer is read at", "", lambda width: plan_figure(first, layers, width=width)
        )


def _ids(rows: pd.DataFrame) -> set[str]:
    """The cells of some rows; a row of several seeds has several."""
    return {cell_id for ids in rows["cell_id"] for cell_id in ids.split(", ")}


def _histograms(rows: pd.DataFrame, codes: dict[str, Codes], styles: dict[str, Style], key: str) -> Iterator[Plot]:
    """Figures 1c and 4: at the parent's width, the Baseline first."""
    parents = rows[rows["plan"] == "int8"]
    # A row of several seeds has their ids; its codes are those of the first that has any.
    first: Any = [next((one for one in ids.split(", ") if one in codes), None) for ids in parents["cell_id"]]
    several = any(", " in ids for ids in parents["cell_id"])
    parents = parents.assign(cell_id=first).dropna(subset="cell_id")
    panels = {
        model_name(str(model)): {
            label: codes[cell_id]
            for label, cell_id in list(zip(of_model["label"], of_model["cell_id"], strict=True))[:MAX_CELLS]
        }
        for model, of_model in parents.groupby("model", sort=False)
    }
    if panels:
        yield Plot(
            "codes",
            "Figures 1c and 4: what training does to the codes",
            "Left: the share of every int8 code; grey lines are the borders of the int2 buckets. Right: the buckets. "
            + ("Of several seeds: the first. " if several else "")
            + key,
            lambda width: histogram_figure(panels, width=width, styles=styles),
        )


def _curves(
    study: Study, store: ResultStore | None, rows: pd.DataFrame, styles: dict[str, Style], key: str
) -> Iterator[Plot]:
    labels: dict[str, str] = {}
    for cell_ids, label in zip(rows["cell_id"], rows["label"], strict=True):
        for cell_id in cell_ids.split(", "):
            labels.setdefault(
                cell_id, label
            )  # of its widest read-out: an int8 parent is a Baseline before it is sliced
    logs = {cell.id: read_log(_log_of(cell.id, study, store)) for cell in study.cells}
    shown = {
        f"{model_name(cell.model.name)}, {_name(labels.get(cell.id, cell.id), styles)}": logs[cell.id]
        for cell in study.cells
        if terms_of(logs[cell.id])
    }
    if shown:
        first = dict(list(shown.items())[:MAX_PANELS])
        yield Plot(
            "curves",
            "Training: the loss of every slice",
            f"Block by block: a line goes through the steps of a block, a marker stands at its last one. {key}".strip(),
            lambda width: curves_figure(first, width=width),
        )


def _name(label: str, styles: dict[str, Style]) -> str:
    return styles[label].name if label in styles else label


def _log_of(cell_id: str, study: Study, store: ResultStore | None) -> str:
    """The training log that came with the results of a cell, or that of its run; empty without one."""
    try:
        if store is not None:
            return store.text(cell_id, "train.jsonl")
    except FileNotFoundError:
        pass
    try:
        return RunDir(study.setup.paths.runs, cell_id).log.read_text(encoding="utf-8")
    except OSError:
        return ""
