"""Files for people who come to the project: one version number, forms and workflows that hosts can read."""

from __future__ import annotations

import os
import re
import tomllib

import pytest
import yaml

from matquant.checkout import PROJECT

VERSION = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
GITHUB = PROJECT / ".github"
TARGETS = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def test_the_version_is_the_same_wherever_a_reader_meets_it():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == VERSION
    newest = re.search(r"^## (\S+?),? ", (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == VERSION
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)


def test_the_citation_has_what_its_format_asks_for():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation.keys() >= {"cff-version", "message", "title", "authors", "license"}
    assert citation["cff-version"] == "1.2.0"
    assert all("name" in author or "family-names" in author for author in citation["authors"])
    assert all(reference.keys() >= {"type", "title", "authors"} for reference in citation["references"])


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_every_form_for_issues_asks_for_something(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form.keys() >= {"name", "description", "body"}
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) > 0
    assert all(field["attributes"]["label"] for field in form["body"])


def test_the_workflow_runs_the_file_that_every_change_has_to_pass():
    workflow = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step][-1] == ".ci/run"
    assert os.access(PROJECT / ".ci" / "run", os.X_OK)
    made = re.findall(r"^make (\S+)$", (PROJECT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(made) >= {"lint", "docs", "test", "test-slurm"}
    assert set(made) <= TARGETS


def test_the_image_installs_and_tests_by_the_same_commands():
    text = (PROJECT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    words = [line.split()[0] for line in lines]
    assert set(words) <= {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "CMD"}
    assert words[0] == "FROM"
    assert words.index("COPY") < lines.index("RUN make install") < words.index("CMD")
    assert lines[-1] == 'CMD ["make", "test"]'
    # What a clone ignores does not enter the image, and the commit does.
    left_out = (PROJECT / ".dockerignore").read_text(encoding="utf-8").split()
    assert ".venv" in left_out
    assert ".git" not in left_out


def test_the_site_does_not_burden_an_installation():
    facts = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = {re.split(r"[>=<\[]", one)[0] for one in facts["dependency-groups"]["docs"]}
    locked = set(re.findall(r"^([\w.-]+)==", (PROJECT / "requirements-docs.lock").read_text(), re.MULTILINE))
    installed = set(re.findall(r"^([\w.-]+)==", (PROJECT / "requirements.lock").read_text(), re.MULTILINE))
    assert wanted <= locked
    assert not locked & installed
