"""Hydra's sweepers: the number of points that one will draw, and the direction in which it searches.

Optuna's is tried in a test.  Ax's and Nevergrad's are known by reading: their packages need libraries that are older
than ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from omegaconf import OmegaConf

from matquant.config.compose import compose_hydra
from matquant.config.study import load_study
from matquant.config.sweep import is_of_hydra
from matquant.config.syntax.grammar import parsed_override, sweeper_of
from matquant.config.syntax.overrides import understood
from matquant.errors import UserError

INSIDE = 0.3719
"""The place in an interval of the number that is looked at: no whole number in any that a person types."""
PER_KEY = 8
"""Values of one key that are looked at before a search starts."""


@dataclass(frozen=True)
class Sweeper:
    """A sweeper that searches.  `higher`: for each objective, true if it is maximized; None if that is not known."""

    name: str
    num_points: int | None = None
    higher: Sequence[bool] | None = None

    def check(self, goals: Sequence[str], higher: Sequence[bool]) -> None:
        """Refuses a search without an objective, for another number of them, or in the wrong direction."""
        if not goals:
            raise UserError(
                f"hydra/sweeper={self.name} searches with a number; name it, such as objective=int2/log_pplx"
            )
        if self.name in ("ax", "nevergrad") and len(goals) > 1:
            raise UserError(f"hydra/sweeper={self.name} takes one objective; write objective={goals[0]}")
        if self.higher is not None and list(self.higher) != list(higher):
            raise UserError(
                f"hydra/sweeper={self.name} searches in another direction than that in which "
                f"{' and '.join(goals)} {'get' if len(goals) > 1 else 'gets'} better; add {self._direction(higher)}"
            )

    def _direction(self, higher: Sequence[bool]) -> str:
        match self.name:
            case "ax":
                return f"hydra.sweeper.ax_config.experiment.minimize={str(not higher[0]).lower()}"
            case "nevergrad":
                return f"hydra.sweeper.optim.maximize={str(higher[0]).lower()}"
            case _:
                words = ",".join("maximize" if one else "minimize" for one in higher)
                return f"hydra.sweeper.direction={words if len(higher) == 1 else f'[{words}]'}"


def load_sweeper(overrides: Sequence[str]) -> Sweeper:
    """The sweeper of a command line that searches, from its configuration."""
    name = sweeper_of(overrides)
    fixed = [word for word in overrides if (parsed := parsed_override(word)) is None or not parsed.is_sweep_override()]
    config = OmegaConf.to_container(compose_hydra(fixed).sweeper, resolve=False, enum_to_str=True)
    match name:
        case "optuna":
            typed = _at(config, "direction")
            directions = typed if isinstance(typed, list) else [typed]
            return Sweeper(name, _at(config, "n_trials"), [str(one).endswith("maximize") for one in directions])
        case "ax":
            return Sweeper(
                name, _at(config, "ax_config.max_trials"), [not _at(config, "ax_config.experiment.minimize")]
            )
        case "nevergrad":
            return Sweeper(name, _at(config, "optim.budget"), [bool(_at(config, "optim.maximize"))])
        case _:
            return Sweeper(name)


def _ends(interval: IntervalSweep) -> list[str]:
    """A number inside an interval, and its ends; of one over fractions none that is whole by chance."""
    start, end = interval.start, interval.end
    assert start is not None
    assert end is not None
    if isinstance(start, int) and isinstance(end, int):
        return [str(start), str(end)]
    inside = start + (end - start) * INSIDE
    return [f"{inside:.17g}", str(start), str(end)]


def whole_numbers(overrides: Sequence[str]) -> None:
    """Refuses an interval of fractions for a key that takes whole numbers: every draw from it would be refused."""
    for word in overrides:
        parsed = parsed_override(word)
        value: Any = None if parsed is None else parsed.value()
        if not isinstance(value, IntervalSweep) or not isinstance(value.start, float):
            continue
        key, _, typed = word.partition("=")
        others = [other for other in overrides if other != word and not is_of_hydra(other)]
        base = next(iter(sample_points(others)), [])
        try:
            load_study([*base, f"{key}={_ends(value)[0]}"])
        except UserError as error:
            if "valid integer" in str(error):
                raise UserError(
                    f"{word} draws fractions, and {key} is a whole number; write '{key}=int({typed})'"
                ) from error


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def sample_points(overrides: Sequence[str]) -> list[list[str]]:
    """Some points of a search space: the first value of every key, then the other values and ends of one key each."""
    choices: dict[str, list[str]] = {}
    for parsed in OverridesParser.create().parse_overrides(list(overrides)):
        key = parsed.get_key_element()
        value: Any = parsed.value()
        if isinstance(value, IntervalSweep):
            choices[key] = _ends(value)
        elif parsed.is_sweep_override():
            found = list(parsed.sweep_string_iterator())
            choices[key] = [*found[: PER_KEY - 1], *found[PER_KEY - 1 :][-1:]]
        else:
            choices[key] = [parsed.get_value_element_as_str()]
    if empty := [key for key, values in choices.items() if not values]:
        raise UserError(f"{empty[0]} has no value to search; a range has a start below its end: range(0,3)")
    first = {key: values[0] for key, values in choices.items()}
    points = [first, *({**first, key: value} for key, values in choices.items() for value in values[1:])]
    return [understood([f"{key}={value}" for key, value in point.items()]) for point in points]
