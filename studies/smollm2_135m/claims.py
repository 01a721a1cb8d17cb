"""The claims of MatQuant (arXiv:2502.06786v3) and MatGPTQ (arXiv:2602.03537) that the study of SmolLM2-135M tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from analysis.claims import judges
from analysis.claims.cases import Case, Claim
from analysis.claims.evidence import ReadOut
from analysis.frame.names import BASE_NAMES

FFN = {"scope": "ffn"}
PLAIN = {**FFN, "weights": "1, 1, 1"}
ATTENTION = {"scope": "ffn_attention"}
MATGPTQ = {"objective": "{int8: 1, int4: 1, int3: 1}"}
"""MatGPTQ as published: R = {8, 4, 3}, the parent's outputs to the next block."""

SEEDS = {base: ("headline_seeds", f"{base}_seeds") for base in ("omniquant", "qat")}
"""The experiments with several seeds of an algorithm: int2 with many documents, all widths with fewer."""

INT2_CHECKS = (
    ("omniquant_ablations", "0.1, 0.1, 1", "weights (0.1, 0.1, 1)"),
    ("omniquant_budget", "1, 1, 1", "4 x the budget"),
    ("omniquant_budget", "0.1, 0.1, 1", "4 x the budget, weights (0.1, 0.1, 1)"),
)
"""Checks of two causes, too small a weight in the loss and too little training; added after the claim had failed."""

WIDE = {"omniquant": ("headline", "omniquant"), "qat": ("headline_qat", "qat"), "gptq": ("gptq",)}
"""The experiments that measure the widths of an algorithm: with many documents, else with fewer."""

ATTENTION_BUDGETS = (
    ("qat", "ffn_attention", ""),
    ("qat", "attention_budget", ", check: 3 x the budget"),
    ("omniquant", "ffn_attention", ""),
)
"""Budgets with attention: the first, and a larger one, added after the claim had failed at the first."""

TABLES = {"omniquant": 1, "qat": 2}
EXTRA_TABLES = {"omniquant": 7, "qat": 30}
LAYOUTS = ("reverse_pyramid", "increasing", "decreasing")
BUDGETS = ("2.5", "3", "4")
LAYOUT_CHECKS = (("mixnmatch_seeds", "three seeds"), ("mixnmatch_budget", "4 x the budget"))
"""Checks of two causes, a single training and too little of it; added after the claim had failed."""

SEARCHED = ("3",)
CHECKPOINTS = {"omniquant": "OmniQuant {8, 4, 2}", "gptq": "MatGPTQ {8, 4, 3}"}


def read(base: str, method: str, plan: str, facts: Mapping[str, str] = FFN) -> ReadOut:
    return ReadOut(base, method, plan, facts)


def mixed(base: str, layout: str, budget: str) -> ReadOut:
    return read(base, f"Mix'n'Match {layout.replace('_', ' ')}", f"{layout}@{budget}")


def _within() -> Iterator[Case]:
    for base, table in TABLES.items():
        for plan in ("int8", "int4"):
            ours, theirs = read(base, "MatQuant", plan), read(base, "Baseline", plan)
            yield Case(f"{BASE_NAMES[base]}, {plan}", WIDE[base], judges.within, ours, (theirs,), table)


def _int2() -> Iterator[Case]:
    for base, table in TABLES.items():
        ours, theirs = read(base, "MatQuant", "int2"), read(base, "Baseline", "int2")
        yield Case(f"{BASE_NAMES[base]}, int2", (*SEEDS[base], base), judges.above, ours, (theirs,), table)
    for home, weights, what in INT2_CHECKS:
        ours = read("omniquant", "MatQuant", "int2", {**FFN, "weights": weights})
        theirs = read("omniquant", "Baseline", "int2")
        yield Case(f"OmniQuant, int2, check: {what}", (home,), judges.above, ours, (theirs,))


