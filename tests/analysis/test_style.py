"""A method has one colour, one marker and one name in every figure, and none hides another."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from omegaconf import OmegaConf

from analysis.figures.gallery import plots
from analysis.figures.legends import short_names
from analysis.figures.scales import STEP, Points, far_off, side_by_side
from analysis.figures.style import (
    INK,
    METHODS,
    OTHER,
    PAPER,
    SLICES,
    TEXT,
    algorithm_of,
    method_of,
    new_figure,
    styles_of,
)
from analysis.figures.told import SVG_DPI, points_of, tell
from analysis.frame.names import WEIGHTS_NAMES, head_of, named_weights
from analysis.frame.opened import OpenStudy
from matquant.checkout import PROJECT
from matquant.config.compose import CONF
from matquant.config.study import load_study

FIGURES = PROJECT / "analysis" / "figures"
DARK_PAPER = "#16181b"
LEFT_OUT = ("hollow", "float32", "bfloat16", "unquantized", "the best", "chance", "faint", "clamped")


@pytest.fixture(scope="module")
def drawn():
    """Every figure of the experiments whose results come with the demo, wide and narrow, by experiment and name."""
    found = {}
    for experiment in ("smollm2/table01", "smollm2/figure2"):
        opened = OpenStudy(load_study([f"experiment={experiment}", "paths.results=studies/demo/results"]))
        for plot in plots(opened.study, opened.loaded, opened.rows):
            for width in plot.widths:
                figure = plot.draw(width)
                found[experiment, plot.name, width] = figure
    return found


def looks(figure) -> dict[str, tuple[str, ...]]:
    """Colour, marker and filling of every method in a legend; an area has a colour alone."""
    found = {}
    for legend in figure.legends:
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            name = text.get_text().replace("\n", " ")
            if not name.startswith(LEFT_OUT):
                line = isinstance(handle, Line2D)
                face = str(handle.get_markerfacecolor()) if line else tuple(map(float, handle.get_facecolor()[:3]))
                shape = (str(handle.get_marker()), str(handle.get_fillstyle())) if line else ()
                found[name] = (tuple(np.round(to_rgb(face), 3)), *shape)
    return found


def test_a_method_looks_alike_in_every_figure_and_is_alone_in_each(drawn):
    known: dict[str, tuple] = {}
    for place, figure in drawn.items():
        found = looks(figure)
        assert len(set(found.values())) == len(found), place
        for name, look in found.items():
            before = known.setdefault(name, look)
            assert before[0] == look[0], (name, place)
            if len(before) == len(look):
                assert before == look, (name, place)
            known[name] = max(before, look, key=len)
    assert {"Baseline (OmniQuant)", "MatQuant (OmniQuant)", "Sliced int8 (MinMax)", "int2"} <= set(known)


def test_legends_are_short_and_every_figure_fits_its_page(drawn):
    for place, figure in drawn.items():
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
        assert box.x0 > -0.03, place
        assert box.x1 < place[2] + 0.03, place
        for legend in figure.legends:
            assert all(len(text.get_text()) <= 50 for text in legend.get_texts()), place


def test_no_marker_hides_another(drawn):
    """The centres of two markers are at least a third of a marker apart: a ring of the lower one is always seen."""
    nearest = {}
    for place, figure in drawn.items():
        if place[1].startswith(("curves", "plans", "codes")):
            continue
        for axes in figure.axes:
            markers = [
                line.get_transform().transform(np.column_stack([line.get_xdata(), line.get_ydata()]))
                for line in axes.lines
                if line.get_marker() not in ("None", None, "") and len(np.atleast_1d(line.get_xdata()))
            ]
            points = np.concatenate([*markers, np.zeros((0, 2))]) * 72 / figure.dpi
            for one, other in itertools.combinations(points, 2):
                distance = float(np.hypot(*(one - other)))
                nearest[place] = min(nearest.get(place, distance), distance)
    assert len(nearest) > 10
    assert min(nearest.values()) > STEP / 3, nearest


def test_only_the_style_names_colours():
    for path in FIGURES.glob("*.py"):
        if path.name != "style.py":
            text = path.read_text(encoding="utf-8")
            assert not re.search(
                r"#[0-9a-fA-F]{3,8}\b|[\"'](C\d|tab:\w+|black|white|red|blue|green|gr[ae]y)[\"']", text
            ), path


# --- the palette ------------------------------------------------------------------------------------------------------

DEUTAN = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
PROTAN = np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]])
TRITAN = np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]])
"""Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB."""

MAIN = ("Sliced", "Baseline", "Single Precision", "MatQuant", "MatQuant + Extra Precision", "MatQuant [")


def linear(colour: str) -> np.ndarray:
    rgb = np.asarray(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.clip(to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089], 1e-6, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def luminance(colour: str) -> float:
    return float(np.array([0.2126, 0.7152, 0.0722]) @ linear(colour))


@pytest.mark.parametrize("seen", [np.eye(3), DEUTAN, PROTAN, TRITAN], ids=["all", "deutan", "protan", "tritan"])
def test_the_main_methods_stay_apart_for_colour_blind_readers(seen):
    for one, other in itertools.combinations(MAIN, 2):
        distance = np.linalg.norm(lab(seen @ linear(METHODS[one].colour)) - lab(seen @ linear(METHODS[other].colour)))
        assert distance > 11, (one, other, distance)
        assert METHODS[one].marker != METHODS[other].marker


@pytest.mark.parametrize("paper", [PAPER, DARK_PAPER])
def test_colours_are_seen_on_a_light_page_and_on_a_dark_one(paper):
    for style in [*METHODS.values(), OTHER]:
        low, high = sorted([luminance(style.colour), luminance(paper)])
        assert (high + 0.05) / (low + 0.05) > 2.25, style
    assert luminance(INK) < luminance(PAPER)


def test_no_two_methods_have_both_colour_and_marker():
    styles = [*METHODS.values(), *SLICES.values(), OTHER]
    assert len({(style.colour, style.marker) for style in styles}) == len(styles)


def test_variants_keep_the_hue_and_no_two_look_alike():
    facts = ["", *(f", base.num_steps={number}" for number in range(40))]
    heads = [f"{method} ({base})" for method in ("MatQuant", "Baseline") for base in ("OmniQuant", "QAT", "GPTQ")]
    styles = styles_of([head + fact for head in heads for fact in facts])
    assert {style.outline for label, style in styles.items() if label.startswith("MatQuant")} == {
        METHODS["MatQuant"].colour
    }
    looks = {(style.colour, style.marker, style.fill, style.outline) for style in styles.values()}
    assert len(looks) == len({style.name for style in styles.values()}) == len(styles)


def test_a_label_alone_has_the_style_that_it_has_among_others():
    labels = [
        "Baseline (OmniQuant)",
        "Baseline (MinMax)",
        "Sliced int8 (QAT)",
        "MatQuant (GPTQ)",
        "MatGPTQ (gptqmodel)",
    ]
    together = styles_of(labels)
    for label in labels:
        (alone,) = styles_of([label]).values()
        assert alone == together[label]
    named = [
        f"MatQuant (OmniQuant), {weights}"
        for weights in ("{int8: 1, int4: 1, int2: 1}", "{int8: 0.1, int4: 0.1, int2: 1}")
    ]
    for order in (named, named[::-1], ["MatQuant (OmniQuant)", named[1]]):
        assert styles_of(order)[named[1]].colour == styles_of(named)[named[1]].colour


@pytest.mark.parametrize(
    ("label", "method", "algorithm"),
    [
        ("MatQuant [8, 4, 8->2] (OmniQuant), a=b", "MatQuant [", "omniquant"),
        ("MatQuant [8, 4, 8->2] + Extra Precision (QAT)", "MatQuant [ + Extra Precision", "qat"),
        ("MatQuant by Eq. 8, read by Eq. 6 (GPTQ)", "MatQuant", "gptq"),
        ("Mix'n'Match dynamic program linear (OmniQuant)", "Mix'n'Match dynamic program linear", "omniquant"),
        ("MatGPTQ pyramid (gptqmodel 4.0)", "MatGPTQ", ""),
        ("some new format (its tool)", "", ""),
        ("Baseline", "Baseline", ""),
    ],
)
def test_a_label_tells_its_method_and_algorithm(label, method, algorithm):
    assert (method_of(label), algorithm_of(label)) == (method, algorithm)
    assert styles_of([label])[label].colour


# --- names ------------------------------------------------------------------------------------------------------------


def test_loss_weights_have_the_names_of_their_files():
    for values, name in WEIGHTS_NAMES.items():
        stored = OmegaConf.load(
            CONF / "weights" / f"{'lambda_01' if name == 'gemma2 λ' else name.removesuffix(' λ')}.yaml"
        )
        assert tuple(map(float, dict(stored).values())) == values
    assert named_weights("MatQuant (QAT), {int8: 0.1, int4: 0.1, int2: 1}") == "MatQuant (QAT), gemma2 λ"
    assert named_weights("{int8: 1, int4: 1, int3: 1}") == "uniform λ of (8, 4, 3)"
    assert named_weights("{int8: 0.7, int2+ep: 1}") == "λ 0.7/1 of (8, 2+ep)"
    assert named_weights("{8, 4, 2} stay") == "{8, 4, 2} stay"


def test_long_facts_become_letters_and_shared_ones_are_said_once():
    long = "base.num_steps=16, base.clipping_lr=0.02, searched start by inputs"
    labels = [f"{method} (OmniQuant), {long}, read on tuning text" for method in ("Baseline", "MatQuant")]
    labels += ["Baseline (OmniQuant), base.num_steps=8, read on tuning text"]
    found = short_names(labels)
    assert list(found.names.values()) == [
        "Baseline (OmniQuant), A",
        "MatQuant (OmniQuant), A",
        "Baseline (OmniQuant), num_steps=8",
    ]
    assert found.key == "All: read on tuning text. A: num_steps=16, clipping_lr=0.02, searched start by inputs."
    assert short_names(["MatQuant (QAT), a=b"]).names == {"MatQuant (QAT), a=b": "MatQuant (QAT), a=b"}
    assert short_names([]).names == {}
    assert head_of("MatGPTQ (tool, v1), file=x") == "MatGPTQ (tool, v1)"


# --- scales -----------------------------------------------------------------------------------------------------------


def test_a_collapsed_log_perplexity_is_far_off_and_most_never_are():
    assert far_off([3.9, 4.0, 6.8, 13.4, 14.1, np.nan]).tolist() == [False, False, False, True, True, False]
    assert not far_off([3.9, 4.2, 6.6, 7.0]).any()
    assert not far_off([3.9, 12, 13, 14]).any()
    assert not far_off([]).any()


def test_rows_of_markers_stand_side_by_side_only_where_they_meet():
    _, grid = new_figure(TEXT, 2)
    axes = grid[0, 0]
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    first, second = Points(np.array([2.0, 8]), np.array([5.0, 5])), Points(np.array([2.0]), np.array([5.0]))
    apart = Points(np.array([5.0]), np.array([5.0]))
    moved = side_by_side(axes, {"a": first, "b": second, "c": apart})
    assert {name: points.tolist() for name, points in moved.items()} == {"a": [0, 0], "b": [-STEP], "c": [0]}


def test_a_marker_that_stepped_aside_is_pointed_at_where_it_is_drawn():
    figure = Figure()
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    facts = pd.DataFrame({"row": ["one", "other"]})
    tell(axes, [0.5, 0.5], [0.5, 0.5], facts, ["one", "other"], aside=[0.0, 9.0])
    one, other = points_of(figure)
    assert other.x - one.x == pytest.approx(9 * SVG_DPI / 72)
    assert other.y == one.y
