"""Patches of lm-eval: each rests on lines that are there, and is refused with another version."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module, metadata

import pytest

from evaluation import lm_eval_patches
from evaluation.lm_eval_patches import PATCHES, QUIET, Patch, quiet_lm_eval
from matquant.errors import UserError


def source_of(module: str) -> str:
    return inspect.getsource(import_module(module))


def lost(patch: Patch, source: Callable[[str], str]) -> list[str]:
    """The lines of lm-eval on which a patch rests and which are gone."""
    return [
        f"the patch '{patch.name}' rests on a line that {module} no longer has: {line}"
        for module, lines in patch.quotes.items()
        for line in lines
        if line not in source(module)
    ]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_a_patch_rests_on_lines_that_lm_eval_has(patch):
    assert not lost(patch, source_of)
    patch.require()


def test_a_line_that_is_gone_names_its_patch():
    (gone,) = lost(QUIET, lambda module: source_of(module).replace("Custom kwargs can be passed", ""))
    assert gone.startswith("the patch 'quiet loggers' rests on a line that lm_eval.api.task no longer has: Custom")


def test_every_patch_of_the_module_is_listed():
    assert {id(value) for value in vars(lm_eval_patches).values() if isinstance(value, Patch)} == set(map(id, PATCHES))


def test_another_version_of_lm_eval_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda _: "9.9")
    with pytest.raises(UserError, match=r"lm-eval 9\.9 is installed, and .*quiet loggers.* pip install lm-eval==0\.4"):
        quiet_lm_eval().__enter__()
