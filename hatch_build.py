"""Packages that an editable install makes importable: those of the clone, by name, and nothing that lies beside them.

The wheel holds `matquant` alone, so hatchling, which maps what the wheel holds, is told of the others here.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CLONE = ["evaluation", "analysis", "slurm"]


class EditableInstall(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the packages of the clone to those of the wheel, for an editable install only."""
        if version == "editable":
            self.build_config.target_config["packages"] = [*self.build_config.target_config["packages"], *CLONE]
