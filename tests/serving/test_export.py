"""The command `matquant export FORMAT CELL PLAN DIR`: how a cell is named, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from matquant.errors import UserError
from matquant.notation import Plan
from matquant.runs.files import HOST
from matquant.serving.engines.formats import Format
from matquant.serving.export import FORMATS, Trained, format_named, main
from matquant.serving.whole_folder import require_free, whole
from tests.exports import REAL, trained
from tests.tiny import TINY_GPTQ, tiny_overrides


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("cell"), *REAL)


def runs(cell):
    return f"paths.runs={cell.setup.paths.runs}"


def refused(words):
    with pytest.raises(UserError) as refusal:
        main(words)
    said = str(refusal.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_one(name):
    assert isinstance(format_named(name), Format)
    assert format_named(name).name == name


def test_a_cell_is_named_by_its_id_by_its_folder_and_by_overrides(cell, tmp_path, capsys):
    root = cell.setup.paths.runs.parent
    names = {
        "id": [cell.cell.id, runs(cell)],
        "folder": [str(cell.run.cell.parent)],
        "overrides": [*tiny_overrides(root), "base=minmax", "bits=int8"],
    }
    for way, words in names.items():
        main(["hqq", *words, "int3", str(tmp_path / way)])
        assert capsys.readouterr().out == f"{tmp_path / way}: {cell.cell.id} at int3 as hqq, exact\n"
    facts = [(tmp_path / way / "export.json").read_text() for way in names]
    assert len(set(facts)) == 1
    assert json.loads(facts[0]).items() >= {"plan": "int3", "format": "hqq", "exactness": "exact", "notes": []}.items()


def test_a_run_may_lie_in_a_folder_of_any_name(cell, tmp_path):
    moved = tmp_path / "my runs=1, [x]" / cell.cell.id
    shutil.copytree(cell.run.cell.parent, moved)
    main(["hqq", str(moved), "int4", str(tmp_path / "served")])
    assert (tmp_path / "served" / "export.json").is_file()


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ("int9", "'int9' is not a read-out plan"),
        ("int8+ep", "its parent is int8; choose int8 or narrower"),
        ("full", "full is the model before it was quantized"),
        ("evolution@3", "run `matquant search evolution@3` with the cell's overrides first"),
        ("nowhere.json", "nowhere.json is not a plan"),
    ],
)
def test_a_plan_that_the_parent_has_not_is_refused(cell, tmp_path, plan, says):
    assert says in refused(["hqq", str(cell.run.cell.parent), plan, str(tmp_path / "served")])
    assert list(tmp_path.iterdir()) == []


def test_a_width_of_codes_with_the_bucket_is_exported_as_a_run_measures_it(tmp_path):
    made = trained(tmp_path / "cell", *TINY_GPTQ, "bits=matquant", "extra_bit=on")
    main(["hqq", str(made.run.cell.parent), "int2", str(tmp_path / "served"), runs(made)])
    assert json.loads((tmp_path / "served/export.json").read_text())["plan"] == "int2+ep"


@pytest.mark.parametrize("plan", ["int2", "int4_floor", "pyramid@3", "evolution@3", None])
def test_slices_that_were_trained_by_another_rule_are_not_exported_by_eq_6(plan, tiny_study):
    study = tiny_study("base=gptq", "bits=matquant", "slicing=floor")
    trained_by_floor = Trained(study.one_cell(), study.setup)
    with pytest.raises(UserError, match=r"were trained by floor, .*; export int8 in a format of one width"):
        trained_by_floor.require_eq_6(None if plan is None else Plan.parse(plan))
    trained_by_floor.require_eq_6(Plan.parse("int8"))


@pytest.mark.parametrize(
    ("plan", "remedy"),
    [
        ("int8", "aligned_int4"),
        ("int6", "aligned_int4"),
        ("int3", "aligned_int3"),
        ("int2+ep", "aligned_int2"),
        ("pyramid@3", "aligned_int2"),
    ],
)
def test_rounded_zeros_are_refused_with_the_grid_that_has_none(cell, tmp_path, plan, remedy):
    said = refused(["compressed-tensors", str(cell.run.cell.parent), plan, str(tmp_path / "served")])
    assert said.endswith(f", or train with grid.zero={remedy}")
    again = trained(tmp_path, f"grid.zero={remedy}")
    main(["compressed-tensors", str(again.run.cell.parent), plan, str(tmp_path / "served")])
    assert json.loads((tmp_path / "served" / "export.json").read_text())["exactness"] == "exact"


def test_no_grid_is_named_where_none_would_do(cell, tmp_path):
    assert "train with" not in refused(
        ["compressed-tensors", str(cell.run.cell.parent), "int1", str(tmp_path / "served")]
    )


def test_a_place_where_no_folder_can_be_is_refused(cell, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for place, says in {
        "full": "is there already; name a new folder",
        "full/file": "is there already",
        "full/file/below": "no folder can be made at",
    }.items():
        assert says in refused(["hqq", str(cell.run.cell.parent), "int4", str(tmp_path / place)])
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "file"]


def test_a_folder_that_describes_no_cell_is_refused(cell, tmp_path):
    folder = tmp_path / cell.cell.id
    shutil.copytree(cell.run.cell.parent, folder)
    for text in ("broken", '{"a": 1}'):
        (folder / "cell.json").write_text(text)
        assert "does not describe a cell" in refused(["hqq", str(folder), "int4", str(tmp_path / "served")])
    renamed = tmp_path / "renamed"
    shutil.copytree(cell.run.cell.parent, renamed)
    assert f"holds the run of {cell.cell.id}" in refused(["hqq", str(renamed), "int4", str(tmp_path / "served")])


def test_words_that_say_too_much_or_too_little_are_refused(cell, tmp_path):
    folder, served = str(cell.run.cell.parent), str(tmp_path / "served")
    assert "takes CELL PLAN DIR" in refused(["hqq", folder, "int4"])
    assert "is a cell already; leave bits=int4 out" in refused(["hqq", folder, "int4", served, "bits=int4"])
    assert "is neither the folder of a run nor a cell in" in refused(["hqq", "nobody", "int4", served, runs(cell)])


def test_of_two_exports_to_one_folder_the_later_is_refused_and_leaves_nothing(tmp_path):
    late = whole(tmp_path / "out")
    (late.__enter__() / "late").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(UserError, match="is there already"):
        late.__exit__(None, None, None)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]


def test_what_a_killed_export_left_is_cleared_by_the_next_one(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f".out.{HOST}.{gone.pid}.tmp"
    left.mkdir()
    (left / "half").touch()
    others = tmp_path / f".out.{HOST}.{os.getppid()}.tmp"
    others.mkdir()
    with whole(tmp_path / "out") as beside:
        (beside / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [others.name, "out"]


def test_nobody_is_told_to_delete_the_folder_that_the_program_runs_in(tmp_path, monkeypatch):
    (tmp_path / "here" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "deeper")
    (tmp_path / "here" / "deeper" / "file").touch()
    for place in (Path(), Path("../../here"), Path("/dev/full")):
        with pytest.raises(UserError, match=r"is there already; name a new folder$"):
            require_free(place)
    Path("a b").touch()
    with pytest.raises(UserError, match=r"or delete it first: rm -r 'a b'$"):
        require_free(Path("a b"))


@pytest.mark.parametrize(("dtype", "is_rounded"), [("bfloat16", True), ("float32", False)])
def test_a_dense_folder_says_what_its_dtype_does_to_the_weights(cell, tmp_path, capsys, dtype, is_rounded):
    main(["dense", cell.cell.id, "int4", str(tmp_path / "dense"), runs(cell), "--dtype", dtype])
    printed = capsys.readouterr().out
    assert ("weights are rounded to bfloat16" in printed) == is_rounded
    assert bool(json.loads((tmp_path / "dense" / "export.json").read_text())["notes"]) == is_rounded
