"""A cell's Weights & Biases run: online where the server answers, files for `wandb sync` where it does not.

Nothing here waits for long: a server is asked once whether it answers, and every call to W&B has a time limit.
"""

from __future__ import annotations

import hashlib
import logging
import netrc
import os
import shlex
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, Literal, TypeVar, cast, get_args
from urllib.parse import urlsplit

from matquant.config.cell import Cell
from matquant.config.setup import Setup

T = TypeVar("T")
log = logging.getLogger(__name__)
JobType = Literal["train", "evaluate", "cell"]
"""The work of one process for a cell: a stage of it, or all."""
Mode = Literal["online", "offline", "disabled", "shared"]
OLD_MODES: Mapping[str, Mode] = {"run": "online", "dryrun": "offline"}
"""Words that WANDB_MODE had before, and that W&B still reads."""
HOSTS = ("api.wandb.ai", "api.forge.coreweave.com", "forge.coreweave.com")
"""W&B's own servers, as `wandb login` writes them to ~/.netrc."""
MAX_ID = 64
"""The longest id of a run that W&B takes."""
PROBE_S, START_S, LOG_S, FINISH_S = 5, 20, 10, 30
"""Seconds that a server may take to answer, and W&B to start a run, to take a number, and to upload the rest."""
SILENT: set[str] = set()
"""Servers that let a run of this process wait at its end: the runs after it do not wait for them again."""


class WandbTracker:
    """One W&B run; its id is the cell's, so that a resumed cell goes on in the same run (`run_id`)."""

    def __init__(self, cell: Cell, setup: Setup, job_type: JobType) -> None:
        mode = wandb_mode()  # first: W&B cannot be asked anything while WANDB_MODE is a word that it does not know
        folder = setup.paths.runs / cell.id
        folder.mkdir(parents=True, exist_ok=True)
        arguments: dict[str, Any] = {
            # A sweep has a project and an entity of its own, and W&B would warn of others.
            "project": None if is_of_a_sweep() else setup.tracking.project,
            "entity": None if is_of_a_sweep() else setup.tracking.entity,
            "id": run_id(cell.id),
            "name": cell.id,
            "group": setup.experiment,
            "job_type": job_type,
            "config": cell.model_dump(mode="json"),
            "dir": str(folder),
            # Offline too: `wandb sync` then continues the run, where it would otherwise write over the first file's.
            "resume": "allow",
            "reinit": "create_new",  # never the run of a cell before this one that could not be finished
            "settings": {
                "silent": True,
                "console": "off",
                "x_disable_stats": True,
                "init_timeout": START_S,
                "finish_timeout": FINISH_S,
                "finish_timeout_raises": True,
            },
        }
        if mode in ("online", "shared"):
            self.run: Any = _online(mode, arguments, folder) or _started("offline", arguments)
        else:
            self.run = _started(mode, arguments)
        self.upload = _upload(self.run.settings)
        """The command that uploads what this run has written to disk; empty where W&B writes nothing."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Numbers as curves, a list of counts as a histogram over 0, 1, 2, ..., a list of rows as a table."""
        _in_time(LOG_S, lambda: self.run.log({name: _logged(value) for name, value in metrics.items()}))

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        _in_time(LOG_S, lambda: self.run.summary.update(dict(metrics)))

    def finish(self) -> None:
        """Uploads the rest, and ends the process behind W&B, so that all files are whole and nothing waits for it."""
        try:
            _in_time(FINISH_S + LOG_S, self.run.finish)
        except Exception:  # of any kind, W&B's and our own time limit among them; it goes on
            SILENT.add(self.run.settings.base_url)
            raise
        finally:
            _tear_down(LOG_S)


