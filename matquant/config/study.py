"""The one crossing from configuration to typed values: overrides -> Cell and Setup, an experiment -> its list of cells.

YAML holds values; `cell.py` and `setup.py` hold their meaning.  Every mistake in a command line or a config file is
found here, before anything is computed, and becomes one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from matquant.checkout import from_anywhere
from matquant.config.cell import Cell, Float, HubText, Int, Seed, Spec, TextSpec
from matquant.config.compose import choices_of, compose, compose_points, points_of
from matquant.config.foreign import KIND as FOREIGN
from matquant.config.foreign import check_foreign, foreign_model
from matquant.config.goal import Goal, goals_of
from matquant.config.names import require_name, require_wandb_name
from matquant.config.setup import Paths, Setup
from matquant.config.syntax.grammar import as_typed
from matquant.config.syntax.overrides import key_of, understood
from matquant.config.syntax.sentences import OPEN
from matquant.errors import UserError
from matquant.notation import EQ_6, Rule, Slice, Term

Model = TypeVar("Model", bound=BaseModel)
DEFAULT_NAME = "cell"
"""The name of a command line that names no experiment."""
SETUP = {*Setup.model_fields, "perplexity", "search", "name", "only", "cells", "objective"}
"""Keys that no cell has of its own."""

SINGLE_EXPECTED = ("int_type", "float_type", "string_type", "bool_type", "path_type", "literal_error")
"""pydantic's names of a mistake: several values, or a section, where a single value is expected."""

SECTION_EXPECTED = ("dict_type", "model_type", "model_attributes_type")
"""pydantic's names of a mistake: a single value where values below a key are expected."""


@dataclass(frozen=True)
class Study:
    """The meaning of a command line: a name, the cells and their read-outs."""

    name: str
    cells: tuple[Cell, ...]
    setup: Setup
    goals: tuple[Goal, ...] = ()
    """The numbers that a sweep is about."""

    def one_cell(self) -> Cell:
        """The only cell; UserError if there are several."""
        if len(self.cells) != 1:
            raise UserError(
                f"{len(self.cells)} cells match; choose one with base=... bits=... instead of experiment=..."
            )
        return self.cells[0]


class _Bits(Spec):
    parent_bits: Int
    widths: list[Any]


class _Distill(Spec):
    terms: list[str]
    replaces_ground_truth: bool


class _Scope(Spec):
    part: str
    partial: bool


class _Shape(Spec):
    """The keys of a composition that are read here, with the kind of each value; `Cell` and `Setup` check the rest."""

    name: str
    cells: list[dict[str, Any]] | None
    only: dict[str, Any] | None
    objective: list[str] | None = None
    model: dict[str, Any]
    data: dict[str, Any] | None = None
    base: dict[str, Any]
    bits: _Bits
    weights: dict[str, Float]
    distill: _Distill
    extra_bit: bool
    slicing: Rule = EQ_6
    scope: _Scope
    grid: dict[str, Any]
    seed: Seed
    readout: dict[str, Any]
    tracking: dict[str, Any]
    cluster: dict[str, Any]
    paths: dict[str, Any]
    device: Any
    activations: Any
    save_every_min: Any


def load_study(overrides: Sequence[str]) -> Study:
    """Composes a command line, such as `["experiment=demo", "model=tiny"]`, into typed values.

    The command line has the last word: an axis that it sets is not swept by the experiment's cells.
    Raises UserError, in one line, for anything that does not fit together.
    """
    typed = {key_of(override) for override in overrides}
    overrides = understood(overrides)
    config = compose(overrides)
    if "name" in config:
        require_name("name", config["name"])
    _typed(_Shape, config)
    points = _points(config, typed)
    cells = [_cell(point) for point in compose_points(overrides, points)]
    distinct = tuple({cell.id: cell for cell in cells}.values())
    setup = _setup(config, typed)
    check_foreign(distinct, setup, typed)
    for cell in distinct:
        require_apart(cell.data, setup.readout.perplexity)
    return Study(config["name"], distinct, setup, goals_of(config.get("objective"), distinct, setup.readout))


