"""The evidence that a case needs: several seeds of what is trained, and read-outs of the same text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.claims import margins
from analysis.claims.cases import Background, Case, find
from analysis.claims.evidence import ReadOut
from analysis.frame.opened import OpenStudy
from matquant.errors import UserError
from tests.made_results import measure, paper_cells, study


@pytest.fixture
def made(tmp_path):
    """One seed of everything."""
    made = study(tmp_path, paper_cells())
    measure(made)
    return {"omniquant": OpenStudy(made)}


@pytest.fixture
def made_twice(tmp_path):
    """The same with two seeds of whatever is trained: one would decide nothing."""
    cells = [
        cell.model_copy(update={"seed": seed}) for cell in paper_cells() for seed in ((0, 1) if cell.data else (0,))
    ]
    made = study(tmp_path, cells)
    measure(made)
    return {"omniquant": OpenStudy(made)}


def test_one_seed_of_what_is_trained_decides_nothing_and_says_why(made):
    ours, theirs = (ReadOut("omniquant", method, "int2") for method in ("MatQuant", "Baseline"))
    case = Case("OmniQuant, int2", ("omniquant",), margins.better, ours, (theirs,))
    found = find(case, made, Background({}))
    assert "one seed of what is trained: no interval" in found.measured
    assert found.verdict.word == "cannot be told at this scale"


def test_read_outs_of_other_text_are_not_held_against_each_other(made_twice, tmp_path):
    other = made_twice["omniquant"].study
    text = other.setup.readout.perplexity.model_copy(update={"part": "tuning"})
    setup = other.setup.model_copy(update={"readout": other.setup.readout.model_copy(update={"perplexity": text})})
    measure(replace(other, setup=setup))
    ours, theirs = (ReadOut("omniquant", method, "int2") for method in ("MatQuant", "Baseline"))
    case = Case("across", ("omniquant",), margins.better, ours, (replace(theirs, experiment="tuning"),))
    opened = {**made_twice, "tuning": OpenStudy(replace(other, setup=setup))}
    with pytest.raises(UserError, match=r"holds omniquant against tuning, which read log_pplx otherwise"):
        find(case, opened, Background({}))
