"""The results of a study, loaded once: its rows and their comparisons, worked out when they are first asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from analysis.frame.best import with_best
from analysis.frame.load import LoadedResults, load_frame
from analysis.frame.significance import against_reference
from analysis.frame.summary import summary
from evaluation.results.store import ResultStore

if TYPE_CHECKING:
    import pandas as pd

    from matquant.config.study import Study


@dataclass(frozen=True)
class OpenStudy:
    """A study with its results."""

    study: Study

    @cached_property
    def loaded(self) -> LoadedResults:
        return load_frame(self.study.cells, self.study.setup, ResultStore(self.study.setup.paths.results))

    @cached_property
    def rows(self) -> pd.DataFrame:
        """A row for each read-out: its numbers."""
        return with_best(summary(self.loaded), self.loaded)

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """Every row against its reference."""
        return against_reference(self.rows, self.loaded)
