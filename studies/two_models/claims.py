"""The claims of design.md as data: what is held against what, on which model and grid, by which rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from analysis.claims import margins
from analysis.claims.cases import Case, Claim
from analysis.claims.evidence import Judge, ReadOut
from analysis.frame.names import BASE_NAMES

MODELS = {"smollm2_135m": "SmolLM2", "gemma3_270m": "Gemma"}
GRIDS = {"64": "groups of 64", "None": "per channel"}
ALGORITHMS = ("omniquant", "gptq", "qat")
ON_TRAINED_CODES = ("omniquant", "gptq")
SUITED: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("smollm2_135m", "64"): {"grid__zero": "aligned_int2", "grid__headroom": "full"},
    ("smollm2_135m", "None"): {"grid__zero": "aligned_int2", "grid__headroom": "full"},
    ("gemma3_270m", "64"): {"grid__zero": "aligned_int4", "grid__headroom": "int4"},
    ("gemma3_270m", "None"): {"grid__zero": "real", "grid__headroom": "int3"},
}
"""The grid that suits slices of an untrained int8, by model and group: chosen on tuning text (two_models/choice)."""
CONTROL = {"grid.zero": "real", "grid.headroom": "full"}
PLAIN = {"objective": "{int8: 1, int4: 1, int2: 1}", "weights": "1, 1, 1"}
MATGPTQ = {"objective": "{int8: 1, int4: 1, int3: 1}"}
LONG = "headline_long"
"""The experiment whose rows are read in blocks of 256 tokens, of one seed."""
IN_LONG_BLOCKS = ("int4", "int3", "int2")
LAYOUTS = ("reverse_pyramid", "increasing", "decreasing")
BUDGETS = ("2.5", "3", "4")
SEARCHED = {"smollm2_135m": {"2.5": "2.467", "3": "3"}, "gemma3_270m": {"2.5": "2.445", "3": "3"}}
"""The bits that the pyramid of a budget has on each model, whose blocks are too few for 2.5: searches have no more."""
DISTILLED = ("8, 4, 8->2", "8, 4, 2, 8->2", "8, 4, 2, 8->4, 8->2")


def read(
    base: str, method: str, plan: str, model: str, group: str = "64", experiment: str = "", **facts: str
) -> ReadOut:
    known = {
        "model": model,
        "grid.group_size": group,
        **{name.replace("__", "."): value for name, value in facts.items()},
    }
    if method == "MatQuant":
        known |= {**PLAIN, **facts}
    return ReadOut(base, method, plan, known, experiment)


def home(base: str, group: str) -> str:
    """The experiment in which an algorithm is measured on a grid."""
    return base if group == "64" else "per_channel"


def place(base: str, plan: str, model: str, group: str = "64") -> str:
    where = f"{MODELS[model]}, {BASE_NAMES[base]}, {plan}"
    return where if group == "64" else f"{where}, {GRIDS[group]}"


def _against_baselines(plans: tuple[str, ...], rule: Judge, groups: tuple[str, ...]) -> Iterator[Case]:
    for model in MODELS:
        for group in groups:
            for base in ALGORITHMS:
                for plan in plans:
                    ours, theirs = (read(base, method, plan, model, group) for method in ("MatQuant", "Baseline"))
                    case = Case(place(base, plan, model, group), (home(base, group),), rule, ours, (theirs,))
                    yield case
                    if (base, group) == ("omniquant", "64") and plan in IN_LONG_BLOCKS:
                        yield in_long_blocks(case)


def in_long_blocks(case: Case) -> Case:
    """The same as a check, in blocks of 256 tokens: whether short ones favour a row."""
    ours, theirs = replace(case.ours, experiment=LONG), tuple(replace(one, experiment=LONG) for one in case.theirs)
    where, _, check = case.where.partition(", check: ")
    words = ", ".join(filter(None, [check, "in blocks of 256 tokens"]))
    return replace(case, where=f"{where}, check: {words}", experiments=(LONG,), ours=ours, theirs=theirs)


def _untrained() -> Iterator[Case]:
    """An int8 that was only rounded, on the grid that suits its slices, against MatQuant of OmniQuant."""
    for model in MODELS:
        for group in GRIDS:
            for plan in ("int4", "int3"):
                ours = read("minmax", "Sliced int8", plan, model, group, "suited", **SUITED[model, group])
                theirs = read("omniquant", "MatQuant", plan, model, group)
                where = f"{MODELS[model]}, {plan}, {GRIDS[group]}, against OmniQuant"
                case = Case(where, (home("omniquant", group),), margins.as_good, ours, (theirs,))
                plain = replace(ours, facts={**ours.facts, **CONTROL})
                today = replace(case, where=f"{where}, check: on today's grid", ours=plain)
                yield from (case, today)
                searched = replace(
                    ours, base="search", method="MatQuant", experiment="untrained", facts=_ends(model, group)
                )
                between = replace(case, where=f"{where}, check: between searched ends, untrained", ours=searched)
                yield between
                if group == "64":
                    yield from map(in_long_blocks, (case, today, between))


def _ends(model: str, group: str) -> Mapping[str, str]:
    """The facts of MatQuant whose ranges are those of its slices' smallest error on inputs, without a training step."""
    return {"model": model, "grid.group_size": group, **PLAIN}


def _collapse() -> Iterator[Case]:
    for model in MODELS:
        for group in GRIDS:
            plain = read("minmax", "Sliced int8", "int2", model, group, grid__zero="real", grid__headroom="full")
            yield Case(f"{MODELS[model]}, MinMax, {GRIDS[group]}", ("untrained",), margins.fails, plain)
            suited = read("minmax", "Sliced int8", "int2", model, group, **SUITED[model, group])
            yield Case(f"{MODELS[model]}, suited, {GRIDS[group]}", ("suited",), margins.does_not_fail, suited)


