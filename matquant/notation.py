"""The paper's notation as values that parse and print: slices, loss terms, objectives, read-out plans.

MatQuant (arXiv:2502.06786) trains one c-bit *parent* so that its most significant r bits, read alone, are good r-bit
weights.  The four values below write down everything that a study varies.  Each of them round-trips through text:
`str(Slice.parse("int2+ep")) == "int2+ep"`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

MAX_BITS = 8
Rule = Literal["half_up", "floor", "centre"]
"""The way from a parent's code to a slice's: Eq. 6 rounds half up; `floor` keeps the top bits, plain truncation, and
`centre` reads them half a bucket higher.  The two others are what follow-up papers measured instead; none has a top
bucket to clamp."""
EQ_6: Rule = "half_up"
_RULE = rf"(?:_({'|'.join(rule for rule in get_args(Rule) if rule != EQ_6)}))?"
FULL_BITS = 16  # an unquantized weight, as the papers count it: bfloat16, whatever dtype it is evaluated in


@dataclass(frozen=True, order=True)
class Slice:
    """A width at which codes are read: `int4`, or `int4+ep` with the extra overflow bucket (Eq. 8).

    `int4_floor` and `int4_centre` are read by another rule than Eq. 6.
    """

    bits: int
    extra_precision: bool = False
    rule: Rule = EQ_6

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MAX_BITS:
            raise ValueError(f"int{self.bits} is not a width; choose one from int1 to int{MAX_BITS}")
        if self.extra_precision and self.rule != EQ_6:
            raise ValueError(
                f"{self} has no overflow bucket, which only rounding half up fills; "
                f"write int{self.bits}+ep or int{self.bits}_{self.rule}"
            )

    @classmethod
    def parse(cls, text: str) -> Slice:
        """Reads `int2`, `2`, `int2+ep`, `2+ep` or `int2_floor`."""
        match = re.fullmatch(rf"(?:int)?(\d+)(\+ep)?{_RULE}", str(text).strip())
        if match is None:
            raise ValueError(f"'{text}' is not a slice; write int2, or int2+ep for the extra-precision read-out")
        return cls(int(match[1]), match[2] is not None, _rule_of(match[3]))

    @property
    def short(self) -> str:
        return f"{self.bits}{'+ep' if self.extra_precision else ''}{_suffix(self.rule)}"

    def __str__(self) -> str:
        return f"int{self.short}"


def _rule_of(word: str | None) -> Rule:
    match word:
        case "floor" | "centre":
            return word
        case _:
            return EQ_6


def _other_rule(parts: Iterable[Slice]) -> Rule:
    """The rule of some slices; that of Eq. 6 if none has another."""
    for part in parts:
        if part.rule != EQ_6:
            return part.rule
    return EQ_6


def _suffix(rule: Rule) -> str:
    return "" if rule == EQ_6 else f"_{rule}"


@dataclass(frozen=True)
class Term:
    """One summand of the objective: a slice, its weight lambda, and the wider slice that teaches it, if any."""

    slice: Slice
    weight: float = 1.0
    teacher: Slice | None = None

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(
                f"term {self} has weight {self.weight}, but weights are positive; leave the term out instead"
            )
        if self.teacher is not None and self.teacher.bits <= self.slice.bits:
            raise ValueError(f"term {self} has a teacher that is not wider than its student; write 8->2, not 2->8")

    @classmethod
    def parse(cls, text: str, weight: float = 1.0) -> Term:
        """Reads `int2` (target: the base algorithm's own) or `8->2` (target: the output of the int8 slice)."""
        teacher, arrow, student = str(text).rpartition("->")
        return cls(Slice.parse(student), float(weight), Slice.parse(teacher) if arrow else None)

    def __str__(self) -> str:
        return str(self.slice) if self.teacher is None else f"{self.teacher.short}->{self.slice.short}"


@dataclass(frozen=True)
class Objective:
    """Eq. 7: the weighted sum over terms that the codes of one parent are trained for.

    Baselines are objectives too: the int2 Baseline is `Objective(2, (Term(int2),))`, Sliced int8 is
    `Objective(8, (Term(int8),))` read at narrower slices, Single Precision is `Objective(8, (Term(int2),))`.
    """

    parent_bits: int
    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        parent = Slice(self.parent_bits)
        if not self.terms:
            raise ValueError("an objective needs at least one term, for example {int8: 0.1, int4: 0.1, int2: 1.0}")
        seen: set[str] = set()
        for term in self.terms:
            for part in {term.slice, term.teacher or term.slice}:
                if part.bits > parent.bits:
                    raise ValueError(
                        f"{part} is wider than its {parent} parent; set bits.parent_bits={part.bits} or drop the term"
                    )
            if term.slice.extra_precision and term.slice.bits == parent.bits:
                raise ValueError(
                    f"{term.slice} is the whole parent, which has no overflow bucket; write int{parent.bits}"
                )
            if any(part.bits == parent.bits and part.rule != EQ_6 for part in (term.slice, term.teacher or parent)):
                raise ValueError(f"term {term} reads the whole parent, which no rule changes; write int{parent.bits}")
            if str(term) in seen:
                raise ValueError(f"term {term} is given twice; give it once, with the sum of both weights")
            seen.add(str(term))
        if len(rules := {part.rule for part in self.slices if part.bits < parent.bits}) > 1:
            raise ValueError(f"the terms slice by {' and '.join(sorted(rules))}; codes are trained for one rule")

    @classmethod
    def parse(cls, parent_bits: int, terms: Mapping[str, float]) -> Objective:
        return cls(parent_bits, tuple(Term.parse(text, weight) for text, weight in terms.items()))

    @property
    def slices(self) -> tuple[Slice, ...]:
        """The distinct slices a training step has to read, students and teachers, widest first."""
        parts = {term.slice for term in self.terms} | {term.teacher for term in self.terms if term.teacher is not None}
        return tuple(sorted(parts, reverse=True))

    @property
    def trained(self) -> frozenset[Slice]:
        """The slices that some term optimizes; every other read-out is interpolated."""
        return frozenset(term.slice for term in self.terms)

    @property
    def is_nested(self) -> bool:
        """False for an explicit baseline, which is trained at its parent's own width and nothing else."""
        return self.trained != {Slice(self.parent_bits)}

    @property
    def rule(self) -> Rule:
        """The rule that its slices are trained with; that of Eq. 6 where only the whole parent is."""
        return _other_rule(self.slices)

    def method(self, read: Slice) -> str:
        """The name of the paper's row for this objective read at a slice; rules other than Eq. 6 are named."""
        return f"{self._method(read)}{self.rules(read.rule if read.bits < self.parent_bits else self.rule)}"

    def rules(self, read: Rule) -> str:
        """The end of a row's name: the rule that its slices were trained with, and the one that they are read by.

        Nothing is said of Eq. 6 where both are that.
        """
        trained = "" if self.rule == EQ_6 else f" by {self.rule}"
        return trained if read == self.rule else f"{trained}, read by {read}"

    def _method(self, read: Slice) -> str:
        if not self.is_nested:
            return "Baseline" if read.bits == self.parent_bits else f"Sliced int{self.parent_bits}"
        if len(self.trained) == 1:
            name = "Single Precision"
        elif any(term.teacher for term in self.terms):
            terms = (
                f"{term.teacher.bits}->{term.slice.bits}" if term.teacher else f"{term.slice.bits}"
                for term in self.terms
            )
            name = f"MatQuant [{', '.join(terms)}]"
        else:
            name = "MatQuant"
        return f"{name} + Extra Precision" if self.uses_extra_precision else name

    @property
    def uses_extra_precision(self) -> bool:
        """True if some slice was trained with its overflow bucket, and so has to be read with it."""
        return any(part.extra_precision for part in self.trained)

    def is_interpolated(self, read: Slice) -> bool:
        """True where a jointly trained parent is read at a width between those it was trained for (Section 4.3)."""
        if len(self.trained) < 2 or read.bits in {part.bits for part in self.trained}:
            return False
        return min(self.trained).bits < read.bits < max(self.trained).bits

    @property
    def slug(self) -> str:
        """A readable stem for names on disk: `int2`, `matquant`, `single_precision`."""
        if not self.is_nested:
            return f"int{self.parent_bits}"
        stem = "single_precision" if len(self.trained) == 1 else "matquant"
        return f"{stem}_ep" if self.uses_extra_precision else stem

    def dump(self) -> dict[str, object]:
        return {"parent_bits": self.parent_bits, "terms": {str(term): term.weight for term in self.terms}}


FULL = "full"
STORED = "stored"
"""The read-out of a model whose layers have widths of their own, and no other."""
Layout = Literal["pyramid", "reverse_pyramid", "increasing", "decreasing"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
MIXED_WIDTHS = (2, 4, 8)
STRATEGIES = ("dynamic_program", "dynamic_program_linear", "evolution", "evolution_linear")
"""Searches for the widths of blocks, or of single linear layers (those with the same input together)."""
PLAN_SPELLINGS = [
    FULL,
    *(f"int{bits}{extra}" for bits in range(1, MAX_BITS + 1) for extra in ("", "+ep")),
    *(f"{mixed}@{bits}" for mixed in (*LAYOUTS, *STRATEGIES) for bits in range(2, MAX_BITS + 1)),
]


@dataclass(frozen=True)
class Plan:
    """A read-out of a checkpoint: the slice of each quantized layer.

    `full` leaves the model as it was published, and `stored` reads a foreign one at the widths that it has.  `int4`
    reads every layer at int4.  `pyramid@3` mixes int2, int4 and int8 layers to 3.0 bits on average, the wide ones in
    the middle (Mix'n'Match, Section 3.2).  `+ep` keeps the overflow bucket, and `_floor` and `_centre` are other rules
    than Eq. 6.  `evolution@3` has the widths that a search finds for this checkpoint (`found`).  `DIR/NAME.json` names
    the slice of every layer, {"layers": {"model.layers.0.mlp.up_proj": "int4", ...}}.
    Exactly one of `default`, `layout`, `strategy` and `layers` is set, or none for `full` and `stored`.
    """

    label: str
    default: Slice | None = None
    layout: Layout | None = None
    budget: float | None = None
    extra_precision: bool = False
    strategy: str | None = None
    layers: tuple[tuple[str, Slice], ...] | None = None
    rule: Rule = EQ_6

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Reads `full`, a slice such as `int4`, a layout or a search and its budget (`pyramid@3.0`), or a `*.json`."""
        text = str(text).strip()
        if text in (FULL, STORED):
            return cls(text)
        if text.endswith(".json"):
            return cls._searched(Path(text))
        if match := re.fullmatch(rf"({'|'.join(LAYOUTS + STRATEGIES)})@(\d+(?:\.\d+)?)(\+ep)?{_RULE}", text):
            return cls._mixed(match[1], float(match[2]), extra_precision=match[3] is not None, rule=_rule_of(match[4]))
        try:
            part = Slice.parse(text)
        except ValueError as error:
            near = difflib.get_close_matches(text, PLAN_SPELLINGS, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ";"
            raise ValueError(
                f"'{text}' is not a read-out plan{hint} write full, int4, int2+ep, LAYOUT@BITS such as pyramid@3.0 "
                f"with a layout out of {', '.join(LAYOUTS)} or a search ({', '.join(STRATEGIES)}), or the path of a "
                "plan's json file"
            ) from error
        return cls._plain(part)

    @classmethod
    def of_label(cls, label: str) -> Plan | None:
        """The plan that results name; None for a plan file, whose widths its name does not say.

        A search under other settings than the defaults has their digest in its name; a file has that of its content,
        and may be called as a layout or a width is.
        """
        stem, _, suffix = label.partition("-")
        try:
            plan = cls.parse(stem)
        except ValueError:
            return None
        return None if suffix and plan.strategy is None else replace(plan, label=label)

    @staticmethod
    def typed(label: str) -> str:
        """The plan of results as it is typed: a search without the digest of its settings, a plan file as it is."""
        plan = Plan.of_label(label)
        return label if plan is None or plan.strategy is None else label.partition("-")[0]

    @classmethod
    def stored(cls, average: float) -> Plan:
        """The read-out of layers that have widths of their own, of so many bits on average."""
        return cls(STORED, budget=average)

    @classmethod
    def _plain(cls, part: Slice) -> Plan:
        return cls(str(part), default=part, extra_precision=part.extra_precision, rule=part.rule)

    @classmethod
    def _mixed(cls, mixed: str, budget: float, *, extra_precision: bool = False, rule: Rule = EQ_6) -> Plan:
        narrow, wide = min(MIXED_WIDTHS), max(MIXED_WIDTHS)
        if not narrow <= budget <= wide:
            raise ValueError(
                f"{mixed}@{budget:g} cannot be met by layers of {narrow} to {wide} bits; "
                f"choose a budget from {narrow} to {wide}"
            )
        if extra_precision and rule != EQ_6:
            raise ValueError(
                f"{mixed}@{budget:g}+ep_{rule}: only rounding half up has an overflow bucket; leave out +ep"
            )
        label = f"{mixed}@{budget:g}{'+ep' if extra_precision else ''}{_suffix(rule)}"
        if mixed in LAYOUTS:
            return cls(label, layout=mixed, budget=budget, extra_precision=extra_precision, rule=rule)
        return cls(label, strategy=mixed, budget=budget, extra_precision=extra_precision, rule=rule)

    def under(self, settings: str) -> Plan:
        """The plan of a search with other settings than the defaults, which its name then shows."""
        return replace(self, label=f"{self.label}-{settings}") if settings else self

    def found(self, layers: Mapping[str, str]) -> Plan:
        """The plan of a search, under its own name, with the slices that were found: `layers` of its json."""
        return replace(self, layers=tuple((name, Slice.parse(text)) for name, text in layers.items()))

    @classmethod
    def _searched(cls, path: Path) -> Plan:
        """A plan file; its label is the file's name and eight digits over its contents, wherever it lies."""
        try:
            layers = json.loads(path.expanduser().read_text())["layers"]
            slices = {str(name): Slice.parse(text) for name, text in layers.items()}
        except (OSError, RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path} is not a plan ({error}); a plan is json such as "
                '{"layers": {"model.layers.0.mlp.up_proj": "int4"}} with every quantized layer'
            ) from error
        return cls._of_layers(path.stem, slices)

    @classmethod
    def _of_layers(cls, stem: str, slices: Mapping[str, Slice]) -> Plan:
        facts = json.dumps({name: str(part) for name, part in sorted(slices.items())})
        label = f"{stem}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
        extra = any(part.extra_precision for part in slices.values())
        return cls(label, layers=tuple(slices.items()), extra_precision=extra, rule=_other_rule(slices.values()))

    @property
    def bits(self) -> float:
        """The nominal average width of a quantized weight; for a plan file the plain average over its layers."""
        if self.layers is not None:
            return sum(part.bits for _, part in self.layers) / len(self.layers)
        if self.budget is not None:
            return self.budget
        return FULL_BITS if self.default is None else self.default.bits

    def with_extra_precision(self, parent_bits: int) -> Plan:
        """The same plan with the overflow bucket kept wherever a layer is read narrower than its parent."""
        if self.strategy is not None and self.budget is not None:
            return Plan._mixed(self.strategy, self.budget, extra_precision=True)
        if self.layers is not None:
            slices = {name: Slice(part.bits, part.bits < parent_bits) for name, part in self.layers}
            return Plan._of_layers(self.label.rpartition("-")[0], slices)
        if self.layout is not None and self.budget is not None:
            return Plan._mixed(self.layout, self.budget, extra_precision=True)
        if self.default is None or self.default.bits >= parent_bits:
            return self
        return Plan._plain(Slice(self.default.bits, extra_precision=True))

    def by(self, rule: Rule, parent_bits: int) -> Plan:
        """The same plan with every narrower layer read by a rule; a plan that names a rule or the bucket keeps it.

        No rule changes the whole parent: int8_floor of an int8 parent is int8.
        """
        if self.default is not None and self.default.bits >= parent_bits:
            return self if self.default.rule == EQ_6 else Plan._plain(replace(self.default, rule=EQ_6))
        if rule == EQ_6 or self.rule != EQ_6 or self.extra_precision:
            return self
        if self.layers is not None:
            slices = {name: replace(part, rule=rule) if part.bits < parent_bits else part for name, part in self.layers}
            return Plan._of_layers(self.label.rpartition("-")[0], slices)
        if self.budget is not None:
            return Plan._mixed(self.strategy or self.layout or "", self.budget, rule=rule)
        return self if self.default is None else Plan._plain(replace(self.default, rule=rule))

    def __str__(self) -> str:
        return self.label


def by_eq_6(plan: Plan) -> str:
    """The remedy where a plan's rule cannot be had."""
    return f"choose {plan.label.removesuffix(_suffix(plan.rule))}" if plan.layers is None else "leave the rules out"


def share_text(share: float) -> str:
    """`12 %`; of a share near none or all as many digits as tell it from them, such as `0.4 %` and `99.96 %`."""
    digits = next((digits for digits in range(9) if 0 < float(f"{100 * share:.{digits}f}") < 100), 0)
    return f"{100 * share:.{digits}f} %"
