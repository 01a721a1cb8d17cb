"""MatGPTQ's tables of speed (arXiv:2602.03537), with what was measured here below each of its rows.

    kernel    the time of a product in float16 over that with r-bit weights, by layer, width and batch
    vllm      latency, tokens per second and their ratio to float16's, Llama 3.1 8B Instruct

Speed belongs to a device, so every line names the one that it was measured on, and no number is set against another.
What the paper prints and nobody has measured here is a gap, and the notes name it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from analysis import published
from analysis.frame.names import model_name
from analysis.published import Speed
from analysis.tables.typeset import MISSING, Entry, Section, Table

PAPER = "paper, RTX A6000"
CAPTIONS: Mapping[Speed, str] = {
    "kernel": "MatGPTQ, kernels: how many times as fast as 16 bits",
    "vllm": "MatGPTQ, serving: latency, throughput, and throughput beside 16 bits",
}
MEASURES = {
    "latency": "latency, s ↓",
    "tokens_per_s": "tokens/s ↑",
    "throughput_speedup": "throughput, x ↑",
    "speedup": "speed-up ↑",
}
Key = tuple[str, str]
"""A width and a metric."""


def entries_of(name: Speed) -> pd.DataFrame:
    """Every line's numbers: the paper's with its device, then ours; columns model, width, line, metric, text."""
    printed = published.speed(name)
    texts = [f"{row['value']:.{row['decimals']:.0f}f}" for row in printed.to_dict("records")]
    theirs = printed.assign(line=PAPER, text=texts)
    ours = published.our_speed()
    ours = ours[ours["table"] == name]
    lines = ours["method"] + ", " + ours["device"]
    mine = ours.assign(line=lines, text=[f"{value:.3g}" for value in ours["value"]])
    return pd.concat([theirs, mine], ignore_index=True)[["model", "width", "line", "metric", "value", "text"]]


def speed_table(name: Speed) -> Table:
    """One of MatGPTQ's tables of speed, a section for each layer or model, ours below theirs."""
    entries = entries_of(name)
    printed = list(dict.fromkeys(published.speed(name)["metric"]))
    metrics = sorted(printed, key=lambda metric: list(MEASURES).index(_measure(metric)))
    sections = tuple(_sections(entries, metrics))
    measures = list(map(_measure, metrics))
    groups = [(MEASURES[one], measures.count(one)) for one in dict.fromkeys(measures)]
    heads = ("Of", "Width", "", *(f"batch {metric.rpartition('_')[2]}" for metric in metrics))
    spans = (("", 3), *groups)
    return Table(heads, sections, tuple(_notes(name, entries)), spans, num_labels=3, caption=CAPTIONS[name])


def _sections(entries: pd.DataFrame, metrics: list[str]) -> Iterator[Section]:
    for model, of_model in entries.groupby("model", sort=False):
        rows = []
        for width in dict.fromkeys(of_model["width"]):
            of_width = of_model[of_model["width"] == width]
            for line, of_line in of_width.groupby("line", sort=False):
                found = dict(zip(of_line["metric"], of_line["text"], strict=True))
                quiet = line == PAPER
                texts = (Entry(found.get(metric, MISSING), quiet=quiet) for metric in metrics)
                rows.append(
                    (Entry(model_name(str(model))), Entry(_width(width)), Entry(str(line), quiet=quiet), *texts)
                )
            if set(of_width["line"]) == {PAPER}:
                gaps = (Entry(MISSING) for _ in metrics)
                rows.append((Entry(model_name(str(model))), Entry(_width(width)), Entry("ours"), *gaps))
        yield Section("", str(model), tuple(rows))


def _measure(metric: str) -> str:
    return metric.rpartition("_batch_")[0]


def _width(width: str) -> str:
    return "16 bits" if width == "full" else width


def _notes(name: Speed, entries: pd.DataFrame) -> Iterator[str]:
    yield (
        "Numbers of MatGPTQ as it prints them (those of vLLM were read off its figure, to about three digits).  Ours "
        "are of other devices and other engines, so that they are set beside theirs, not against them; each ratio is "
        "to 16 bits on the same device."
    )
    ours = published.our_speed()
    for (device, how), of_device in ours[ours["table"] == name].groupby(["device", "measured"], sort=False):
        yield f"{device} ({'; '.join(of_device['method'].unique())}): {how}."
    yield from missing(name, entries)


def missing(name: Speed, entries: pd.DataFrame) -> Iterator[str]:
    """The numbers that the paper prints and we have none for, in a sentence for each layer or model."""
    theirs, ours = entries[entries["line"] == PAPER], entries[entries["line"] != PAPER]
    for model, printed in theirs.groupby("model", sort=False):
        measured = ours[ours["model"] == model]
        known = set(zip(measured["width"], measured["metric"], strict=True))
        keys = list(zip(printed["width"], printed["metric"], strict=True))
        gaps = [key for key in keys if key not in known]
        if gaps:
            words = "all of them" if len(gaps) == len(keys) else "; ".join(_named(gaps, keys))
            yield f"{MISSING} not measured here, {model_name(str(model))}: {len(gaps)} of {len(keys)} numbers: {words}."


def _named(gaps: list[Key], keys: list[Key]) -> Iterator[str]:
    """The widths with the same gaps, and the batches that these are."""
    of_width = {width: tuple(metric for one, metric in gaps if one == width) for width in dict(gaps)}
    for found in dict.fromkeys(of_width.values()):
        widths = [width for width, metrics in of_width.items() if metrics == found]
        printed = tuple(metric for one, metric in keys if one == widths[0])
        yield f"{', '.join(map(_width, widths))}: {'every batch' if found == printed else _batches(found)}"


def _batches(metrics: tuple[str, ...]) -> str:
    of_measure: dict[str, list[str]] = {}
    for metric in metrics:
        of_measure.setdefault(_measure(metric), []).append(metric.rpartition("_")[2])
    return " and ".join(
        f"{MEASURES[measure].partition(' ')[0].rstrip(',')} at batch {', '.join(batches)}"
        for measure, batches in of_measure.items()
    )
