"""Kills a sweep at chosen and at random moments; its results are those of an undisturbed run all the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from tests.moments import BLOCK, RESULT, STEP, Moment, Plan
from tests.sweeps import STUDY, bits, launch, leftovers, states, undisturbed

SWEEP = (*STUDY, "readout.tasks=[piqa,winogrande]", "cluster.evaluate_jobs=2")
LAUNCHER, CONTROLLER, WORKER = ("launcher",), ("controller",), ("worker",)
ALL = (*LAUNCHER, *CONTROLLER, *WORKER)

CHOSEN = (
    # While it is launched: the code half copied, a job recorded and not started, a job started and not recorded.
    Moment("launcher", r"/\.snapshots/", 20, victims=LAUNCHER, half=True),
    Moment("launcher", r"/train\.job\.json$", 1, ("rename",), victims=LAUNCHER),
    Moment("launcher", r"/train\.job\.json$", 2, ("rename",), victims=LAUNCHER),
    # Before the job has said a word, and before it has computed anything.
    Moment("controller", r"_log\.out$", victims=CONTROLLER),
    Moment("worker", r"^matquant\.training\.train$", 1, ("import",), victims=WORKER),
    Moment("worker", r"/cell\.json$", 1, ("rename",), victims=LAUNCHER),
    # In a step's line of the log, between a block and its place, and in the middle of writing a block.
    Moment("worker", STEP, 2, victims=WORKER, half=True),
    Moment("worker", BLOCK, 1, ("rename",), victims=ALL),
    Moment("worker", STEP, 3, victims=CONTROLLER),
    Moment("worker", BLOCK, 1, ("rename",), victims=(*LAUNCHER, *WORKER), half=True),
    Moment("worker", r"/checkpoint/nested\.safetensors$", 1, ("rename",), victims=LAUNCHER),
    Moment("worker", r"/checkpoint/nested\.json$", 1, ("rename",), victims=(*CONTROLLER, *WORKER)),
    # Between two results, and in the middle of writing one.
    Moment("worker", RESULT, 2, ("rename",), victims=WORKER, half=True),
    Moment("worker", RESULT, 1, ("rename",), victims=ALL),
)


def at_random(draw: random.Random, num_events: int) -> Moment:
    """A moment at any write or rename of a worker, with one victim more often than several."""
    victims = draw.choice([LAUNCHER, LAUNCHER, WORKER, (*LAUNCHER, *WORKER), ALL])
    return Moment("worker", r"/(runs|results)/", draw.randint(1, num_events), victims=victims)


def disturb(folder: Path, moments: Sequence[Moment]) -> tuple[list[list[str]], Sequence[Moment]]:
    """Launches a sweep until it is done; returns the roles that were killed, and the moments that did not come."""
    plan = Plan(folder / "moments", moments)
    # Asked to: what was killed twice with nothing saved in between is not submitted again otherwise.
    while launch(folder, *SWEEP, "--retry-failed", check=False, plan=plan).returncode != 0:
        pass
    plan.wait_for_end("controller", "worker")
    return plan.taken(), moments[len(moments) - plan.left() :]


def test_twenty_kills_at_chosen_and_random_moments_change_no_bit_and_leave_nothing_behind(tmp_path, shared_folder):
    expected = undisturbed(shared_folder, "killed", *SWEEP)
    draw, moments, taken, sweeps = random.Random(0), CHOSEN, [], 0
    while moments or sum(map(len, taken)) < 20 or sweeps < 2:
        folder = tmp_path / f"disturbed-{sweeps}"
        chosen = moments
        hit, moments = disturb(folder, chosen or [at_random(draw, 40) for _ in range(3)])
        assert hit or not chosen, f"a whole sweep went by without {chosen[0]}"
        taken, sweeps = taken + hit, sweeps + 1
        assert set(states(folder, *SWEEP)) == {"done"}
        assert bits(folder) == expected
        assert not leftovers(folder)
    assert [sorted(roles) for roles in taken[: len(CHOSEN)]] == [sorted(moment.victims) for moment in CHOSEN]
    assert sum(map(len, taken)) >= 20
