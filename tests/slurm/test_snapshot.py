"""Jobs run the code that was there when they were launched, and their results say which it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from matquant.checkout import PROJECT
from slurm import snapshot


def test_the_same_code_is_copied_once_and_imported_from_anywhere(tmp_path):
    code = snapshot.take(tmp_path)
    assert snapshot.take(tmp_path) == code
    assert [path.name for path in tmp_path.iterdir()] == [code.name]
    assert list(code.glob("studies/*/conf/experiment/*/*.yaml"))
    program = (
        "import slurm.jobs, matquant.runs.provenance as runs, json;"
        "print(json.dumps([slurm.jobs.__file__, runs.__file__, runs.source_commit()]))"
    )
    environment = {**os.environ, **snapshot.environment(code)}
    # In the checkout itself, where `python -m` and `-c` would find the checkout first.
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, env=environment, capture_output=True, text=True, check=True
    )
    jobs, runs, source = json.loads(done.stdout)
    assert jobs == str(code / "slurm/jobs.py")
    assert runs == str(code / "matquant/runs/provenance.py")
    assert source["snapshot"] == code.name
    assert set(source) == {"commit", "dirty", "snapshot"}


def test_the_same_files_committed_since_are_another_snapshot(tmp_path, monkeypatch):
    before = snapshot.take(tmp_path)
    monkeypatch.setattr(snapshot, "source_commit", lambda: {"commit": "another", "dirty": False})
    after = snapshot.take(tmp_path)
    assert before != after
    assert json.loads((after / "SOURCE.json").read_text())["commit"] == "another"


def test_an_edited_checkout_is_another_snapshot(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    (checkout / "matquant").mkdir(parents=True)
    (checkout / "matquant/a.py").write_text("x = 1\n")
    monkeypatch.setattr(snapshot, "PROJECT", checkout)
    before = snapshot.take(tmp_path / "snapshots")
    (checkout / "matquant/a.py").write_text("x = 2\n")
    after = snapshot.take(tmp_path / "snapshots")
    assert before != after
    assert (before / "matquant/a.py").read_text() == "x = 1\n"
