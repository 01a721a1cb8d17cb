"""The one crossing from configuration to typed values: overrides -> Cell and Setup, an experiment -> its list of cells.

YAML holds values; `cell.py` and `setup.py` hold their meaning.  Every mistake in a command line or a config file is
found here, before anything is computed, and becomes one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from matquant.checkout import from_anywhere
from matquant.config.cell import Cell
from matquant.config.compose import choices_of, compose, compose_points, key_of, points_of
from matquant.config.names import require_name, require_wandb_name
from matquant.config.setup import Paths, Setup
from matquant.errors import UserError
from matquant.notation import Slice, Term

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Study:
    """The meaning of a command line: a name, the cells and their read-outs."""

    name: str
    cells: tuple[Cell, ...]
    setup: Setup

    def one_cell(self) -> Cell:
        """The only cell; UserError if there are several."""
        if len(self.cells) != 1:
            raise UserError(
                f"{len(self.cells)} cells match; choose one with base=... bits=... instead of experiment=..."
            )
        return self.cells[0]


class _Bits(BaseModel):
    parent_bits: int
    widths: list[Any]


class _Distill(BaseModel):
    terms: list[str]
    replaces_ground_truth: bool


class _Scope(BaseModel):
    model_config = ConfigDict(extra="forbid")

    part: str
    partial: bool


class _Shape(BaseModel):
    """The keys of a composition that are read here, with the kind of each value; `Cell` and `Setup` check the rest."""

    name: str
    cells: list[dict[str, Any]] | None
    only: dict[str, Any] | None
    model: dict[str, Any]
    data: dict[str, Any]
    base: dict[str, Any]
    bits: _Bits
    weights: dict[str, float]
    distill: _Distill
    extra_bit: bool
    scope: _Scope
    grid: dict[str, Any]
    seed: int
    readout: dict[str, Any]
    tracking: dict[str, Any]
    cluster: dict[str, Any]
    paths: dict[str, Any]
    device: str
    activations: str
    save_every_min: float


def load_study(overrides: Sequence[str]) -> Study:
    """Composes a command line, such as `["experiment=demo", "model=tiny"]`, into typed values.

    The command line has the last word: an axis that it sets is not swept by the experiment's cells.
    Raises UserError, in one line, for anything that does not fit together.
    """
    config = compose(overrides)
    if "name" in config:
        require_name("name", config["name"])
    _typed(_Shape, config)
    typed = {key_of(override) for override in overrides}
    points = _points(config, typed)
    cells = [_cell(point) for point in compose_points(overrides, points)]
    return Study(config["name"], tuple({cell.id: cell for cell in cells}.values()), _setup(config, typed))


def _points(config: Mapping[str, Any], typed: set[str]) -> list[list[str]]:
    """The override lists of an experiment's cells; a single empty one for a command line that names no experiment."""
    cells, only = config["cells"] or [], config["only"] or {}
    if not cells:
        return [[]]
    choices = choices_of(cells)
    for axis in only:
        if axis not in choices:
            raise UserError(f"only.{axis}: no cell has this axis; choose one of {', '.join(sorted(choices))}")
    points = list(points_of(cells, typed, only))
    if not points:
        among = " ".join(f"{axis}={','.join(sorted(choices[axis]))}" for axis in only)
        raise UserError(f"only={only} leaves no cell; choose among {among}")
    return points


def _cell(config: Mapping[str, Any]) -> Cell:
    """The cell of one composed configuration.

    Facts that an algorithm does not look at are left out, so that `base=none` is one cell whatever `bits` says, and
    round to nearest does not depend on calibration text.
    """
    _typed(_Shape, config)
    if "name" in config["model"]:
        require_name("model.name", config["model"]["name"])
    kind = config["base"].get("kind")
    facts: dict[str, Any] = {"model": config["model"], "base": config["base"]}
    if kind != "none":
        facts |= {"objective": _objective(config), "grid": config["grid"]}
        facts |= {"scope": config["scope"]["part"], "partial_scope": config["scope"]["partial"]}
    if kind == "minmax":
        # Nothing is trained, so only the parent's width matters: bits=matquant and bits=int8 are the same codes.
        parent_bits = facts["objective"]["parent_bits"]
        facts["objective"] = {"parent_bits": parent_bits, "terms": {str(Slice(parent_bits)): 1.0}}
    if kind not in ("none", "minmax"):
        facts |= {"data": config["data"], "seed": config["seed"]}
    return _typed(Cell, facts)


