"""Files are written whole or not at all, and say under which circumstances they were made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from matquant.checkout import PROJECT
from matquant.errors import UserError
from matquant.runs.files import HOST, read_json, remove_leftovers, require_writable, write_beside, write_json
from matquant.runs.folder import RunDir
from matquant.runs.provenance import provenance
from tests.processes import wait_until


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def fail(beside):
        beside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_beside(path, fail)
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_json_cannot_say_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_log_is_rewound_to_what_is_kept_and_loses_a_line_cut_short(tmp_path):
    run = RunDir(tmp_path, "cell")
    for block in range(3):
        run.append_log({"block": block})
    with run.log.open("a") as file:
        file.write('{"block": 1, "st')
    run.rewind_log(lambda record: record["block"] < 2)
    assert [json.loads(line) for line in run.log.read_text().splitlines()] == [{"block": 0}, {"block": 1}]


def test_a_folder_that_cannot_be_written_to_is_refused_with_its_option(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file/results .*; set paths\.results to a folder"):
        require_writable(tmp_path / "file" / "results", "paths.results")


def test_provenance_names_commit_versions_device_and_seconds():
    facts = provenance(device="cpu", seconds=1.234)
    assert set(facts) == {"commit", "dirty", "versions", "device", "seconds", "finished"}
    assert facts["versions"]["transformers"].startswith("5.")


HOLDER = """
import sys
from pathlib import Path
from matquant.runs.folder import RunDir
with RunDir(Path(sys.argv[1]), "cell").alone("train"):
    print("in", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_works_on_a_stage_and_a_killed_one_leaves_no_lock(tmp_path, caplog):
    caplog.set_level("INFO")
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"in\n"
    waits = "another process is at work on this cell"
    with RunDir(tmp_path, "cell").alone("evaluate"):
        assert waits not in caplog.text

    def kill_when_waited_for() -> None:
        wait_until(lambda: waits in caplog.text, "somebody to wait for the holder of a lock")
        assert not inside
        holder.kill()

    inside, killer = [], threading.Thread(target=kill_when_waited_for)
    killer.start()
    with RunDir(tmp_path, "cell").alone("train"):
        inside.append(True)
        assert holder.wait() == -signal.SIGKILL
    killer.join()
    holder.communicate()


def test_only_what_processes_that_are_gone_left_is_deleted(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    old, new = (tmp_path / f".{name}.json.elsewhere.17.tmp" for name in ("old", "new"))
    ours, left = (tmp_path / f".{name}.json.{HOST}.{pid}.tmp" for name, pid in (("a", os.getpid()), ("b", gone.pid)))
    for path in (old, new, ours, left, tmp_path / "result.json"):
        path.touch()
    os.utime(old, (time.time() - 3600,) * 2)
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {new.name, ours.name, "result.json"}