def _single_precision() -> Iterator[Case]:
    for model in MODELS:
        for base in ON_TRAINED_CODES:
            ours = read(base, "Single Precision", "int2", model)
            theirs = read(base, "MatQuant", "int2", model)
            yield Case(place(base, "int2", model), ("objectives",), margins.better, ours, (theirs,))


def _extra_precision() -> Iterator[Case]:
    for model in MODELS:
        for base in ON_TRAINED_CODES:
            ours = read(base, "MatQuant + Extra Precision", "int2+ep", model)
            narrow = read(base, "MatQuant", "int2", model)
            rivals = {
                "int2 in groups of 64 and 32": read(base, "MatQuant", "int2", model, "32"),
                "int2 and int3": read(base, "MatQuant", "int3", model, experiment=base),
            }
            for words, wide in rivals.items():
                where = f"{place(base, 'int2+ep', model)}, against the line of {words}"
                yield Case(where, ("objectives",), margins.better_at_its_size, ours, (narrow, wide))


def _distillation() -> Iterator[Case]:
    for model in MODELS:
        for terms in DISTILLED:
            ours = ReadOut("omniquant", f"MatQuant [{terms}]", "int2", {"model": model, "weights": "1, 1, 1"})
            theirs = read("omniquant", "MatQuant", "int2", model)
            yield Case(f"{MODELS[model]}, OmniQuant, [{terms}]", ("distill",), margins.better, ours, (theirs,))


def _layouts() -> Iterator[Case]:
    for model in MODELS:
        for budget in BUDGETS:
            ours = _mixed("pyramid", budget, model)
            for layout in LAYOUTS:
                where = f"{MODELS[model]}, {budget} bits, against {layout.replace('_', ' ')}"
                yield Case(where, ("mixnmatch",), margins.better, ours, (_mixed(layout, budget, model),))


def _searched() -> Iterator[Case]:
    for model in MODELS:
        for budget, bits in SEARCHED[model].items():
            ours, theirs = _mixed("dynamic_program", bits, model), _mixed("pyramid", budget, model)
            yield Case(f"{MODELS[model]}, {budget} bits", ("mixnmatch",), margins.better, ours, (theirs,))


def _mixed(layout: str, budget: str, model: str) -> ReadOut:
    return ReadOut("omniquant", f"Mix'n'Match {layout.replace('_', ' ')}", f"{layout}@{budget}", {"model": model})


def _matgptq() -> Iterator[Case]:
    for model in MODELS:
        for plan, rule in (("int8", margins.as_good), ("int4", margins.as_good), ("int3", margins.better)):
            ours, theirs = read("gptq", "MatQuant", plan, model, **MATGPTQ), read("gptq", "Baseline", plan, model)
            yield Case(place("gptq", plan, model), ("gptq",), rule, ours, (theirs,))


def _attention() -> Iterator[Case]:
    for model in MODELS:
        for base in ("omniquant", "qat"):
            ours, theirs = (read(base, method, "int2", model) for method in ("MatQuant", "Baseline"))
            yield Case(
                place(base, "int2", model), ("attention",), margins.trains_where_the_baseline_fails, ours, (theirs,)
            )


def _codes() -> Iterator[Case]:
    for model in MODELS:
        for base in ALGORITHMS:
            ours, theirs = read(base, "MatQuant", "int8", model), read(base, "Baseline", "int8", model)
            yield Case(place(base, "int8", model), (base,), margins.highest_bucket_grows, ours, (theirs,))


CLAIMS = (
    Claim(
        "Untrained int8 on a grid that suits slicing is as good as MatQuant at int4 and int3", "ours", (*_untrained(),)
    ),
    Claim(
        "int8 and int4 of MatQuant are as good as their baselines",
        "MatQuant, Tables 1 and 2",
        (*_against_baselines(("int8", "int4"), margins.as_good, ("64",)),),
    ),
    Claim(
        "int2 of MatQuant is better than its baseline",
        "MatQuant, Tables 1 and 2",
        (*_against_baselines(("int2",), margins.better, ("64", "None")),),
    ),
    Claim(
        "Sliced int8 fails at int2 on MinMax grids, not on a suitable one",
        "MatQuant, Tables 1 and 2; ours",
        (*_collapse(),),
    ),
    Claim(
        "int6 and int3 interpolate: as good as their baselines",
        "MatQuant, Tables 1 and 2",
        (*_against_baselines(("int6", "int3"), margins.as_good, ("64",)),),
    ),
    Claim("Single Precision at int2 is better than MatQuant", "MatQuant, Table 5", (*_single_precision(),)),
    Claim("Extra Precision is better than int2 at equal stored bits", "MatQuant, Table 7", (*_extra_precision(),)),
    Claim("Co-distillation improves int2", "MatQuant, Table 4", (*_distillation(),)),
    Claim("The pyramid is better than the other layouts", "MatQuant, Figures 2 and 3", (*_layouts(),)),
    Claim("Searched widths are better than the pyramid", "MatGPTQ", (*_searched(),)),
    Claim(
        "MatGPTQ {8, 4, 3} is as good as GPTQ at int8 and int4, and better at int3", "MatGPTQ, Table 1", (*_matgptq(),)
    ),
    Claim("With attention, int2 of MatQuant trains where its baseline fails", "MatQuant, Table 6", (*_attention(),)),
    Claim("Codes move to higher buckets", "MatQuant, Figure 4", (*_codes(),)),
)
