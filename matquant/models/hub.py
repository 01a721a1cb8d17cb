"""The Hugging Face hub: asked once a process whether it answers, so that nothing waits for it again and again."""

from __future__ import annotations

import logging
import sys
from functools import cache
from threading import Thread

log = logging.getLogger(__name__)
PATIENCE_S = 5.0
_silent = False


@cache
def settle() -> bool:
    """True if the hub answers; where it does not, this process works from the local cache from here on.

    Without this, every file of every model is asked for six times, for half a minute.
    """
    global _silent
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if _answers():
        return True
    log.info("%s does not answer: models and data sets are read from the local cache", constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = _silent = True
    if (datasets := sys.modules.get("datasets.config")) is not None:  # else it looks when it is imported
        vars(datasets)["HF_HUB_OFFLINE"] = True
    return False


def is_silent() -> bool:
    """True if the hub was asked and did not answer."""
    return _silent


def _answers() -> bool:
    """True if the hub sends any answer but that it is down."""
    from huggingface_hub import constants, get_session

    said: list[bool] = []

    def ask() -> None:
        try:
            said.append(get_session().head(constants.ENDPOINT, timeout=PATIENCE_S).status_code < 500)
        except Exception:  # of any kind: no name, no route, a proxy that refuses, a certificate
            said.append(False)

    # In a thread: looking up a name has a patience of its own, which can be half a minute.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return said == [True]
