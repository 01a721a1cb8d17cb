"""The papers' numbers are the papers' numbers: averages follow from tasks, and tables agree but for known errors."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
import pytest

from analysis import published
from matquant.checkout import PROJECT
from matquant.config.study import load_study


def test_every_printed_average_is_the_mean_of_its_six_tasks():
    averages = published.averages(published.load())
    assert len(averages) > 300
    assert (averages["printed"] - averages["reproduced"]).abs().max() <= published.ROUNDING


def test_tables_agree_on_the_same_run_but_for_the_known_errors():
    assert published.problems() == []
    differing = published.disagreements(published.load())
    wrong = differing[differing["error"] != ""]
    assert sorted(wrong["table"]) == ["2", "2", "25", "3", "3"]
    assert (wrong["should_read"] == wrong["usual"]).all()


@pytest.mark.parametrize("column", ["value", "should_read"])
def test_an_edited_number_is_found(monkeypatch, column):
    frame = published.load().copy()
    place = frame.index[frame["should_read"].notna() if column == "should_read" else frame["table"] == "9"][1]
    frame.loc[place, column] += 0.5
    monkeypatch.setattr(published, "load", lambda: frame)
    assert published.problems()


def test_an_error_that_no_table_prints_is_found(monkeypatch, tmp_path):
    errors = pd.read_csv(published.KNOWN_ERRORS, dtype=str, keep_default_na=False)
    errors.loc[0, "printed"] = "9.999"
    errors.to_csv(tmp_path / "errors.csv", index=False)
    monkeypatch.setattr(published, "KNOWN_ERRORS", tmp_path / "errors.csv")
    assert published.problems() == ["known_errors.csv: Table 2 does not print log_pplx 9.999"]


def test_all_thirty_tables_are_there_with_the_columns_of_the_study():
    frame = published.load()
    assert set(published.COLUMNS) <= set(frame.columns)
    for number in range(1, published.NUM_TABLES + 1):
        table = published.table(number)
        assert len(table) >= 18
        assert not table.duplicated([*published.RUN, "metric"]).any()


def test_a_dash_of_the_paper_is_a_row_without_a_value():
    unstable = published.table(6).query("method == 'Baseline' and width in ['int2', 'int3']")
    assert len(unstable) == 8
    assert unstable["value"].isna().all()


def test_digits_are_kept_as_printed():
    row = published.table(2).query("model == 'gemma2_9b' and method == 'Baseline' and width == 'int8'")
    assert row["decimals"].tolist() == [2, 2]  # 74.17 and 2.29


@pytest.mark.parametrize("version", ["v3", "v1"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 6, 7, 8, 20, 24, 29, 30])
def test_runs_are_named_as_the_experiments_name_them(number, version):
    """Every published row of a table is a read-out of a cell of its experiment; Table 7 has two other weightings."""
    if version == "v1" and number not in published.V1_TABLES:
        return
    study = load_study([f"experiment={'' if version == 'v3' else 'v1_'}table{number:02}"])
    ours = set()
    for cell in study.cells:
        for plan in study.setup.readout.plans_of(cell):
            method = "bfloat16" if cell.objective is None else cell.objective.method(plan.default)
            ours.add((cell.model.name, cell.base.kind, cell.scope or "", method, plan.label))
    keys = ["model", "base", "scope", "method", "width"]
    printed = set(published.table(number, version)[keys].itertuples(index=False, name=None))
    assert printed <= ours


def test_the_check_runs_from_the_command_line():
    command = [sys.executable, "-m", "matquant", "published"]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "printed averages compared with their six tasks" in run.stdout
    assert run.stdout.count("known error, Table") == 7
