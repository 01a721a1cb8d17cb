"""The record of the sources of a report: while they are unchanged, it is not drawn again.

A report is a function of the study, the command line it prints, the files of its cells, the code and the libraries.
A digest of all of them is written into the report's folder, with a digest of every file drawn and the table as it was
printed.  While everything is the same, the table is printed again and nothing is drawn.

Contents count, not times: copying a results folder changes nothing, and a change within the same second counts.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.frame.protocols import own_tasks
from evaluation.results.store import ResultStore
from matquant.checkout import PROJECT
from matquant.config.cell import FilesText
from matquant.config.home import at_home
from matquant.errors import UserError
from matquant.runs.files import read_json, write_json
from matquant.runs.folder import RunDir

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from analysis.report.files import ReportPaths
    from matquant.config.setup import Readout
    from matquant.config.study import Study

CODE = (
    *(f"analysis/**/*.{kind}" for kind in ("py", "csv", "ipynb", "jinja", "css", "js")),
    *("evaluation/**/*.py", "matquant/**/*.py"),
)
LIBRARIES = (
    "lm_eval",
    "numpy",
    "pandas",
    "matplotlib",
    "scipy",
    "jinja2",
    "pyarrow",
    "fonttools",
    "ipykernel",
    "nbclient",
)
"""The libraries whose versions change what is drawn; an unknown version counts as one of its own."""


@dataclass(frozen=True)
class Drawn:
    """The record of a report: the digest of what it was drawn from, of each file by name, and the table."""

    sources: str
    text: str
    files: Mapping[str, str | None]

    def with_files(self, paths: Iterable[Path]) -> Drawn:
        """The same with files that have just been written."""
        return replace(self, files={**self.files, **{path.name: _digest(path) for path in paths}})

    def has(self, *paths: Path) -> bool:
        """True if files are what was drawn, to the byte."""
        return all(self.files.get(path.name) is not None and self.files[path.name] == _digest(path) for path in paths)


def remembered(paths: ReportPaths, sources: str) -> Drawn | None:
    """The record of a report that was drawn from exactly these sources; None if there is none, or a damaged one."""
    try:
        found = read_json(paths.record)
        drawn = Drawn(found["sources"], found["text"], dict(found["files"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return drawn if drawn.sources == sources and isinstance(drawn.text, str) else None


def remember(paths: ReportPaths, drawn: Drawn) -> None:
    """Writes the record of a report, after the last of its files."""
    write_json(paths.record, asdict(drawn))


def sources_of(study: Study, overrides: Sequence[str] | None, measures: Sequence[str] = ()) -> str:
    """The digest of everything that a report is drawn from.

    It is taken before anything is read, so that a change during the drawing is noticed by the next report.
    """
    digest = hashlib.sha256()
    for fact in (*_facts(study, overrides), list(measures), *_contents(study)):
        digest.update(json.dumps(fact, sort_keys=True, default=str).encode() + b"\0")
    return digest.hexdigest()


def _facts(study: Study, overrides: Sequence[str] | None) -> Iterator[Any]:
    """The question that is asked, and the code and libraries that draw the answer."""
    yield study.name
    yield study.setup.model_dump(mode="json")
    for cell in study.cells:
        # A plan given as a file may have changed.
        yield [cell.model_dump(mode="json"), [repr(plan) for plan in study.setup.readout.plans_of(cell)]]
    yield None if overrides is None else list(overrides)
    yield [[str(path), _digest(path)] for path in _documents(study.setup.readout)]
    yield _own_tasks(study.setup.readout)
    yield [platform.python_version(), *map(_version, LIBRARIES)]
    for pattern in CODE:
        for path in sorted(PROJECT.glob(pattern)):
            yield [str(path.relative_to(PROJECT)), _digest(path)]


def _documents(readout: Readout) -> list[Path]:
    """The user's own files that a read-out names: of other content, they are not what was measured."""
    folder = [] if readout.data_dir is None else sorted(Path(readout.data_dir).glob("*/*"))
    texts = readout.perplexity.paths if isinstance(readout.perplexity, FilesText) else ()
    return [*folder, *(at_home(text) for text in texts)]


def _own_tasks(readout: Readout) -> Any:
    """The user's own tasks as they are now: their yaml, their code and the files of their documents."""
    try:
        return own_tasks(readout)
    except UserError as error:  # a file that is gone
        return str(error)


def _contents(study: Study) -> Iterator[Any]:
    """Every file that a report may read: results of the cells, their documents, plans, codes, losses; packed ones."""
    paths, store = study.setup.paths, ResultStore(study.setup.paths.results)
    for cell_id in dict.fromkeys(cell.id for cell in study.cells):
        for path in store.files(cell_id):
            yield [str(path.relative_to(paths.results)), _digest(path)]
        yield [cell_id, _digest(RunDir(paths.runs, cell_id).log)]


def _digest(path: Path) -> str | None:
    """The digest of a file's content; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
