"""A study as a Weights & Biases Report: Pareto panel, a run set for each method, curves, tables and words.

The runs are those that `matquant run` tracked, one for each cell; nothing is uploaded but the report itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.figures.pareto import method_styles
from analysis.figures.style import QUIET
from analysis.frame.best import with_best
from analysis.frame.measures import with_flips
from analysis.frame.otherwise import measured_otherwise
from analysis.frame.significance import against_reference
from analysis.frame.summary import summary
from analysis.page.contents import gap_texts, headlines, measured_text, provenance_rows
from analysis.report.building import load, paper_number
from analysis.report.files import write_text
from analysis.tables.beside import side_by_side
from analysis.tables.drawing import to_markdown
from analysis.tables.papers import kind_of
from analysis.tables.summary_table import significant_marks, summary_table, with_reference_notes
from evaluation.results.metrics import KL, LOG_PPLX, MEASURES, SAME_TOP, higher_is_better, is_metric
from evaluation.results.readouts import READOUT_AVG, TUNING
from matquant.command.parsing import parse
from matquant.config.study import load_study
from matquant.errors import UserError
from matquant.runs.files import require_writable
from matquant.runs.tracked.labels import EFFECTIVE_BITS, READOUT
from matquant.runs.tracked.limits import one_line
from matquant.runs.tracked.wandb_mode import wandb_mode
from matquant.runs.wandb_run import run_id, unreachable

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Report

    from analysis.frame.load import LoadedResults
    from matquant.config.study import Study

FILE = "wandb_report.json"
TRAINED_TERMS = ("int8", "int6", "int4", "int3", "int2")
MADE_UP = {"id", "__id__"}
"""Keys whose values the library draws at random; left out of the file, which is then the same each time."""


def build(study: Study, loaded: LoadedResults, *, entity: str | None = None) -> Report:
    """The report as the library's own blocks; with an `entity`, run sets name its project, which is asked from W&B."""
    import wandb_workspaces.reports.v2.interface as wr

    rows = with_best(with_flips(summary(loaded), loaded), loaded)
    comparisons = against_reference(rows, loaded)
    project = study.setup.tracking.project
    place: dict[str, Any] = {"entity": entity, "project": project} if entity is not None else {}
    styles = method_styles(rows)
    runsets = []
    for label, ids in run_sets(rows).items():
        runs = [run_id(id_) for id_ in ids]
        name, colour = (styles[label].name, styles[label].colour) if label in styles else (label, QUIET)
        settings = {run: wr.RunSettings(color=colour) for run in runs}
        wanted = f'Metric("ID") in {json.dumps(runs)}'
        runsets.append(wr.Runset(name=name, filters=wanted, run_settings=settings, **place))
    table = summary_table(rows, loaded.tasks, comparisons, loaded.metrics, loaded.directions)
    tables = [("Results", to_markdown(table))]
    if (number := paper_number(study.name)) is not None:
        noted, marks = with_reference_notes(rows, comparisons), significant_marks(comparisons)
        entries = side_by_side(number, noted, marks, otherwise=measured_otherwise(loaded))
        table = kind_of(entries)(number, entries)
        tables.insert(0, (table.caption, to_markdown(table)))
    others: list[Any]
    first, *others = [sentence for of_model in headlines(rows) for sentence in of_model]
    blocks: list[Any] = [
        wr.P(first),
        *([wr.UnorderedList([*others])] if others else []),
        wr.P(measured_text(loaded)),
        wr.H2("Quality against effective bits"),
        wr.PanelGrid(runsets=runsets, panels=_pareto_panels(_titles(loaded, study))),
        *(block for title, text in tables for block in (wr.H2(title), wr.MarkdownBlock(text))),
        wr.H2("Training, slice by slice"),
        wr.PanelGrid(runsets=runsets, panels=_curve_panels()),
        wr.H2("Provenance"),
        wr.UnorderedList([f"{name}: {value}" for name, value in provenance_rows(loaded)]),
        wr.H2("Problems and gaps"),
        wr.UnorderedList([*loaded.problems, *loaded.others, *gap_texts(loaded)] or ["None."]),
    ]
    title, description = f"MatQuant: {study.name}", "Matryoshka quantization, one checkpoint read at every precision."
    return wr.Report(
        project=project, entity=entity or "", title=title, description=description, blocks=blocks, width="fluid"
    )