def _collapse() -> Iterator[Case]:
    for base in (*TABLES, "gptq"):
        ours, theirs = read(base, "Sliced int8", "int2"), read(base, "Baseline", "int2")
        where = f"{BASE_NAMES[base]}, int8 at int2"
        yield Case(where, WIDE[base], judges.collapsed, ours, (theirs,), TABLES.get(base))


def _sliced() -> Iterator[Case]:
    for base in (*TABLES, "gptq"):
        ours, theirs = read(base, "Baseline", "int4"), read(base, "Sliced int8", "int4")
        where = f"{BASE_NAMES[base]}, int4 Baseline above int8 at int4"
        yield Case(where, WIDE[base], judges.above, ours, (theirs,), TABLES.get(base))


def _interpolation() -> Iterator[Case]:
    for base, table in TABLES.items():
        for plan, wider, narrower in (("int6", "int8", "int4"), ("int3", "int4", "int2")):
            neighbours = read(base, "MatQuant", wider), read(base, "MatQuant", narrower)
            ours, theirs = read(base, "MatQuant", plan), read(base, "Baseline", plan)
            where = f"{BASE_NAMES[base]}, {plan}"
            yield Case(f"{where}, between {wider} and {narrower}", WIDE[base], judges.between, ours, neighbours)
            yield Case(f"{where}, as good as its Baseline", WIDE[base], judges.not_below, ours, (theirs,), table)


def _single_precision() -> Iterator[Case]:
    for base, home, check in (
        ("omniquant", "omniquant", ""),
        ("omniquant", "omniquant_budget", ", check: 4 x the budget"),
        ("qat", "qat", ""),
    ):
        for rival, facts in (("MatQuant", PLAIN), ("Baseline", FFN)):
            ours, theirs = read(base, "Single Precision", "int2"), read(base, rival, "int2", facts)
            where, table = f"{BASE_NAMES[base]}, int2, against {rival}{check}", 5 if not check else None
            yield Case(where, (home,), judges.not_below, ours, (theirs,), table)


def _extra_precision() -> Iterator[Case]:
    for base in TABLES:
        name, ours = BASE_NAMES[base], read(base, "MatQuant + Extra Precision", "int2+ep")
        theirs = read(base, "MatQuant", "int2")
        yield Case(f"{name}, int2+ep, against int2", (base,), judges.above, ours, (theirs,), EXTRA_TABLES[base])
        untrained = read("minmax", "Baseline", "int8")
        yield Case(f"{name}, int2+ep, effective bits", (base,), judges.bits, ours, (untrained,))
        with_bucket, where = read(base, "MatQuant", "int2+ep"), f"{name}, check: MatQuant read with the bucket"
        yield Case(f"{where}, against int2", ("extra_level",), judges.above, with_bucket, (theirs,))
        where = f"{name}, check: trained with the bucket, against read with it"
        yield Case(where, ("extra_level",), judges.above, ours, (with_bucket,))


def _distillation() -> Iterator[Case]:
    for terms in ("8, 4, 8->2", "8, 4, 2, 8->2", "8, 4, 2, 8->4, 8->2"):
        ours = read("omniquant", f"MatQuant [{terms}]", "int2", PLAIN)
        theirs = read("omniquant", "MatQuant", "int2", PLAIN)
        where = f"OmniQuant, int2, [{terms}]"
        yield Case(where, ("omniquant_ablations",), judges.above, ours, (theirs,), 4)


def _pyramid() -> Iterator[Case]:
    for base, home, budget, check in (
        *((base, "mixnmatch", budget, "") for base in CHECKPOINTS for budget in BUDGETS),
        *(("omniquant", home, "3", f", check: {what}") for home, what in LAYOUT_CHECKS),
    ):
        theirs = tuple(mixed(base, layout, budget) for layout in LAYOUTS)
        where = f"{CHECKPOINTS[base]}, {budget} bits{check}"
        yield Case(where, (home,), judges.best_of, mixed(base, "pyramid", budget), theirs)