def require_apart(training: TextSpec | None, held_out: TextSpec | None) -> None:
    """Refuses text of the hub that a model would be trained on and then read on.

    Documents of one split are told apart by their own text, if both keys say that there is one split.
    """
    if not (isinstance(training, HubText) and isinstance(held_out, HubText)):
        return
    if (training.repo, training.subset, training.train_split) != (
        held_out.repo,
        held_out.subset,
        held_out.heldout_split,
    ):
        return
    if training.has_one_split and held_out.has_one_split:
        return
    split = training.train_split
    remedies = [
        *([f"data.heldout_split={split}"] if not training.has_one_split else []),
        *([f"readout.perplexity.train_split={split}"] if not held_out.has_one_split else []),
    ]
    remedy = f"set {' and '.join(remedies)}, which holds one document of ten out of training"
    if held_out.separator is not None or training.separator is not None:
        remedy = "choose another split or text"  # joined rows are no documents
    raise UserError(
        f"split {split} of {training.repo} is calibration text, and log perplexity would be read on it too; {remedy}"
    )


def _points(config: Mapping[str, Any], typed: set[str]) -> list[list[str]]:
    """The override lists of an experiment's cells; a single empty one for a command line that names no experiment."""
    cells, only = config["cells"] or [], config["only"] or {}
    if not cells:
        if only:
            raise UserError(f"only={only} keeps a part of an experiment's cells; add experiment=...")
        return [[]]
    for key in [key for product in cells for key in product]:
        if key.partition(".")[0] in SETUP:
            raise UserError(f"cells.{key}: all cells of a study have the same {key}; type {key}=... beside cells")
    choices = choices_of(cells)
    for axis, words in choices.items():
        if not words:
            raise UserError(f"cells.{axis}=[] names no choice; name one, or leave {axis} out")
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
    if kind == FOREIGN:
        return _typed(Cell, {**facts, "model": foreign_model(config["model"], config["paths"])})
    if kind != "none":
        facts |= {"objective": _objective(config), "grid": config["grid"]}
        facts |= {"scope": config["scope"]["part"], "partial_scope": config["scope"]["partial"]}
    if kind == "minmax":
        # Nothing is trained, so only the parent's width matters: bits=matquant and bits=int8 are the same codes.
        parent_bits = facts["objective"]["parent_bits"]
        facts["objective"] = {"parent_bits": parent_bits, "terms": {str(Slice(parent_bits)): 1.0}}
    if _reads_text(config["base"]):
        facts |= {"data": config.get("data"), "seed": config["seed"]}
    return _typed(Cell, facts)


def _reads_text(base: Mapping[str, Any]) -> bool:
    """True for a base that is fitted on text, in an order drawn from the seed."""
    match base.get("kind"):
        case "none" | "minmax":
            return False
        case "search":
            return base.get("importance") != "plain"
        case _:
            return True


