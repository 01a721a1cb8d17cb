"""lm-eval's yaml files as plain values, read without importing lm_eval: studies are planned, and tables drawn, with it.

Files that are included are merged as lm-eval merges them.  A `!function` stays a name; lm-eval imports it when the task
is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from evaluation.sources.folder import fingerprint

Config = Mapping[str, Any]
LOADER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class FunctionName(NamedTuple):
    """A function that a yaml file names: `!function utils.process` beside that file, or in an installed module."""

    folder: Path
    name: str

    @property
    def module(self) -> Path:
        """The file beside the yaml that has the function, if it is there."""
        return self.folder / f"{self.name.rpartition('.')[0].replace('.', '/')}.py"


def read_yaml(path: Path) -> dict[str, Any]:
    """A yaml file with everything that it includes; OSError, ValueError or a YAMLError if it is not a mapping."""
    return _merged(path.expanduser().resolve(), ())


def _merged(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path in above:
        raise ValueError(f"{path} includes itself")
    config = dict(_parsed(path, path.stat().st_mtime_ns))
    if "include" not in config:
        return config
    included = config.pop("include")
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        merged |= _merged((path.parent / name).resolve(), (*above, path))
        merged.pop("task_list", None)
    return merged | config


@cache
def _parsed(path: Path, _changed: int) -> Config:
    """The content of one file; templates are included a thousand times."""

    class Loader(LOADER): ...

    Loader.add_constructor(
        "!function", lambda loader, node: FunctionName(path.parent, str(loader.construct_scalar(node)))
    )
    with path.open("rb") as file:
        content = yaml.load(file, Loader=Loader)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no mapping")
    return content


def plain(value: Any) -> Any:
    """A value that can be compared and hashed as text: a function becomes its name and the code in its folder."""
    if isinstance(value, FunctionName):
        code = fingerprint(sorted(value.module.parent.glob("*.py"))) if value.module.is_file() else "installed"
        return f"{value.name}@{code}"
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    return value
