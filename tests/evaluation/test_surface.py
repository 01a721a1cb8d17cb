"""The parts of Hydra and lm-eval that are used without a promise: all there, and a sentence where one is gone."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from evaluation.surface import BELOW, HYDRA, LM_EVAL, TOUCHED, Touched
from matquant.checkout import PROJECT


@pytest.mark.parametrize("touched", TOUCHED, ids=lambda touched: touched.name)
def test_the_installed_version_has_what_is_used_of_it(touched):
    assert touched.lost() is None


@pytest.mark.parametrize("library", BELOW)
def test_the_installed_version_is_one_that_was_read(library):
    installed = Version(metadata.version(library))
    assert installed < Version(f"{BELOW[library]}.dev0"), (
        f"{library} {installed} was not tried; do what docs/reference/libraries.md says, "
        "mend what it names, then raise BELOW in evaluation/surface.py and the bound in pyproject.toml"
    )


@pytest.mark.parametrize("library", BELOW)
def test_what_is_installed_with_the_project_stays_below_the_next_version(library):
    listed = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["harness"]
    (asked,) = (asked for asked in map(Requirement, listed) if asked.name == library)
    assert not asked.specifier.contains(BELOW[library], prereleases=True)
    assert not asked.specifier.contains(f"{BELOW[library]}.0rc1", prereleases=True)
    assert asked.specifier.contains(metadata.version(library))


@pytest.mark.parametrize(
    ("touched", "sentence"),
    [
        (Touched(HYDRA, "hydra.gone:Class.one", "run.py"), "has no module hydra.gone, and with it no Class.one"),
        (Touched(HYDRA, "hydra.core.plugins:Plugins.gone", "run.py"), "has no Plugins.gone in hydra.core.plugins"),
        (
            Touched(HYDRA, "hydra.core.plugins:Plugins.register", "run.py", ("clazz", "one", "two")),
            "has a Plugins.register in hydra.core.plugins that takes no one and no two",
        ),
        (
            Touched(LM_EVAL, "lm_eval.api.task:Task.build_all_requests", "run.py", says="never said"),
            "has a Task.build_all_requests in lm_eval.api.task without 'never said'",
        ),
    ],
)
def test_what_is_gone_is_a_sentence_with_the_place_to_look_at(touched, sentence):
    version = metadata.version(touched.library)
    assert touched.lost() == f"{touched.library} {version} {sentence}; look at run.py, which rests on it"


def test_every_private_name_of_hydra_that_is_imported_is_in_the_table():
    known = {touched.name.partition(":")[0] for touched in TOUCHED}
    for path in (*(PROJECT / "matquant" / "config").glob("*.py"), *(PROJECT / "slurm").rglob("*.py")):
        for parent, names in re.findall(r"from (hydra\._internal\S*) import (.+)", path.read_text()):
            for name in names.split(", "):
                assert {parent, f"{parent}.{name}"} & known, f"{path}: {parent} {name} is not in evaluation/surface.py"


def test_every_file_that_the_table_names_is_there():
    for touched in TOUCHED:
        files = re.findall(r"\S+\.py", touched.used_by)
        assert files
        assert all((PROJECT / file).is_file() for file in files)
