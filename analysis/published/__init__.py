"""The numbers that papers print, as one tidy table: a row per printed number, with the names this harness uses.

    analysis/published/matquant_v3_table01.csv ... table30.csv    MatQuant (arXiv:2502.06786), version 3
    analysis/published/matquant_v1_table02.csv, table03.csv       version 1, which sliced without the clamp of Eq. 6
    analysis/published/matgptq_{kernel,vllm}.csv                  MatGPTQ (arXiv:2602.03537): speed, not quality
    analysis/published/known_errors.csv                           errors of the paper itself
    analysis/published/our_speed.csv                              what was measured here beside MatGPTQ's speed

`value` is as printed: accuracies in percent, log perplexity in nats per token; empty where the paper prints a dash.
Every row of MatQuant v3 names a run by model, base, scope, method, weights (lambda of int8, int4, int2) and width, so
that the same run is the same key in every table.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from evaluation.sources.table import PAPER_TASKS

FOLDER = Path(__file__).parent
KNOWN_ERRORS = FOLDER / "known_errors.csv"
RUN = ("model", "base", "scope", "method", "weights", "width")
"""The columns that identify a number: the same run in another table has the same values in them."""
COLUMNS = ("paper", "version", "table", *RUN, "metric", "value")
TASKS = tuple(PAPER_TASKS)
TASK_AVG = "task_avg"
NUM_TABLES = 30
V1_TABLES = (2, 3)
OUR_SPEED = FOLDER / "our_speed.csv"
Version = Literal["v3", "v1"]
Speed = Literal["kernel", "vllm"]
SPEEDS: tuple[Speed, ...] = get_args(Speed)
ROUNDING = 0.01 + 1e-9
"""Half a unit of the average's last digit, and as much again from its six rounded tasks."""


@cache
def load() -> pd.DataFrame:
    """Every number of every paper: COLUMNS, `decimals` as printed, and of a known error `should_read` and `error`."""
    files = sorted(FOLDER.glob("mat*.csv"))
    frame = pd.concat([pd.read_csv(file, dtype=str, keep_default_na=False) for file in files], ignore_index=True)
    frame["decimals"] = frame["value"].str.partition(".")[2].str.len()
    frame["value"] = pd.to_numeric(frame["value"])
    errors = pd.read_csv(KNOWN_ERRORS, dtype=str, keep_default_na=False).rename(columns={"reason": "error"})
    errors["should_read"] = pd.to_numeric(errors["should_read"])
    keys = ["version", "table", "model", "base", "method", "weights", "width", "metric"]
    frame = frame.merge(errors.drop(columns="printed"), on=keys, how="left", validate="one_to_one")
    return frame.assign(error=frame["error"].fillna(""))


def table(number: int, version: Version = "v3") -> pd.DataFrame:
    """The numbers of one table of MatQuant, in the order the paper prints them."""
    frame = load()
    return frame[(frame["paper"] == "MatQuant") & (frame["version"] == version) & (frame["table"] == str(number))]


def speed(name: Speed) -> pd.DataFrame:
    """The numbers of one of MatGPTQ's tables of speed, in the order the paper prints them."""
    frame = load()
    return frame[(frame["paper"] == "MatGPTQ") & (frame["table"] == name)]


@cache
def our_speed() -> pd.DataFrame:
    """Our own measurements: table, model, method, width, metric, value, device, and how it was measured."""
    frame = pd.read_csv(OUR_SPEED, dtype=str, keep_default_na=False)
    return frame.assign(value=pd.to_numeric(frame["value"]))


def averages(frame: pd.DataFrame) -> pd.DataFrame:
    """Every row whose six tasks and their average are printed: the average as printed, and as the tasks give it."""
    runs = frame.set_index(["version", "table", *RUN, "metric"])["value"].unstack("metric")
    whole = runs.reindex(columns=[*TASKS, TASK_AVG]).dropna()
    return pd.DataFrame({"printed": whole[TASK_AVG], "reproduced": whole[list(TASKS)].mean(axis=1)}).reset_index()


def disagreements(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs of version 3 that two tables print differently: the table, its value and the one of most tables."""
    printed = frame[(frame["paper"] == "MatQuant") & (frame["version"] == "v3")].dropna(subset="value")
    runs = printed.groupby([*RUN, "metric"])["value"]
    usual = runs.transform(lambda values: values.mode().iloc[0])
    differing = runs.transform("nunique") > 1
    return printed.assign(usual=usual)[differing]


def problems() -> list[str]:
    """The problems of these numbers beyond the paper's known errors: none, unless a file was edited."""
    frame = load()
    found = [
        f"Table {row['table']}: {row['model']} {row['method']} {row['width']} prints an average of {row['printed']}, "
        f"its tasks give {row['reproduced']:.3f}"
        for row in averages(frame).to_dict("records")
        if abs(row["printed"] - row["reproduced"]) > ROUNDING
    ]
    differing = disagreements(frame)
    for _, printed in differing.groupby([*RUN, "metric"], sort=False):
        kept = printed[printed["error"] == ""]
        corrected = set(printed["should_read"].dropna())
        if kept["value"].nunique() != 1 or corrected - set(kept["value"]):
            tables = ", ".join(f"{row['value']} in Table {row['table']}" for row in printed.to_dict("records"))
            first = printed.iloc[0]
            found.append(f"{first['model']} {first['method']} {first['width']} {first['metric']}: {tables}")
    return found + _misnamed_errors(frame)


def _misnamed_errors(frame: pd.DataFrame) -> list[str]:
    """Known errors that no row has, or that are not what the table prints."""
    errors = pd.read_csv(KNOWN_ERRORS, dtype=str, keep_default_na=False)
    found = []
    for row in errors.to_dict("records"):
        place = (frame["error"] == row["reason"]) & (frame["table"] == row["table"])
        if frame.loc[place, "value"].tolist() != [float(row["printed"])]:
            found.append(f"known_errors.csv: Table {row['table']} does not print {row['metric']} {row['printed']}")
    return found
