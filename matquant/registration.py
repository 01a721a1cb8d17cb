"""Makes `quant_method: matquant` known to transformers as soon as both packages are imported, in either order.

Importing transformers takes seconds, which `matquant --help` does not have: so an import of `matquant` waits for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

AWAITED = "transformers.quantizers"
METHOD = "matquant.serving.with_transformers"


def register_with_transformers() -> None:
    """Registers now if transformers' quantizers are there, else when they are imported."""
    if AWAITED in sys.modules:
        import_module(METHOD)
    elif not any(isinstance(finder, _Awaiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Awaiting())


class _Awaiting(MetaPathFinder):
    """Finds the awaited package as usual, and adds one import behind it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AWAITED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Not before: who only asks whether the package is there has a spec and imports nothing.
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Awaiting)]
        self.loader.exec_module(module)
        import_module(METHOD)
