"""The command line: a mistake is one line before anything is computed, help teaches, a multirun runs."""

from __future__ import annotations

import pytest

from tests.processes import Process, fork, only_sentence, python
from tests.tiny import tiny_overrides


def command(*arguments: str) -> Process:
    """Runs run.py from its start to its end."""
    process = fork("run.py", *arguments)
    process.wait()
    return process


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["base.num_step=1"], "there is no key base.num_step"),
        (["readout.tasks=[piqqa]"], "piqqa"),
        (["grid=group_128"], "grid.group_size=128 does not divide the 32 inputs"),
        (["paths.results=/proc/nowhere"], "cannot write to /proc/nowhere"),
        (["-m", "base=minmax,omniquant", "grid=group_128"], "grid.group_size=128 does not divide"),
        (["-m", "bits=int8,int2", "objective=int3/log_pplx"], "is not read at int3; choose one of int8, int4, int2"),
        (["-m", "base=minmax", "bits=int8,int9"], "bits=int9 does not exist"),
        (["bits=int8,int4"], "needs --multirun"),
        (["bits=[int8,int4]"], "bits=[int8,int4] names several choices"),
        (["-m", "base.num_steps=interval(1,4)"], "type python run.py -m base.num_steps=1,4, or every one of them"),
        (["--cfg", "job", "-m"], "--cfg and --info show one configuration"),
        (["--config-dir", "/nope"], "--config-dir is not read"),
        (["hydra.run.dir=/proc/nowhere"], "set hydra.run.dir to a folder you can write to"),
        (["model.config.intermediate_size=96", "grid=group_64"], "choose grid=per_channel or grid.group_size=32"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_before_anything_is_computed(overrides, message, tmp_path):
    done = command(*tiny_overrides(tmp_path), *overrides)
    assert done.returncode == 2
    line = only_sentence(done.stderr)
    assert line.startswith("error: ")
    assert message in line
    assert done.stdout == ""
    assert not list(tmp_path.glob("*/*/*"))


def test_a_multirun_trains_and_reads_every_point(tmp_path):
    done = command(*tiny_overrides(tmp_path), "-m", "base=omniquant", "bits=int2,matquant", "base.kind=minmax")
    assert done.returncode == 2  # base.kind contradicts base=omniquant: refused before the first cell starts
    assert not list(tmp_path.glob("runs/*/cell.json"))

    done = command(*tiny_overrides(tmp_path), "-m", "base=none,minmax", "bits=int2,matquant", "readout.tasks=[]")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("results/*/cell.json"))) == 3  # none once, minmax at 2 and at 8 bits
    assert len(list(tmp_path.glob("results/*/*/log_pplx-*.json"))) == 1 + 1 + 3


def test_words_and_paths_reach_hydra_as_they_were_meant(tmp_path):
    folder = tmp_path / "run (1) a=b#ü"
    words = ["base=minmax", "bits=8,4", "extra_bit=null", "distill=false", "readout.tasks=null", "readout.plans=4"]
    done = command(*tiny_overrides(folder), "-m", *words)
    assert done.returncode == 0, done.stderr
    assert {path.parent.name for path in folder.glob("results/*/*/log_pplx-*.json")} == {"int4"}
    assert len(list(folder.glob("results/*/cell.json"))) == 2


def test_a_point_of_a_multirun_that_fails_keeps_no_other_from_running_and_is_status_1(tmp_path):
    words = [*tiny_overrides(tmp_path), "base=minmax", "readout.tasks=[]"]
    assert command(*words, "bits=8", "readout.plans=8").returncode == 0
    (tensors,) = tmp_path.glob("runs/*/checkpoint/nested.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-7])
    done = command(*words, "-m", "bits=8,4", "readout.plans=[8,4]")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "1 of 2 points failed (point bits=int8" in line
    assert len(list(tmp_path.glob("results/*/int4/log_pplx-*.json"))) == 1


def test_help_names_every_axis_and_its_choices():
    done = python("run.py", "--help")
    assert done.returncode == 0
    for line in (
        "base: foreign, gptq, gptq_paper, gptq_plain, gptq_released, minmax, none, omniquant",
        "python run.py experiment=demo",
        "smollm2_135m",
    ):
        assert line in done.stdout


def test_python_started_anew_says_the_same_of_a_mistake(tmp_path):
    arguments = [*tiny_overrides(tmp_path), "readout.tasks=[piqqa]"]
    done, forked = python("run.py", *arguments), command(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", forked.stderr)


def test_the_composed_configuration_can_be_looked_at():
    done = command("--cfg", "job", "bits=int4")
    assert done.returncode == 0
    assert "parent_bits: 4" in done.stdout
