"""The definition of a study, which studies/NAME/study.py holds as data, and the places of a study's files."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from analysis.claims.cases import Background, Case, Claim
from matquant.checkout import study_folders
from matquant.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class DocumentPart:
    """An experiment of a study as a section of its document.

    `tables`: the numbers of MatQuant's tables that stand beside ours.  `figures`: names in `gallery`.  `nested`: the
    objective of the checkpoint that Figure 1b shows, if the experiment has several MatQuant checkpoints.
    """

    name: str
    title: str
    tables: tuple[int, ...] = ()
    figures: tuple[str, ...] = ()
    nested: str | None = None


@dataclass(frozen=True)
class HeadlineRow:
    """A row of the headline's table: the read-outs of one method, which `experiment` labels `row`.

    `parent`: the label at int8 instead, if nothing is sliced there.
    """

    algorithm: str
    words: str
    experiment: str
    row: str
    parent: str | None = None


@dataclass(frozen=True)
class Headline:
    """The share of a study in README.md: a figure of a part, words/headline.md, and a table of log perplexity."""

    part: str
    figure: str
    title: str
    rows: tuple[HeadlineRow, ...]


@dataclass(frozen=True)
class StudyDefinition:
    """A study: its parts are experiments, and its claims are held against what was measured in them.

    `introduction` opens the document, after `answers`: files of words/ too, and the figures `carrying` them, by the
    stems of their files (`answers`, `PART_FIGURE`).  `words`: those that stand in it after the experiments, in this
    order.  `seeds`, `unigram`, `models`, `nested`: see `cases.Background`.  `remarks`: sentences that keep a rule from
    being misread in this study, by its name in `judges.rules_of`.  `changes`: the changes to the rules, or to the cases
    they are applied to, that were made after results had been seen, and their occasions.
    """

    title: str
    parts: tuple[DocumentPart, ...]
    introduction: str = ""
    claims: tuple[Claim, ...] = ()
    answers: tuple[str, ...] = ()
    carrying: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    seeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unigram: float | Mapping[str, float] | None = None
    models: tuple[str, ...] = ()
    nested: Mapping[str, str] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    headline: Headline | None = None

    @property
    def background(self) -> Background:
        return Background(self.seeds, self.unigram, self.models, self.nested)

    @property
    def cases(self) -> tuple[Case, ...]:
        return tuple(case for claim in self.claims for case in claim.cases)


@dataclass(frozen=True)
class StudyFolder:
    """The files of a study: studies/NAME/.

    study.py      its definition, `STUDY`; other modules of the folder are imported as studies.NAME.MODULE
    conf/         files of configuration that only it needs: conf/experiment/NAME/*.yaml are its experiments
    words/*.md    words by hand, with placeholders (`prose`)
    results/      what was measured
    document.md, figures/    what is drawn from them
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def document(self) -> Path:
        return self.path / "document.md"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def experiments(self) -> list[str]:
        """The names of its experiments, which are chosen as experiment=STUDY/NAME."""
        return sorted(path.stem for path in (self.path / "conf" / "experiment" / self.name).glob("*.yaml"))

    def words(self, name: str) -> str:
        path = self.path / "words" / f"{name}.md"
        if not path.is_file():
            raise UserError(f"{path} does not exist, and study.py asks for its words; write it, or leave {name} out")
        return path.read_text(encoding="utf-8").strip()

    def definition(self) -> StudyDefinition:
        """Loads the definition from study.py; UserError if there is none."""
        path = self.path / "study.py"
        if not path.is_file():
            raise UserError(f"{path} does not exist; it defines the study: STUDY = StudyDefinition(...)")
        # A package of its own, wherever the folder lies, so that it finds its other modules.
        name = f"studies.{self.name}"
        spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(self.path)])
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        definition = getattr(module, "STUDY", None)
        if not isinstance(definition, StudyDefinition):
            raise UserError(f"{path} defines no study; write STUDY = StudyDefinition(...)")
        return definition


def study_names() -> list[str]:
    """The names of all studies."""
    return [path.name for path in study_folders()]


def study_folder(name: str) -> StudyFolder:
    """The folder of a study; UserError, with the names of all studies, if none has that name."""
    found = {path.name: path for path in study_folders()}
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"there is no study {name}; {hint}studies: {', '.join(found) or 'none'}")
    return StudyFolder(found[name])
