"""Documents longer than the model: refused before it runs, or measured cut under a protocol of their own."""

from __future__ import annotations

import json

import pytest
import torch

from evaluation.planning import preflight
from evaluation.protocol import protocols
from evaluation.sources.loading import load_tasks
from evaluation.sources.wheel import WheelSource
from evaluation.stages import run_cell
from evaluation.tasks.contexts import cut_documents
from evaluation.tasks.rows import Request
from evaluation.tasks.scoring import language_model, prepare
from matquant.errors import UserError
from matquant.models.loading import load_model
from tests.evaluation.test_scoring import other_task

SHORT = ("base=none", "model.config.max_position_embeddings=180", "readout.tasks=[piqa,winogrande]")


@pytest.mark.parametrize("add_bos", [False, True])
def test_cut_are_the_documents_that_the_language_model_would_cut(tiny_study, add_bos, monkeypatch):
    study = tiny_study(*SHORT, f"model.add_bos={str(add_bos).lower()}")
    model, tokenizer = load_model(
        study.cells[0].model, cache=study.setup.paths.cache, dtype="float32", device=torch.device("cpu")
    )
    lm = language_model(model, tokenizer, batch_size=4, add_bos=add_bos)
    assert lm.max_length == 180
    seen, of = [], Request.of
    monkeypatch.setattr(
        Request,
        "of",
        lambda context, continuation, *, max_length: (
            seen.append((len(context) + len(continuation), len(continuation))),
            of(context, continuation[:max_length], max_length=max_length),
        )[1],
    )
    task = load_tasks(["piqa"], WheelSource(), limit=20)["piqa"]
    prepare(task, limit=20)
    lm.loglikelihood(list(task.instances))
    documents = [instance.doc_id for instance in task.instances]
    too_long = {doc: sizes for doc, sizes in zip(documents, seen, strict=True) if sizes[0] > lm.max_length + 1}
    found = cut_documents(task, tokenizer, max_length=lm.max_length, add_bos=add_bos)
    assert set(found.documents) == set(too_long)
    assert 0 < len(too_long) < found.num_documents == 20
    assert found.longest == max(size for size, _ in seen) - 1


def test_a_prompt_is_too_long_where_it_leaves_no_room_for_what_is_generated(tiny_study):
    study = tiny_study(*SHORT)
    _, tokenizer = load_model(
        study.cells[0].model, cache=study.setup.paths.cache, dtype="float32", device=torch.device("cpu")
    )
    task = other_task("generate_until", generation_kwargs={"until": ["\n"], "max_gen_toks": 40})
    prepare(task, limit=None)
    room = len("the jar 0") + 40
    assert not cut_documents(task, tokenizer, max_length=room, add_bos=False).documents
    assert len(cut_documents(task, tokenizer, max_length=room - 1, add_bos=False).documents) == 4


def test_a_task_with_a_document_longer_than_the_model_is_refused_before_anything_is_computed(tiny_study, tmp_path):
    with pytest.raises(
        UserError,
        match=r"^1 of 4 documents of piqa are longer than the 180 tokens that model tiny takes \(up to \d+\), and "
        r"would be cut from the left; leave piqa out of readout.tasks, or set readout.cut_contexts=true",
    ):
        preflight.check([tiny_study(*SHORT)])
    assert not list((tmp_path / "results").rglob("*.json"))
    preflight.check([tiny_study(*SHORT, "readout.tasks=[]")])


def test_an_answer_longer_than_the_model_is_refused_even_where_contexts_may_be_cut(tiny_study):
    short = tiny_study(*SHORT, "model.config.max_position_embeddings=64", "readout.cut_contexts=true")
    with pytest.raises(UserError, match=r"^an answer of \d+ tokens in piqa is longer than the 64 tokens"):
        preflight.check([short])


def test_cut_documents_are_measured_where_that_is_asked_for_and_counted_in_the_result(tiny_study, tmp_path):
    asked = tiny_study(*SHORT, "readout.cut_contexts=true")
    preflight.check([asked])
    run_cell(asked.cells[0], asked.setup)
    (path,) = (tmp_path / "results").glob("*/full/piqa-*.json")
    result = json.loads(path.read_text())
    assert result["protocol"]["cut_contexts"] is True
    assert result["provenance"]["num_cut"] == 1


def test_a_protocol_that_cuts_nothing_is_what_it_was(tiny_study):
    plain, cutting = (
        protocols(tiny_study("base=none", f"readout.cut_contexts={cut}").setup.readout, add_bos=False)
        for cut in ("false", "true")
    )
    assert cutting["piqa"] == {**plain["piqa"], "cut_contexts": True}
    assert cutting["log_pplx"] == plain["log_pplx"]
