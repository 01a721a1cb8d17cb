"""Names that a person gives: of a model, a study and a plan's file, which name folders, and those for W&B."""

from __future__ import annotations

import re
import unicodedata

from matquant.errors import UserError

MAX_LENGTH = 60
"""A cell's id is a name and some fifty characters more, and file names may have 255."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_PLAN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]*")
"""The name of a plan's file: as a search writes it, `evolution@3`, too."""
_OTHER_TYPES = re.compile(r"null|true|false|yes|no|on|off|inf|nan|[\d._]+(e\d+)?", re.IGNORECASE)
"""Texts that a command line reads as a number, a boolean or nothing."""
_NOT_IN_W_AND_B = frozenset("/\\#?%:")
MAX_W_AND_B = 128


def require_name(key: str, value: object) -> None:
    """Raises UserError for a value that cannot be a part of a folder's name on every disk, and in every tool."""
    if not (isinstance(value, str) and _is_good(_NAME, value)):
        raise UserError(
            f"{key}={_shown(value)}: a name is a part of a folder's name, so it is text of letters, digits, . _ and -, "
            f"begins with a letter or digit, and has at most {MAX_LENGTH} characters; "
            f"write {key}={suggestion(value, 'model' if key == 'model.name' else 'study')}"
        )


def require_plan_name(stem: str) -> None:
    """Raises UserError for a plan file whose name cannot be that of a folder of results."""
    if not _is_good(_PLAN, stem):
        raise UserError(
            f"{_shown(stem)}: the name of a plan's file becomes that of a folder, so it has letters, digits, . _ - @ "
            f"and + alone, begins with a letter or digit, and has at most {MAX_LENGTH} characters; "
            f"rename the file to {suggestion(stem, 'plan')}.json"
        )


def _is_good(kind: re.Pattern[str], name: str) -> bool:
    return kind.fullmatch(name) is not None and len(name) <= MAX_LENGTH and not name.endswith(".")


def suggestion(value: object, kind: str) -> str:
    """A good name that resembles a value: `gemma` for `google/gemma`, `my_model` for `my:model` and for nothing."""
    if value is None:
        return f"my_{kind}"
    words = [word for word in re.split(r"[/\\]", _shown(value)) if re.search(r"\w", word)] or [""]
    plain = unicodedata.normalize("NFKD", words[-1]).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")[:MAX_LENGTH].rstrip("._-")
    if not name:
        return f"my_{kind}"
    return f"{kind}_{name}"[:MAX_LENGTH] if not isinstance(value, str) or _OTHER_TYPES.fullmatch(name) else name


def require_wandb_name(key: str, value: object) -> None:
    """Raises UserError for the name of a project or an entity that W&B refuses."""
    if (
        isinstance(value, str)
        and value == value.strip() != ""
        and len(value) <= MAX_W_AND_B
        and not _NOT_IN_W_AND_B & set(value)
    ):
        return
    raise UserError(
        f"{key}={_shown(value)}: W&B takes text of 1 to {MAX_W_AND_B} characters without / \\ # ? % and :, and no "
        f"blank around it; write {key}={suggestion(value, key.removeprefix('tracking.'))}"
    )


def _shown(value: object) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= MAX_W_AND_B else f"{text[:MAX_LENGTH]}... ({len(text)} characters)"
