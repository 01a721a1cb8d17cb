"""Measures against the unquantized model: over the whole vocabulary, of a teacher that is kept in a small file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.protocol import missing, survey
from evaluation.results.metrics import BASE_LOG_PPLX, KL, LOG_PPLX, MEASURES, RMS_DP, SAME_TOP
from evaluation.results.store import Result, ResultStore
from evaluation.stages import run_cell
from evaluation.text.divergence import divergences, summarized
from evaluation.text.perplexity import block_nats, read_blocks
from evaluation.text.teacher import facts_of, path_of, teacher_of
from matquant.errors import UserError
from matquant.models.divergence import FAR, bucketed, compare, most_likely
from matquant.models.layers.families import backbone
from matquant.models.layers.head import listening, logits_of
from matquant.models.loading import load_model
from reference.divergence_reference import measures
from tests.families import MODELS, loaded
from tests.models.test_models import tiny

SMALL = ("base=minmax", "bits=int8", "readout.tasks=[]")


def logits(seed: int, tokens: int, vocabulary: int, scale: float) -> torch.Tensor:
    return scale * torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed))


LOGITS = st.tuples(
    st.integers(0, 2**20), st.integers(1, 6), st.integers(2, 50), st.floats(0.1, 60), st.floats(1e-4, 60)
)


@given(LOGITS)
@settings(deadline=None, max_examples=60)
def test_the_divergence_is_that_of_the_slow_twin_for_models_that_are_near_and_far(case):
    seed, tokens, vocabulary, scale, gap = case
    expected = logits(seed, tokens, vocabulary, scale)
    other = expected + logits(seed + 1, tokens, vocabulary, gap)
    targets = torch.randint(0, vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))
    found = compare(expected, other, targets)
    wanted = measures(expected.double().numpy(), other.double().numpy(), targets.tolist())
    assert (found.kl >= 0).all()
    assert found.kl.mean().item() == pytest.approx(wanted["kl"], rel=1e-3, abs=1e-9)
    assert found.kl.max().item() == pytest.approx(wanted["kl_max"], rel=1e-3, abs=1e-9)
    assert found.same_top.double().mean().item() == pytest.approx(wanted["same_top_p"])
    change = found.log_q.exp() - found.log_p.exp()
    assert change.double().square().mean().sqrt().item() == pytest.approx(wanted["rms_dp"], abs=1e-5)


@given(LOGITS, st.integers(1, 50))
@settings(deadline=None, max_examples=40)
def test_the_most_likely_tokens_and_a_bucket_are_a_lower_bound_and_all_tokens_the_whole(case, top_k):
    seed, tokens, vocabulary, scale, gap = case
    expected = logits(seed, tokens, vocabulary, min(scale, 8))
    other = expected + logits(seed + 1, tokens, vocabulary, min(gap, 8))
    whole = compare(expected, other, torch.zeros(tokens, dtype=torch.long)).kl
    bound = bucketed(most_likely(expected[None], top_k), other[None])[0]
    assert (bound <= whole * (1 + 1e-3) + 2e-5).all()
    if top_k >= vocabulary:
        assert torch.allclose(bound, whole, rtol=1e-3, atol=2e-5)


def test_equal_logits_diverge_by_nothing_and_a_shift_of_all_changes_nothing():
    one = logits(0, 50, 300, 5.0)
    targets = torch.arange(50)
    assert torch.equal(compare(one, one, targets).kl, torch.zeros(50))
    assert compare(one, one + 7, targets).kl.max() < 1e-10
    assert compare(one, one + 7, targets).same_top.all()


def test_every_device_finds_the_same(device):
    one, other, targets = logits(0, 20, 300, 5.0), logits(1, 20, 300, 5.0), torch.arange(20)
    other[3, 7] += 100
    found = compare(one.to(device), other.to(device), targets.to(device))
    for ours, wanted in zip(found, compare(one, other, targets), strict=True):
        torch.testing.assert_close(ours.cpu(), wanted, rtol=1e-4, atol=1e-5)


def test_models_that_collapse_or_mask_tokens_are_compared_in_float64():
    one = logits(0, 4, 30, 5.0)
    other = one.clone()
    other[0, one[0].argmin()] += 200  # where the teacher's probability is nothing
    one[1, 3] = other[1, 3] = -math.inf  # masked by both
    other[2, 5] = -math.inf
    found = compare(one, other, torch.zeros(4, dtype=torch.long))
    wanted = measures(one[:1].double().numpy(), other[:1].double().numpy(), [0])
    assert (other[0] - one[0]).max() > FAR
    assert found.kl[0].item() == pytest.approx(wanted["kl"], rel=1e-6)
    assert found.kl[1].item() == pytest.approx(0, abs=1e-9)
    assert found.kl[2].item() == math.inf


# --- the teacher -----------------------------------------------------------------------------------------------------


def model_of(dtype: str = "float32"):
    return load_model(tiny(), cache=Path(), dtype=dtype, device=torch.device("cpu")).model


TEXT = torch.randint(0, 257, (5, 12), generator=torch.Generator().manual_seed(0))


def measured(model, teacher, text=TEXT):
    blocks = []
    with listening(model) as listener:
        for read in read_blocks(model, text, batch_size=2):
            blocks += divergences(model, listener, teacher, len(blocks), read)
    return summarized(blocks, teacher)


def disturbed(model, by: float):
    """The model with noise on the weights of its blocks, which is all that quantization changes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers" in name and parameter.dim() == 2:
                parameter += by * torch.randn(parameter.shape, generator=generator)
    return model