def _search() -> Iterator[Case]:
    for base, name in CHECKPOINTS.items():
        for budget in SEARCHED:
            uniform = (read(base, "MatQuant", f"int{budget}"),) if budget.isdigit() else ()
            theirs = (mixed(base, "pyramid", budget), *uniform)
            where = f"{name}, {budget} bits"
            yield Case(where, ("mixnmatch",), judges.best_of, mixed(base, "evolution", budget), theirs)


def _codes() -> Iterator[Case]:
    for base in TABLES:
        ours, theirs = read(base, "MatQuant", "int8"), read(base, "Baseline", "int8")
        yield Case(f"{BASE_NAMES[base]}, int8 codes", (base,), judges.higher_codes, ours, (theirs,))


def _attention() -> Iterator[Case]:
    for base, home, check in ATTENTION_BUDGETS:
        for method in ("MatQuant", "Single Precision"):
            ours, theirs = read(base, method, "int2", ATTENTION), read(base, "Baseline", "int2", ATTENTION)
            where, table = f"{BASE_NAMES[base]}, {method} at int2", 6 if base == "qat" and not check else None
            yield Case(f"{where}, trains or fails{check}", (home,), judges.trained, ours, (theirs,))
            yield Case(f"{where}, against its baseline{check}", (home,), judges.above, ours, (theirs,), table)


def _matgptq() -> Iterator[Case]:
    for plan in ("int8", "int4"):
        ours, theirs = read("gptq", "MatQuant", plan, MATGPTQ), read("gptq", "Baseline", plan)
        yield Case(f"{plan}, against GPTQ at {plan}", WIDE["gptq"], judges.within, ours, (theirs,))
    ours = read("gptq", "MatQuant", "int3", MATGPTQ)
    theirs = read("gptq", "Baseline", "int3")
    yield Case("int3, against GPTQ at int3", WIDE["gptq"], judges.above, ours, (theirs,))
    where = "int3, against GPTQ at int3, check: 8 x the text"
    yield Case(where, ("gptq_budget",), judges.above, ours, (theirs,))
    sliced = read("gptq", "Sliced int8", "int3")
    yield Case("int3, against GPTQ at int8, sliced", WIDE["gptq"], judges.above, ours, (sliced,))


CLAIMS = (
    Claim("int8 and int4 of MatQuant are within 0.5 points of their baselines", "MatQuant, Tables 1, 2", (*_within(),)),
    Claim("int2 of MatQuant is above its baseline", "MatQuant, Tables 1, 2", (*_int2(),)),
    Claim("Sliced int8 collapses at int2", "MatQuant, Tables 1, 2", (*_collapse(),)),
    Claim("Sliced int8 loses to an explicit int4", "MatQuant, Section 4.1; Tables 1, 2", (*_sliced(),)),
    Claim("int6 and int3 interpolate", "MatQuant, Tables 1, 2; Figure 1b", (*_interpolation(),)),
    Claim("Single Precision is at least as good at int2", "MatQuant, Table 5", (*_single_precision(),)),
    Claim("Extra Precision gains at about 2.05 effective bits", "MatQuant, Tables 7, 30", (*_extra_precision(),)),
    Claim("Co-distillation helps", "MatQuant, Table 4", (*_distillation(),)),
    Claim("The pyramid beats the other layouts", "MatQuant, Figures 2, 3", (*_pyramid(),)),
    Claim("Codes move to higher buckets", "MatQuant, Figures 1c, 4", (*_codes(),)),
    Claim("FFN + attention int2 trains where its baseline fails", "MatQuant, Table 6", (*_attention(),)),
    Claim("MatGPTQ is close to GPTQ at high bits and better at 3", "MatGPTQ, abstract", (*_matgptq(),)),
    Claim("Searched widths beat the pyramid and the uniform width", "MatGPTQ, abstract", (*_search(),)),
)
