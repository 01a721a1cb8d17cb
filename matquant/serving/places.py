"""The place of a nested folder's files: this machine, or a hub, from which only those are fetched that are read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from matquant.errors import UserError
from matquant.serving.nested_folder import DESCRIPTION, NestedFolder

RUN = ("cell.json", "checkpoint")


def nested_folder(source: str | Path, revision: str | None = None) -> NestedFolder:
    """The nested folder at a path, or of a repository of the hub; UserError if there is none."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        # A model is read again after the program has moved to another working directory, too.
        return NestedFolder.open(str(source), partial(_in_folder, folder.absolute()))
    if folder.exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise UserError(f"{source} is not a folder; `matquant export nested CELL DIR` writes a nested folder")
    return NestedFolder.open(str(source), _OfHub(str(source), revision))


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

    def __call__(self, name: str) -> Path:
        path = _of_hub(self.repo, self.revision, name)
        if path.parent.parent.name == "snapshots":
            self.revision = path.parent.name
        return path


def _of_hub(repo: str, revision: str | None, name: str) -> Path:
    try:
        return Path(hf_hub_download(repo, name, revision=revision))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{name} of {repo} is not in the local cache and the hub cannot be reached; give a folder on this machine, "
            f"or run `hf download {repo}` where there is a network"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{repo} is neither a folder here nor a nested folder on the hub ({first})") from error