def _online(mode: Mode, arguments: Mapping[str, Any], folder: Path) -> Any:
    """The run of a server that answers and takes it; otherwise None, and a sentence says why."""
    if (reason := unreachable()) is None:
        try:
            return _started(mode, arguments)
        except Exception as error:  # W&B's own, those of its libraries, or our time limit
            reason = f"does not take the run ({one_line(error)})"
            # The process behind W&B keeps the id of a run that failed to start: "run ID ... is in use".
            _tear_down(LOG_S)
    log.warning(
        "W&B %s: tracking %s offline; upload it later with `wandb sync %s`",
        reason,
        arguments["id"],
        shlex.quote(str((folder / "wandb").absolute())),
    )
    return None


def _started(mode: Mode, arguments: Mapping[str, Any]) -> Any:
    import wandb

    return _in_time(START_S + LOG_S, lambda: wandb.init(mode=mode, **arguments))


def _upload(settings: Any) -> str:
    if settings.mode == "disabled":
        return ""
    folder = shlex.quote(str(Path(settings.files_dir).parent))
    return f"wandb sync {folder}" if settings.mode == "offline" else f"wandb sync --include-online {folder}"


def unreachable() -> str | None:
    """The reason why W&B's server does not answer, found in seconds; None if it does answer, whatever it says.

    A compute node often has a key and no network, where W&B itself would try for a minute and a half.
    """
    import wandb

    settings = wandb.setup().settings
    url = settings.base_url
    if url in SILENT:
        return f"at {url} fell silent during an earlier run"
    own = {"http": settings.http_proxy, "https": settings.https_proxy}
    proxies = urllib.request.getproxies() | {scheme: proxy for scheme, proxy in own.items() if proxy}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    question = urllib.request.Request(
        f"{url}/graphql", b'{"query": "query { __typename }"}', {"Content-Type": "application/json"}
    )
    try:
        within(PROBE_S, lambda: opener.open(question, timeout=PROBE_S).close())
    except urllib.error.HTTPError as error:
        error.close()
        return f"at {url} answers with error {error.code}" if error.code >= 500 else None
    except Exception as error:  # of any kind: no name, no route, a proxy that refuses, a url that is none
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return None  # it answers; which certificates count is W&B's business
        return f"at {url} does not answer ({one_line(reason)})"
    return None


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call, or its exception; TimeoutError after some seconds, while the call is left to itself."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # one that ends a program ends this thread alone
            errors.append(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    thread = Thread(target=run, daemon=True)  # a process does not wait for it at its end
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds} s")
    return results[0]


def _in_time(seconds: float, call: Callable[[], T]) -> T:
    try:
        return within(seconds, call)
    except TimeoutError:
        _tear_down(0)
        raise


def _tear_down(seconds: float) -> None:
    """Ends the process behind W&B; after some seconds it is left to itself, and ends with this process."""
    import wandb

    with suppress(Exception):
        within(seconds, wandb.teardown)


def one_line(error: object) -> str:
    """The words of an error, in one line that is not long."""
    words = " ".join(str(error).split()).partition(" For further information visit")[0].rstrip(".")
    words = words or type(error).__name__
    return words if len(words) <= 300 else f"{words[:300]} ..."


def is_of_a_sweep() -> bool:
    """True for a process that `wandb agent` has started: it tries one cell, in a run that the agent has named."""
    return bool(os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"))


def run_id(cell_id: str) -> str:
    """The id of a cell's run: the cell's, which ends in a digest; a longer one than W&B takes is cut in front of it.

    A run of W&B's agent has the agent's: a sweep may try a cell twice, and each try is a run of its own.
    """
    if is_of_a_sweep():
        return os.environ["WANDB_RUN_ID"]
    if len(cell_id) <= MAX_ID:
        return cell_id
    digest = hashlib.sha256(cell_id.encode()).hexdigest()[:8]
    return f"{cell_id[: MAX_ID - len(digest) - 1]}-{digest}"


def _logged(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    import numpy as np
    import wandb

    if value and isinstance(value[0], Mapping):
        return wandb.Table(columns=list(value[0]), data=[list(row.values()) for row in value])
    return wandb.Histogram(np_histogram=(np.array(value), np.arange(len(value) + 1)))


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
