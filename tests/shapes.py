"""The type checker that runs in tests: beartype, where an int may stand for a float as everywhere in Python."""

from __future__ import annotations

from pathlib import Path

from beartype import BeartypeConf, beartype

ROOT = Path(__file__).parents[1]

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def shaped_modules() -> list[str]:
    """The modules of `matquant` whose signatures have shapes."""
    files = [file for file in sorted((ROOT / "matquant").rglob("*.py")) if "from jaxtyping import" in file.read_text()]
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