def test_the_measures_of_a_model_are_those_of_its_whole_distributions(tmp_path):
    teacher = teacher_of(model_of(), TEXT, content="one", batch_size=2, cache=tmp_path)
    other = disturbed(model_of(), 0.1)
    metrics, documents = measured(other, teacher)
    with torch.no_grad():
        first, second = (model(input_ids=TEXT).logits[:, :-1] for model in (model_of(), other))
    for block in range(5):
        wanted = measures(first[block].numpy(), second[block].numpy(), TEXT[block, 1:].tolist())
        for name, value in wanted.items():
            assert documents[name][block] == pytest.approx(value, rel=1e-3, abs=1e-7), name
    together = measures(first.flatten(0, 1).numpy(), second.flatten(0, 1).numpy(), TEXT[:, 1:].flatten().tolist())
    for name, value in together.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-7), name
    assert set(documents) == set(MEASURES)
    assert metrics[KL] > 1e-4
    assert metrics[f"{KL}_stderr"] == pytest.approx(np.std(documents[KL], ddof=1) / math.sqrt(5))
    assert documents[BASE_LOG_PPLX] == torch.cat(list(block_nats(model_of(), TEXT, batch_size=2))).tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_unquantized_model_diverges_from_itself_by_nothing(dtype, tmp_path):
    teacher = teacher_of(model_of(dtype), TEXT, content="one", batch_size=2, cache=tmp_path)
    metrics, _ = measured(model_of(dtype), teacher)
    assert metrics[KL] < 1e-10
    assert (metrics[SAME_TOP], metrics[RMS_DP]) == (1.0, pytest.approx(0, abs=1e-7))


@pytest.mark.parametrize("name", MODELS)
def test_the_kept_hidden_states_give_the_logits_of_any_family(name, tmp_path):
    model = loaded(name).model
    text = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    teacher = teacher_of(model, text, content=name, batch_size=2, cache=tmp_path)
    metrics, _ = measured(model, teacher, text)
    assert metrics[KL] < 1e-9


@pytest.mark.parametrize("name", MODELS)
def test_a_model_may_read_another_text_while_its_head_is_at_work(name):
    model, text, read = loaded(name).model, torch.arange(5, 14).unsqueeze(0), []
    with torch.no_grad():
        output = backbone(model)(input_ids=text)
        heads = [
            part for name, part in model.named_modules() if name.endswith(("lm_head", "embed_out", "output_projection"))
        ]
        hook = heads[0].register_forward_pre_hook(lambda *_: read.append(backbone(model)(input_ids=text)))
        logits_of(model, output.last_hidden_state[0], type(output))
        hook.remove()
    assert torch.equal(read[0].last_hidden_state, output.last_hidden_state)


def test_a_teacher_is_read_from_its_file_and_made_again_where_it_is_not_whole(tmp_path, monkeypatch):
    teacher = teacher_of(model_of(), TEXT, content="one", batch_size=2, cache=tmp_path)
    (path,) = (tmp_path / "teachers").iterdir()
    tokens, hidden = TEXT.numel() - len(TEXT), teacher.hidden[0:1].shape[-1]
    assert path.stat().st_size < tokens * hidden * 4 + 2000
    assert teacher_of(disturbed(model_of(), 1.0), TEXT, content="one", batch_size=2, cache=tmp_path).nats.equal(
        teacher.nats
    )
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert teacher_of(model_of(), TEXT, content="one", batch_size=2, cache=tmp_path).nats.equal(teacher.nats)
    assert path.read_bytes() == whole


def test_a_teacher_is_of_one_model_text_and_protocol(tmp_path):
    model = model_of()
    first = facts_of(model, TEXT, content="one", batch_size=2)
    others = [
        facts_of(model, TEXT, content="two", batch_size=2),
        facts_of(model, TEXT[:4], content="one", batch_size=2),
        facts_of(model, TEXT.flip(1), content="one", batch_size=2),
        facts_of(model, TEXT, content="one", batch_size=3),
        facts_of(model.bfloat16(), TEXT, content="one", batch_size=2),
    ]
    assert len({path_of(facts, tmp_path) for facts in [first, *others]}) == 6
    assert path_of(first, Path("~/.cache/matquant")).is_relative_to(Path.home())


