"""The part `evaluation` of the GPU check, small and on the CPU."""

from __future__ import annotations

import re

import torch

from benchmarks.gpu.evaluation import Work, evaluation, flips, questions
from benchmarks.gpu.guard import guarded
from benchmarks.gpu.lines import Line, Scale

SMALL = Scale(torch.device("cpu"), small=True)


def test_the_part_measures_and_nothing_fails():
    lines = {line.what: line for line in evaluation(SMALL)}
    assert not [line for line in lines.values() if line.failed]
    assert lines["documents a second, batch 8"].note == "shared contexts: yes"
    assert lines["log-likelihoods in float32"].against == 1e-3
    assert lines["tokens a second of held-out text"].value
    assert lines["documents a second behind 60 words of examples, batch 8"].note == "kept beginnings: yes"
    assert lines["divergence of the model from itself"].value < 1e-9
    assert lines["text compared with a teacher"].against_what == "estimate"


def test_every_document_has_four_answers_to_one_context():
    requests = questions(Work.of(SMALL), 3)
    assert [request.doc_id for request in requests] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert len({request.args[0] for request in requests}) == 3


def test_a_document_that_chooses_another_answer_is_counted():
    assert flips([0, 1, 2, 3, 9, 0, 0, 0], [0, 1, 2, 3, 0, 9, 0, 0]) == 1


def test_an_error_in_one_measurement_is_a_line_after_those_that_it_found():
    def broken():
        yield Line("first", 1.0)
        raise RuntimeError("no\nkernel")

    first, last = guarded("second", broken)
    assert first.what == "first"
    assert last.what == "second"
    assert re.fullmatch(r"RuntimeError at gpu/test_gpu_evaluation.py:\d+: no kernel", last.failed)