def _objective(config: Mapping[str, Any]) -> dict[str, Any]:
    """bits x weights x distill x extra_bit x slicing -> terms.

    Without named weights (weights=uniform) every width weighs 1.  An explicit baseline has one width, so it has neither
    a teacher nor an overflow bucket nor a rule of slicing, whatever the other axes say: they can be swept together.
    """
    parent_bits, widths = config["bits"]["parent_bits"], [_width(text) for text in config["bits"]["widths"]]
    weights = {_width(text): weight for text, weight in config["weights"].items()}
    trained = ", ".join(map(str, widths))
    if unused := [width for width in weights if width not in widths]:
        without = " ".join(f"~weights.{width}" for width in unused)
        raise UserError(
            f"weights.{unused[0]}={weights[unused[0]]}, but {unused[0]} is not trained (bits trains {trained}); "
            f"leave out what is not trained ({without}), or choose weights=uniform"
        )
    for width, weight in weights.items():
        if not weight > 0:
            others = ",".join(str(other) for other in widths if other != width)
            raise UserError(
                f"weights.{width}={weight:g}, but weights are positive; choose weights=uniform, or leave {width} out: "
                f"~weights.{width} bits.widths=[{others}]"
            )
    if weights and (forgotten := [width for width in widths if width not in weights]):
        remedy = " ".join(f"+weights.{width}=1.0" for width in forgotten)
        raise UserError(f"no weight for {', '.join(map(str, forgotten))} (bits trains {trained}); add {remedy}")
    extra, rule = bool(config["extra_bit"]), config.get("slicing", EQ_6)
    if extra and rule != EQ_6:
        raise UserError(
            f"slicing={rule} fills no overflow bucket, which extra_bit=on keeps; set extra_bit=off or slicing={EQ_6}"
        )

    def read(width: Slice) -> Slice:
        return Slice(width.bits, extra, rule) if width.bits < parent_bits else width

    terms = {str(read(width)): weights.get(width, 1.0) for width in widths}
    for text in config["distill"]["terms"] if len(widths) > 1 else []:
        try:
            term = Term.parse(text)
        except ValueError as error:
            raise UserError(f"distill.terms: {error}") from error
        if term.teacher is None:
            raise UserError(f"distill.terms: {text} names no teacher; write {text}->2 for a teacher of {text} bits")
        for part in (term.slice, term.teacher):
            if part.extra_precision:
                raise UserError(f"distill has a term {text}; write it without +ep and choose extra_bit=on")
            if part.rule != EQ_6:
                raise UserError(f"distill has a term {text}; write it without _{part.rule} and set slicing={part.rule}")
            if part not in widths:
                wider = f" bits.parent_bits={part.bits}" if part.bits > parent_bits else ""
                raise UserError(
                    f"distill has a term {text}, but {part} is not trained (bits trains {trained}); "
                    f"choose distill=none, or train it with bits.widths=[{','.join(map(str, [*widths, part]))}]{wider}"
                )
        student = read(term.slice)
        assert term.teacher is not None
        # Teachers are read by the same rule, and without the overflow bucket.
        teacher = term.teacher if extra else read(term.teacher)
        # Equally weighted with the ground truth of the same width (Section 5.2).
        terms[str(Term(student, teacher=teacher))] = weights.get(term.slice, 1.0)
        if config["distill"]["replaces_ground_truth"]:
            terms.pop(str(student), None)
    return {"parent_bits": parent_bits, "terms": terms}


def _width(text: Any) -> Slice:
    try:
        width = Slice.parse(as_typed(text))
    except ValueError as error:
        raise UserError(f"bits and weights: {error}") from error
    if width.extra_precision or width.rule != EQ_6:
        axis = "extra_bit=on" if width.extra_precision else f"slicing={width.rule}"
        raise UserError(f"bits and weights: {width} is int{width.bits} with {axis}; write int{width.bits}")
    return width


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
        if place.startswith("readout.gen_kwargs"):
            place = "readout.gen_kwargs"
            message = "Input should be settings by name; write readout.gen_kwargs='{temperature: 0.7, do_sample: true}'"
        elif first["type"] in SECTION_EXPECTED and place != "" and "cells" not in place:
            sign = "++" if place in OPEN else ""
            message += f", a section with values of its own; set one of them: {sign}{place}.NAME=VALUE"
        if first["type"] in ("list_type", "tuple_type"):
            message = f"Input should be a valid list; write {place}=[...]"
        if first["type"] == "path_type":
            message = "Input should be a path"
        given, single = first["input"], first["type"] in SINGLE_EXPECTED
        if single and isinstance(given, (list, tuple)) and given:
            message = f"{message}, and this is a list; write {place}={as_typed(given[0])}"
        hidden = isinstance(given, dict) or (isinstance(given, (list, tuple)) and not single)
        start = place if hidden or not place else f"{place}={as_typed(given)}"
        raise UserError(f"{start}: {message}" if place else message) from error


def _keys(place: tuple[int | str, ...], value: Any) -> Iterator[str]:
    """The keys that lead to an error's place, as a user types them.

    pydantic names the chosen member of a union among them; no user typed that word.
    """
    for part in place:
        if isinstance(value, Mapping) and part not in value and value.get("kind") == part:
            continue
        value = value.get(part) if isinstance(value, Mapping) else None
        yield str(part)
