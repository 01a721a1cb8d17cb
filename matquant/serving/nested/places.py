"""The place of a nested folder's files: this machine, or a hub, from which only those are fetched that are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from matquant.errors import UserError
from matquant.serving.nested.folder import DESCRIPTION, NestedFolder

RUN = ("cell.json", "checkpoint")


HUB = ("token", "cache_dir", "subfolder", "local_files_only")
"""The arguments of `from_pretrained` that say where and how files are found, beside `revision`."""


def nested_folder(
    source: str | Path,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str = "",
    local_files_only: bool = False,
) -> NestedFolder:
    """The nested folder at a path, or of a repository of the hub; UserError if there is none.

    `subfolder` is the folder within either.  The others are those of the hub's library.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        # A model is read again after the program has moved to another working directory, too.
        title = str(Path(source) / subfolder) if subfolder else str(source)
        return NestedFolder.open(title, partial(_in_folder, folder.absolute() / subfolder))
    if folder.exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise UserError(f"{source} is not a folder; `matquant export nested CELL DIR` writes a nested folder")
    words = {"cache_dir": cache_dir, "subfolder": subfolder or None, "local_files_only": local_files_only}
    return NestedFolder.open(str(source), _OfHub(str(source), revision, words, token))


def commit_of(folder: NestedFolder) -> str | None:
    """The commit of a hub that a folder is read at, or the branch that was asked for; None for a local folder."""
    return folder.find.revision if isinstance(folder.find, _OfHub) else None


def words_of_cache(files: Iterable[str]) -> dict[str, Any]:
    """The arguments of `nested_folder` that find more files beside some of a hub's cache; none for other files.

    <cache_dir>/models--OWNER--NAME/snapshots/<revision>/<subfolder>/<file>
    """
    for file in files:
        parts = Path(file).parent.parts
        if "snapshots" in parts[2:]:
            at = len(parts) - 1 - parts[::-1].index("snapshots")
            return {
                "cache_dir": Path(*parts[: at - 1]),
                "revision": parts[at + 1],
                "subfolder": "/".join(parts[at + 2 :]),
            }
    return {}


def _in_folder(folder: Path, name: str) -> Path:
    path = folder / name
    if path.is_file():
        return path
    if name != DESCRIPTION:
        raise UserError(f"{folder} holds no {name}; write it again with `matquant export nested CELL DIR`")
    if any((folder / one).exists() for one in RUN):
        raise UserError(f"{folder} is a run and no nested folder; write one with `matquant export nested {folder} DIR`")
    raise UserError(f"{folder} holds no {DESCRIPTION}; `matquant export nested CELL DIR` writes a nested folder")


@dataclass
class _OfHub:
    """The files of one commit of a repository: that of the first file that was asked for.

    A branch may move between two files, and would hold the planes of another checkpoint.
    """

    repo: str
    revision: str | None
    words: dict[str, Any]
    token: str | bool | None = field(default=None, repr=False)

    def __call__(self, name: str) -> Path:
        path = _of_hub(self.repo, name, revision=self.revision, token=self.token, **self.words)
        self.revision = words_of_cache([str(path)]).get("revision", self.revision)
        return path

    def __getstate__(self) -> dict[str, Any]:
        """Without the token: it is nobody's who is given a pickled model."""
        return {**vars(self), "token": None}

    def __deepcopy__(self, memo: Any) -> _OfHub:
        return replace(self)


def _of_hub(repo: str, name: str, **words: Any) -> Path:
    try:
        return Path(hf_hub_download(repo, name, **words))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{name} of {repo} is not in the local cache and the hub cannot be reached; give a folder on this machine, "
            f"or run `hf download {repo}` where there is a network"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{repo} is neither a folder here nor a nested folder on the hub ({first})") from error
