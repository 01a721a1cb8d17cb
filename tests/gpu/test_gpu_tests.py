"""The part of the GPU check that runs the suite's `device` tests."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.gpu import tests as part
from benchmarks.gpu.lines import Scale

REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_one[cuda]" />
<testcase classname="tests.test_a" name="test_two[cuda]"><failure message="long">def test_two():
E       AssertionError: assert 1 == 2
E        +  where 1 = f()
</failure></testcase>
<testcase classname="tests.test_a" name="test_three[cuda]"><skipped message="no GPU" /></testcase>
</testsuite></testsuites>"""


def test_small_it_runs_the_cpu_tests_of_one_file():
    (line,) = part.tests(Scale(torch.device("cpu"), small=True))
    assert not line.failed, line
    assert line.value == line.against
    assert line.value >= 1


def test_a_failed_test_is_a_line_with_its_assertion(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    count, failed, skipped = part.lines(list(part.read(report)), "")
    assert (count.value, count.against, count.note) == (1, 3, "1 failed, 1 skipped")
    assert failed.what == "test_a::test_two[cuda]"
    assert failed.failed == "AssertionError: assert 1 == 2 ... +  where 1 = f()"
    assert skipped.note == "no GPU"


def test_a_run_without_a_report_says_what_it_saw():
    said = (
        "[gw0] [ 10%] PASSED tests/test_a.py::test_one[cuda] \n[gw1] [ 20%] FAILED tests/test_a.py::test_two[cuda] \n"
    )
    count, failed = part.lines([], f"{said}ended after 125 s")
    assert count.value == 1
    assert count.failed.endswith("ended after 125 s")
    assert failed.what == "tests/test_a.py::test_two[cuda]"


def test_files_are_found_by_the_argument_of_their_tests():
    def takes(name: str) -> bool:
        return part.TAKES_DEVICE.search((Path(part.FOLDER) / name).read_text()) is not None

    assert takes("codes/test_slicing.py")
    assert takes("serving/test_humming.py")
    assert not takes("models/test_devices.py")
