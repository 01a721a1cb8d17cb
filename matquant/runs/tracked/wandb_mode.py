"""The mode that W&B works in: online with a key for its server, otherwise files."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast, get_args
from urllib.parse import urlsplit

log = logging.getLogger(__name__)
Mode = Literal["online", "offline", "disabled", "shared"]
OLD_MODES: Mapping[str, Mode] = {"run": "online", "dryrun": "offline"}
"""Words that WANDB_MODE had before, and that W&B still reads."""
HOSTS = ("api.wandb.ai", "api.forge.coreweave.com", "forge.coreweave.com")
"""W&B's own servers, as `wandb login` writes them to ~/.netrc."""


def wandb_mode() -> Mode:
    """`online` with a key, `offline` without; WANDB_MODE has the last word.

    A word that W&B does not know is said, and counts as `offline`, for W&B as well.
    """
    word = os.environ.get("WANDB_MODE", "")
    if not word:
        return "online" if _has_key() else "offline"
    if (mode := OLD_MODES.get(word, word)) in get_args(Mode):
        return cast("Mode", mode)
    log.warning(
        "WANDB_MODE=%s is not a mode of W&B, so tracking is offline; set WANDB_MODE to online, offline or disabled",
        word,
    )
    os.environ["WANDB_MODE"] = "offline"
    return "offline"


def _has_key() -> bool:
    """True if there is a key for the server in the environment, or in the file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = os.environ.get("WANDB_BASE_URL")
    hosts = [urlsplit(server).netloc] if server else HOSTS
    try:
        path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        known = netrc.netrc(path).hosts
    except (OSError, RuntimeError, ValueError, netrc.NetrcParseError):
        return False
    return any(host in known for host in hosts)