def run_sets(rows: pd.DataFrame) -> dict[str, list[str]]:
    """The runs of each method, by the ids of their cells, which those of W&B's runs are."""
    found: dict[str, dict[str, None]] = {}
    for row in rows.drop_duplicates(["cell_id"]).to_dict("records"):
        name = "unquantized" if row["base"] == "none" else row["label"]
        found.setdefault(name, {}).update(dict.fromkeys(row["cell_id"].split(", ")))
    return {name: list(ids) for name, ids in found.items()}


def _titles(loaded: LoadedResults, study: Study) -> dict[str, str]:
    """The titles of the Pareto panels by the metric that each draws: what was measured on held-out text.

    Of the measures that compare with the unquantized model two are drawn; the others are in the runs.  A run has
    numbers of tuning text under names of their own.
    """
    of_text = loaded.frame.loc[loaded.frame["task"] == LOG_PPLX, "metric"].unique()
    left_out = {LOG_PPLX, *MEASURES} - {KL, SAME_TOP}
    others = [metric for metric in of_text if is_metric(metric) and metric not in left_out]
    better = {metric: "higher" if higher_is_better(metric) else "lower" for metric in (LOG_PPLX, *others)}
    words = {LOG_PPLX: "log perplexity"}
    text = study.setup.readout.perplexity
    end, of_part = (TUNING, " of tuning text") if text is not None and text.part == "tuning" else ("", "")
    return {
        READOUT_AVG: "Task Avg (%), higher is better",
        **{
            f"{READOUT}{metric}{end}": f"{words.get(metric, metric)}{of_part}, {better[metric]} is better"
            for metric in better
        },
    }


def _pareto_panels(titles: Mapping[str, str]) -> list[Any]:
    """Panels with a line for each run and a point for each plan, two in a row."""
    import wandb_workspaces.reports.v2.interface as wr

    return [
        wr.LinePlot(
            title=title,
            x=EFFECTIVE_BITS,
            y=[name],
            log_x=True,
            log_y=name.removesuffix(TUNING) in (f"{READOUT}{LOG_PPLX}", f"{READOUT}{KL}"),
            title_x="effective bits per quantized weight",
            layout=wr.Layout(x=12 * (place % 2), y=10 * (place // 2), w=12, h=10),
        )
        for place, (name, title) in enumerate(titles.items())
    ]


def _curve_panels() -> list[Any]:
    import wandb_workspaces.reports.v2.interface as wr

    curves = wr.LinePlot(
        title="loss of every slice",
        x="Step",
        y=[f"train/{term}" for term in TRAINED_TERMS],
        log_y=True,
        layout=wr.Layout(x=0, y=0, w=24, h=10),
    )
    return [curves]


def as_json(report: Report) -> dict[str, Any]:
    """The report as it would be published: title, blocks, panels and run sets, as the library sends them."""
    model = report._to_model()  # the library offers no public way to see what it sends
    spec = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {
        "title": model.display_name,
        "description": model.description,
        "project": model.project.name,
        "spec": _without_made_up(spec),
    }


def _without_made_up(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_made_up(item) for key, item in value.items() if key not in MADE_UP}
    return [_without_made_up(item) for item in value] if isinstance(value, list) else value


def publish(study: Study, loaded: LoadedResults) -> str:
    """Publishes the report and returns its address; UserError without a key, a connection, or W&B's consent."""
    if wandb_mode() != "online":
        raise UserError("publishing needs a W&B key; run `wandb login`, or set WANDB_API_KEY and unset WANDB_MODE")
    try:
        import wandb

        if (reason := unreachable()) is None:
            entity = study.setup.tracking.entity or wandb.Api().default_entity
            report = build(study, loaded, entity=entity)
            report.save()
            return str(report.url)
    except Exception as error:  # of a library, about a server: whatever its type, it is no error of this program
        raise UserError(
            f"W&B did not take the report ({one_line(error)}); check the key (`wandb login --relogin`), "
            "tracking.entity and tracking.project, then repeat the command"
        ) from error
    raise UserError(f"W&B {reason}; repeat the command where it does, or set WANDB_BASE_URL to its address")


def main(arguments: Sequence[str]) -> None:
    given = parse("wandb", arguments)
    study = load_study(given.overrides)
    loaded = load(study)
    folder = study.setup.paths.out / study.name
    require_writable(folder, "paths.out")
    write_text(folder / FILE, json.dumps(as_json(build(study, loaded)), indent=1, ensure_ascii=False) + "\n")
    print(f"written: {folder / FILE}")
    if given.publish:
        print(f"published: {publish(study, loaded)}")
    else:
        print("to publish it: `wandb login`, then the same command with --publish")
