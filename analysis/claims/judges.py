"""Judges: each applies one rule of `verdicts` to measured read-outs, and words the measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.claims import verdicts
from analysis.claims.evidence import (
    NARROW,
    NOT_MEASURED,
    Finding,
    Judge,
    MeasuredReadOut,
    below_unigram,
    noise_between,
    over_chance,
    paired_gains,
    places,
    signed,
)
from analysis.claims.margins import MARGIN_RULES
from analysis.claims.verdicts import Gain, PairedGains
from analysis.frame.code_counts import bucket_shares

# --- words -----------------------------------------------------------------------------------------------------------


def p_text(gain: Gain) -> str:
    """A p-value in words; below 0.001 its size depends on tails that nobody has measured."""
    return f"p = {gain.p_value:.2g}" if gain.p_value >= 0.001 else "p < 0.001"


def nats(gain: Gain) -> str:
    """`−0.31 ± 0.02 nats (p < 0.001)`: ours minus theirs, so that less is better; a digit more if that is zero."""
    form = ".2f" if gain.stderr >= 0.005 else ".3f"
    return f"{signed(-gain.mean, form)} ± {gain.stderr:{form}} nats ({p_text(gain)})"


def points(gain: Gain) -> str:
    """`Task Avg +0.4 ± 1.1 (p = 0.7)`: ours minus theirs in percent points."""
    return f"Task Avg {signed(100 * gain.mean, '.1f')} ± {100 * gain.stderr:.1f} ({p_text(gain)})"


def noise_text(found: PairedGains) -> str:
    """`; by training alone up to 0.84 nats, 3.8 points`; empty if it is unknown."""
    if not (found.log_pplx.noise or found.task_avg.noise):
        return ""
    return f"; by training alone up to {found.log_pplx.noise:.2f} nats, {100 * found.task_avg.noise:.1f} points"


def difference_text(found: PairedGains) -> str:
    """The differences in both measures, and those of each seed if there are several."""
    text = f"{nats(found.log_pplx)}, {points(found.task_avg)}{noise_text(found)}"
    if not found.log_pplx.by_seed:
        return text
    log_pplx = ", ".join(signed(-gain, ".2f") for gain in found.log_pplx.by_seed)
    task_avg = ", ".join(signed(100 * gain, ".1f") for gain in found.task_avg.by_seed)
    return f"{text}; mean of {len(found.log_pplx.by_seed)} seeds, each: {log_pplx} nats; {task_avg} points"


# --- what a claim asks -----------------------------------------------------------------------------------------------


def above(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    found = paired_gains(ours, theirs[0])
    return Finding(difference_text(found), verdicts.directional(found))


def within(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    found = paired_gains(ours, theirs[0])
    low, high = (signed(100 * end, ".1f") for end in found.task_avg.wary_interval)
    text = f"Task Avg {signed(100 * found.task_avg.mean, '.1f')} [{low}, {high}], {nats(found.log_pplx)}"
    return Finding(text + noise_text(found), verdicts.equivalent(found))


def not_below(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    found = paired_gains(ours, theirs[0])
    worst = signed(-found.log_pplx.interval[0], ".2f"), signed(100 * found.task_avg.interval[0], ".1f")
    text = f"{difference_text(found)}; at worst {worst[0]} nats, {worst[1]} points"
    return Finding(text, verdicts.at_least_as_good(found))


def collapsed(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    found, chance = paired_gains(ours, theirs[0]), over_chance(ours)
    text = (
        f"{ours.log_pplx:.2f} against {theirs[0].log_pplx:.2f}: {nats(found.log_pplx)}; Task Avg "
        f"{100 * ours.task_avg:.1f}, over chance without BoolQ {signed(100 * chance.mean, '.1f')} ± "
        f"{100 * chance.stderr:.1f} ({p_text(chance)}); the other's {100 * theirs[0].task_avg:.1f}"
    )
    return Finding(text, verdicts.collapses(found, chance))


def between(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    """Judges an interpolated width; `theirs`: the wider and the narrower trained width of the checkpoint."""
    wider, narrower = theirs
    to_wider, to_narrower = paired_gains(ours, wider).log_pplx, paired_gains(ours, narrower).log_pplx
    text = (
        f"{ours.log_pplx:.2f} between {wider.log_pplx:.2f} and {narrower.log_pplx:.2f}: {nats(to_wider)} from "
        f"{wider.read.plan}, {nats(to_narrower)} from {narrower.read.plan}"
    )
    return Finding(text, verdicts.interpolates(to_narrower, to_wider))


def best_of(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    found = [paired_gains(ours, rival) for rival in theirs]
    pairs = zip(theirs, found, strict=True)
    texts = [f"against {rival.read.name}: {difference_text(comparison)}" for rival, comparison in pairs]
    text = "; ".join([f"{ours.log_pplx:.2f} nats", *texts])
    return Finding(text, verdicts.beats_all(found))


def trained(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    verdict = verdicts.trains_where_the_other_fails(below_unigram(ours), below_unigram(theirs[0]))
    text = f"{ours.log_pplx:.2f} against {theirs[0].log_pplx:.2f} nats; token frequencies: {ours.unigram:.2f}"
    return Finding(text, verdict)


def higher_codes(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    seeds = [seed for seed in ours.codes if seed in theirs[0].codes]
    if not seeds:
        return NOT_MEASURED
    (mean, highest), (their_mean, their_highest) = (
        np.mean([places(read.codes[seed]) for seed in seeds], axis=0) for read in (ours, theirs[0])
    )
    text = (
        f"mean code {mean:.3f} against {their_mean:.3f}; highest {NARROW} bucket {100 * highest:.3f} % against "
        f"{100 * their_highest:.3f} % of the weights"
    )
    moves = (float(mean - their_mean), float(highest - their_highest))
    training = noise_between(ours, theirs[0])
    if training is None:
        return Finding(text, verdicts.codes_move_up(moves))
    reach = training.reach(len(seeds))
    noise = (reach * training.codes[0], reach * training.codes[1])
    text += f"; by training alone up to {noise[0]:.3f} and {100 * noise[1]:.3f} %"
    return Finding(text, verdicts.codes_move_up(moves, noise))


def bits(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    """Judges effective bits; `theirs`: a parent rounded to nearest, whose overflow does not come from training."""
    text = f"{ours.effective_bits:.3f} bits"
    for codes in (codes for read in theirs for codes in read.codes.values()):
        text += f"; the same grid untrained: {NARROW.bits + bucket_shares(codes, NARROW)[-1]:.3f}"
    return Finding(text, verdicts.about_two(ours.effective_bits))


RULE_OF: Mapping[Judge, str] = {
    above: "Above, helps, gains, beats",
    within: "Within 0.5 points, close to",
    not_below: "At least as good",
    between: "Interpolates",
    collapsed: "Collapses",
    best_of: "Beats all others",
    trained: "Trains where its baseline fails",
    higher_codes: "Codes move to higher buckets",
    bits: "About 2.05 effective bits",
}
"""The name of the rule, in `verdicts.RULES`, that a judge applies."""


def rules_of(judges: Iterable[Judge]) -> dict[str, Callable[..., Any]]:
    """The rules that some judges apply, by name, in the order of `verdicts.RULES` and after them those of margins."""
    used = set(judges)
    names = {RULE_OF[judge] for judge in used if judge in RULE_OF}
    of_margins = {name: rule for name, rule in MARGIN_RULES.items() if rule in used}
    return {name: rule for name, rule in verdicts.RULES.items() if name in names} | of_margins
