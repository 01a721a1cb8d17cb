"""The results of a study, loaded once: its rows and their comparisons, worked out when they are first asked for."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from analysis.frame.best import with_best
from analysis.frame.load import LoadedResults, load_frame
from analysis.frame.significance import against_reference
from analysis.frame.summary import summary
from evaluation.results.store import ResultStore
from matquant.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from matquant.config.cell import Cell
    from matquant.config.study import Study


@dataclass(frozen=True)
class OpenStudy:
    """A study with its results."""

    study: Study
    kept: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)
    """What others have worked out from these results, by names of their own: a document asks for much of it often."""

    @cached_property
    def cells(self) -> Mapping[str, Cell]:
        """The cells by their ids."""
        return {cell.id: cell for cell in self.study.cells}

    @cached_property
    def loaded(self) -> LoadedResults:
        return load_frame(self.study.cells, self.study.setup, ResultStore(self.study.setup.paths.results))

    @cached_property
    def rows(self) -> pd.DataFrame:
        """A row for each read-out: its numbers."""
        return with_best(summary(self.loaded), self.loaded)

    def only(self, *names: str) -> OpenStudy:
        """The same results, of the unquantized model and of rows whose names begin with one of these."""
        rows = self.rows[(self.rows["base"] == "none") | self.rows["label"].str.startswith(names)]
        if (rows["base"] == "none").all():
            known = ", ".join(dict.fromkeys(self.rows.loc[self.rows["base"] != "none", "label"]))
            raise UserError(f"no row's name begins with {' or '.join(map(repr, names))}; there are {known}")
        chosen = OpenStudy(self.study)
        vars(chosen).update(loaded=self.loaded, rows=rows.reset_index(drop=True))
        return chosen

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """Every row against its reference."""
        return against_reference(self.rows, self.loaded)
