"""The interface between an algorithm and its caller, who keeps finished pieces and receives losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from matquant.codes.nested import NestedWeight

Layers = Mapping[str, NestedWeight]
WHOLE_MODEL = "model"
"""The piece of an algorithm that finishes all layers at once."""


@runtime_checkable
class Progress(Protocol):
    """The keeper of resumable pieces of work, and the receiver of losses.

    Several ranks call it together, each with its shards; one of them writes the losses.
    """

    def resume(self, piece: str, compute: Callable[[], Layers]) -> Layers:
        """The layers of a finished piece, from an earlier run if there is one, else computed now and kept.

        A safe point too.  Of several ranks only the main one has the layers; the others have none.
        """
        ...

    def load(self, state: Mapping[str, Tensor]) -> bool:
        """Copies the state that an earlier run saved last into these tensors; False if there is none."""
        ...

    def save(self, state: Callable[[], Mapping[str, Tensor]]) -> None:
        """Offers a state to go on from, with its `step`; it is asked for only when it is time to write one.

        A safe point: where the process was asked to stop, the state is written and `Stopped` is raised.
        """
        ...

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Takes the numbers of one step: losses per term, learning rates, anything worth a curve."""
        ...

    def tick(self, done: int, total: int, note: str) -> None:
        """Moves the progress bar."""
        ...
