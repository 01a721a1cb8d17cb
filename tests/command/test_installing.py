"""Installations: a wheel makes the library importable, an editable install the clone's packages."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile

from matquant.checkout import PROJECT


def _built(kind: str, folder) -> zipfile.ZipFile:
    program = f"from hatchling.build import {kind}; print({kind}({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    return zipfile.ZipFile(folder / done.stdout.splitlines()[-1])


def test_a_wheel_holds_the_library_and_nothing_else(tmp_path):
    tops = {name.partition("/")[0] for name in _built("build_wheel", tmp_path).namelist()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"matquant"}


def test_an_editable_install_makes_the_packages_of_the_clone_importable_and_nothing_that_lies_beside_them(tmp_path):
    wheel = _built("build_editable", tmp_path)
    mapping = "".join(wheel.read(name).decode() for name in wheel.namelist() if name.startswith("_editable"))
    mapped = set(re.findall(r"map_module\('(\w+)'", mapping))
    assert mapped == {"matquant", "evaluation", "analysis", "slurm"}
    # No folder is added to the path: with the clone's root on it, `import tests` or `import conf` would work anywhere.
    assert str(PROJECT) + "\n" not in mapping.replace("\r", "") + "\n"