def _objective(config: Mapping[str, Any]) -> dict[str, Any]:
    """bits x weights x distill x extra_bit -> terms.

    Without named weights (weights=uniform) every width weighs 1.  An explicit baseline has one width, so it has neither
    a teacher nor an overflow bucket, whatever the other axes say: they can be swept together.
    """
    parent_bits, widths = config["bits"]["parent_bits"], [_width(text) for text in config["bits"]["widths"]]
    weights = {_width(text): weight for text, weight in config["weights"].items()}
    trained = ", ".join(map(str, widths))
    for width in weights:
        if width not in widths:
            raise UserError(
                f"weights.{width}={weights[width]}, but {width} is not trained (bits trains {trained}); "
                "leave it out, or choose weights=uniform"
            )
    if weights and (forgotten := [width for width in widths if width not in weights]):
        remedy = " ".join(f"+weights.{width}=1.0" for width in forgotten)
        raise UserError(f"no weight for {', '.join(map(str, forgotten))} (bits trains {trained}); add {remedy}")
    extra = bool(config["extra_bit"])
    terms = {str(_keeping(width, parent_bits, extra=extra)): weights.get(width, 1.0) for width in widths}
    for text in config["distill"]["terms"] if len(widths) > 1 else []:
        try:
            term = Term.parse(text)
        except ValueError as error:
            raise UserError(f"distill.terms: {error}") from error
        if term.teacher is None:
            raise UserError(f"distill.terms: {text} names no teacher; write {text}->2 for a teacher of {text} bits")
        for part in (term.slice, term.teacher):
            if part not in widths:
                raise UserError(
                    f"distill has a term {text}, but {part} is not trained (bits trains {trained}); "
                    f"choose distill=none, or train it with bits.widths=[{','.join(map(str, [*widths, part]))}]"
                )
        student = _keeping(term.slice, parent_bits, extra=extra)
        assert term.teacher is not None
        # Equally weighted with the ground truth of the same width (Section 5.2).
        terms[str(Term(student, teacher=term.teacher))] = weights.get(term.slice, 1.0)
        if config["distill"]["replaces_ground_truth"]:
            terms.pop(str(student), None)
    return {"parent_bits": parent_bits, "terms": terms}


def _keeping(width: Slice, parent_bits: int, *, extra: bool) -> Slice:
    """The slice with its overflow bucket, if the extra bit is on and the slice is narrower than its parent."""
    return Slice(width.bits, extra_precision=extra and width.bits < parent_bits)


def _width(text: Any) -> Slice:
    try:
        return Slice.parse(text)
    except ValueError as error:
        raise UserError(f"bits and weights: {error}") from error


def _setup(config: Mapping[str, Any], typed: set[str]) -> Setup:
    facts = {
        key: config[key] for key in ("readout", "tracking", "paths", "device", "activations", "save_every_min")
    } | {"cluster": config["cluster"]}
    for key, name in config["tracking"].items():
        if key == "project" or (key == "entity" and name is not None):
            require_wandb_name(f"tracking.{key}", name)
    setup = _typed(Setup, {**facts, "experiment": config["name"]})
    return setup.model_copy(update={"paths": _placed(setup.paths, typed)})


def _placed(paths: Paths, typed: set[str]) -> Paths:
    """The folders that a study's files name below studies/ where they are; typed ones as they are typed."""
    named: dict[str, Path] = {name: getattr(paths, name) for name in Paths.model_fields if f"paths.{name}" not in typed}
    return paths.model_copy(
        update={} if "paths" in typed else {name: from_anywhere(path) for name, path in named.items()}
    )


def _typed(kind: type[Model], facts: Mapping[str, Any]) -> Model:
    try:
        return kind.model_validate(dict(facts))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(_keys(first["loc"], facts))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            raise UserError(f"there is no key {place}; remove it") from error
        if first["type"] == "union_tag_not_found":
            place = f"{place}.kind"
        if first["type"] in ("missing", "union_tag_not_found"):
            raise UserError(f"{place} is missing; leave out ~{place}, or add it to the file that lacks it") from error
        if first["type"] == "union_tag_invalid":
            context = first.get("ctx", {})
            kinds = f"{place}.kind={context.get('tag')} does not exist; choose one of {context.get('expected_tags')}"
            raise UserError(kinds) from error
        given = "" if isinstance(first["input"], (dict, list, tuple)) or not place else f"={first['input']}"
        raise UserError(f"{place}{given}: {message}" if place else message) from error


def _keys(place: tuple[int | str, ...], value: Any) -> Iterator[str]:
    """The keys that lead to an error's place, as a user types them.

    pydantic names the chosen member of a union among them; no user typed that word.
    """
    for part in place:
        if isinstance(value, Mapping) and part not in value and value.get("kind") == part:
            continue
        value = value.get(part) if isinstance(value, Mapping) else None
        yield str(part)
