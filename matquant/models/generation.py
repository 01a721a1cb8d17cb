"""The settings that transformers' generation of text has."""

from __future__ import annotations


def generation_settings() -> tuple[str, ...]:
    """The names of all settings, such as `temperature`."""
    from transformers import GenerationConfig

    return tuple(name for name in GenerationConfig().to_dict() if not name.startswith("_"))