def test_a_teacher_that_is_not_what_it_says_is_a_sentence_and_no_number(tmp_path):
    teacher = teacher_of(model_of(), TEXT, content="one", batch_size=2, cache=tmp_path)
    noise = torch.randn(teacher.hidden[0:5].shape, generator=torch.Generator().manual_seed(3))
    damaged = replace(teacher, hidden=teacher.hidden[0:5] + noise)
    with pytest.raises(UserError, match=r"safetensors is not what the unquantized model made .* delete it"):
        measured(model_of(), damaged)


def test_without_a_fingerprint_nothing_is_kept(tmp_path):
    teacher = teacher_of(model_of(), TEXT, content=None, batch_size=2, cache=tmp_path)
    assert not list(tmp_path.iterdir())
    assert measured(model_of(), teacher)[0][KL] < 1e-10


def test_a_teacher_that_another_process_deletes_at_once_is_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.text.teacher._remove_oldest", lambda path: path.unlink())
    teacher = teacher_of(model_of(), TEXT, content="one", batch_size=2, cache=tmp_path)
    assert measured(model_of(), teacher)[0][KL] < 1e-10


def test_the_oldest_teachers_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.text.teacher.MOST_BYTES", 1)
    for content in ("one", "two"):
        teacher_of(model_of(), TEXT, content=content, batch_size=2, cache=tmp_path)
    (path,) = (tmp_path / "teachers").iterdir()
    assert path == path_of(facts_of(model_of(), TEXT, content="two", batch_size=2), tmp_path)


# --- a run -----------------------------------------------------------------------------------------------------------


def measure(study) -> None:
    for cell in study.cells:
        run_cell(cell, study.setup)


def results_of(study) -> dict[str, Result]:
    store = ResultStore(study.setup.paths.results)
    return {result.plan: result for result in store.results(study.cells[0].id) if result.task == LOG_PPLX}


def test_a_run_measures_divergence_with_log_perplexity_and_changes_no_digit_of_it(tiny_study, tmp_path):
    study = tiny_study(*SMALL)
    measure(study)
    found = results_of(study)
    assert all(set(MEASURES) <= set(result.metrics) for result in found.values())
    assert found["int8"].metrics[KL] < found["int4"].metrics[KL] < found["int2"].metrics[KL]
    documents = ResultStore(study.setup.paths.results).documents(found["int2"].key)
    assert np.mean(documents[KL]) == pytest.approx(found["int2"].metrics[KL])
    full = tiny_study("base=none", "readout.tasks=[]")
    measure(full)
    of_full = results_of(full)["full"]
    assert KL not in of_full.metrics
    assert found["int2"].metrics[BASE_LOG_PPLX] == of_full.metrics[LOG_PPLX]

    without = tiny_study(*SMALL, "readout.divergence=false", f"paths.results={tmp_path / 'other'}")
    measure(without)
    for plan, result in results_of(without).items():
        assert KL not in result.metrics
        assert result.key == found[plan].key
        assert result.metrics[LOG_PPLX] == found[plan].metrics[LOG_PPLX]


def test_older_results_stay_complete_and_are_measured_again_only_when_asked(tiny_study, tmp_path):
    older = tiny_study(*SMALL, "readout.divergence=false")
    measure(older)
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json")}
    (cell,), store = older.cells, ResultStore(older.setup.paths.results)
    usual, asked = tiny_study(*SMALL), tiny_study(*SMALL, "readout.divergence=true")
    assert not missing(cell, usual.setup.readout, store)
    measure(usual)
    assert {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json")} == before

    gaps = missing(cell, asked.setup.readout, store)
    assert {str(plan): list(tasks) for plan, tasks in gaps.items()} == {
        plan: [LOG_PPLX] for plan in ("int8", "int4", "int2")
    }
    assert survey([cell], asked.setup.readout, store)[cell.id] == dict.fromkeys(gaps, (LOG_PPLX,))
    measure(asked)
    assert not missing(cell, asked.setup.readout, store)
    assert all(KL in result.metrics for result in results_of(asked).values())
    assert len(list((tmp_path / "results").rglob("*.json"))) == len(before)
    full = tiny_study("base=none", "readout.tasks=[]", "readout.divergence=true")
    measure(full)
    assert not missing(full.cells[0], full.setup.readout, store)


def test_a_result_with_a_divergence_below_zero_is_not_sound(tiny_study, tmp_path):
    study = tiny_study(*SMALL, "readout.plans=[int2]")
    measure(study)
    (path,) = (tmp_path / "results").glob("*/int2/log_pplx-*.json")
    facts = json.loads(path.read_text())
    for name, value in ((KL, -0.1), (SAME_TOP, 1.2), (RMS_DP, 3)):
        path.write_text(json.dumps({**facts, "metrics": {**facts["metrics"], name: value}}))
        with pytest.raises(ValueError, match=f"metrics.{name} is {value}"):
            ResultStore(tmp_path / "results").read(path)
