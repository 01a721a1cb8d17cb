"""The part of the GPU check that fits two blocks, small and on the CPU."""

from __future__ import annotations

import torch

from benchmarks.gpu import fits
from benchmarks.gpu.lines import Line, Scale
from benchmarks.gpu.subjects import SHAPES, Subject
from evaluation.planning.work import size_of

SMALL = Scale(torch.device("cpu"), small=True)


def test_every_fit_is_measured_beside_its_estimate():
    lines = list(fits.fits(SMALL))
    assert [line.failed for line in lines if line.failed] == []
    said = {line.what: line for line in lines}
    for model in SHAPES:
        for what in ("OmniQuant: a step", "OmniQuant: the fit", "GPTQ: the fit", "QAT: a step", "QAT: the fit"):
            line = said[f"{model}, {what}"]
            assert line.value is not None
            assert (line.against_what, line.against is None) == ("estimate", False)
    assert "Gemma-2 9B, OmniQuant: a compiled step" in said
    assert "Gemma-2 9B, per_channel: the search for the ends of down_proj" in said


def test_a_fit_that_fails_costs_its_own_lines_alone(monkeypatch):
    def failing(_):
        yield Line("first", 1.0)
        raise RuntimeError("no memory")

    def other(_):
        yield Line("second", 2.0)

    measurements = [fits.Measurement(name, fits.GEMMA, 1, lines) for name, lines in (("a", failing), ("b", other))]
    monkeypatch.setattr(fits, "MEASUREMENTS", measurements)
    first, failed, second = fits.fits(SMALL)
    assert (first.what, second.what) == ("first", "second")
    assert "no memory" in failed.failed


def test_what_does_not_fit_into_the_time_is_said_and_left_out(monkeypatch):
    monkeypatch.setattr(fits, "LIMIT_S", 3.0)
    lines = list(fits.fits(Scale(torch.device("cpu"), small=False)))
    assert len(lines) == len(fits.MEASUREMENTS)
    assert all("left out" in line.note and not line.failed for line in lines)


def test_models_have_the_shapes_that_their_names_say():
    for name, weights_in_block in (("Gemma-2 9B", 3 * 3584 * 14336), ("Llama-3.1 8B", 3 * 4096 * 14336)):
        job = Subject(name, Scale(torch.device("cpu"), small=False)).job("base=gptq_paper")
        size = size_of(job.cell, job.setup.paths.cache)
        assert (size.in_block, size.layers) == (weights_in_block, fits.BLOCKS)
