"""NaN is no accuracy, no width and no checkpoint: the first number that is not finite ends in one sentence."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation import evaluate as evaluate_module
from evaluation.stages import run_cell
from matquant.algorithms import minmax
from matquant.codes.nested import NestedWeight, nest
from matquant.codes.quantizers import Grid, minmax_grid
from matquant.config.cell import GridSpec
from matquant.errors import NotFiniteError, UserError
from matquant.models.loading import load_model
from matquant.models.text.tokens import token_blocks
from matquant.notation import Slice
from matquant.runs.checkpoint import has_checkpoint, load_layers, save_checkpoint, save_layers
from matquant.runs.folder import RunDir
from matquant.runs.status import reason_of
from matquant.search.fitness import Fitness
from tests.algorithms.test_algorithms import Memory
from tests.evaluation.test_scoring import NAMES, byte_tokenizer, other_task, scores, source, tasks, tiny_model  # noqa: F401 -- fixtures

NAN = float("nan")
LAYER = "model.layers.1.mlp.up_proj"


# --- scores ----------------------------------------------------------------------------------------------------------


def test_logits_that_are_not_finite_name_the_first_document_and_keep_the_tasks_before(tasks, caplog):  # noqa: F811
    model, tokenizer = tiny_model(0), byte_tokenizer(sets_bos=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer.encode("?")[0]] = NAN  # only ARC and BoolQ have question marks
    with pytest.raises(
        NotFiniteError, match=r"^the logits of int2 are not finite on arc_easy, document 0; the weights are too large"
    ):
        scores(model, tokenizer, tasks)
    assert scores(model, tokenizer, {name: tasks[name] for name in ("piqa", "winogrande")})
    assert not caplog.records  # shared contexts are not blamed


def test_an_infinite_logit_is_no_answer_either(tasks):  # noqa: F811
    model = tiny_model(0)
    with torch.no_grad():
        model.lm_head.weight[5] = float("inf")
    with pytest.raises(NotFiniteError, match=r"are not finite on piqa, document 0; set readout.dtype=float32"):
        scores(model.bfloat16(), byte_tokenizer(sets_bos=False), {"piqa": tasks["piqa"]})


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood_rolling"])
def test_generated_and_rolled_text_are_not_made_of_nan(kind):
    model = tiny_model(0)
    with torch.no_grad():
        model.model.norm.weight[0] = NAN
    options = {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 4}} if kind == "generate_until" else {}
    perplexity = {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
    exact = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    task = other_task(kind, metric_list=[exact if options else perplexity], **options)
    with pytest.raises(NotFiniteError, match=f"the logits of int2 are not finite on {kind};"):
        scores(model, byte_tokenizer(sets_bos=False), {kind: task})


@pytest.mark.parametrize("batch", [0, 1])
def test_perplexity_names_the_plan_and_the_block(batch, tiny_study, monkeypatch):
    study = tiny_study("base=minmax", "bits=int8", "readout.plans=[int2]", "readout.tasks=[]", "readout.batch_size=1")
    write = evaluate_module.materialize

    def spoiled(model, layers, plan):
        write(model, layers, plan)
        passes = count()

        def spoil(_: object, __: object, given: Any, output: Any) -> None:
            # Of one batch of text alone.
            if given["input_ids"].shape[1] > 1 and next(passes) == batch:
                output.logits[:] = NAN

        model.register_forward_hook(spoil, with_kwargs=True)

    monkeypatch.setattr(evaluate_module, "materialize", spoiled)
    with pytest.raises(
        UserError, match=rf"^the logits of tiny-minmax-\S+ at int2 are not finite on held-out text, block {batch}"
    ):
        run_cell(study.cells[0], study.setup)


def test_a_search_compares_no_nan(tiny_study):
    study = tiny_study("base=gptq")
    cell = study.cells[0]
    model, tokenizer = load_model(
        cell.model, cache=study.setup.paths.cache, dtype="float32", device=torch.device("cpu")
    )
    layers = minmax.fit(model, parent_bits=8, scope="ffn", grid=GridSpec(group_size=32), progress=Memory())
    fitness = Fitness(
        model, layers, token_blocks(cell.data, tokenizer, "train", seed=0, add_bos=False), top_k=8, batch_size=4
    )
    with torch.no_grad():
        model.model.norm.weight[0] = NAN
    with pytest.raises(NotFiniteError, match="the logits that a search compares are not finite"):
        fitness.loss(dict.fromkeys(layers, Slice(8)))


# --- checkpoints -----------------------------------------------------------------------------------------------------


def layer(**changed: torch.Tensor) -> NestedWeight:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    nested = nest(weight, minmax_grid(weight, 8, GridSpec()), 8)
    return nested._replace(grid=Grid(**{**nested.grid._asdict(), **changed}))


@pytest.mark.parametrize("part", ["scale", "zero"])
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_checkpoint_with_a_number_that_is_not_finite_is_never_done(tiny_study, tmp_path, part, value):
    cell = tiny_study("base=minmax", "bits=int8").cells[0]
    with pytest.raises(NotFiniteError, match=rf"^{LAYER}\.{part} of nested is not finite; lower the learning rates"):
        save_checkpoint(tmp_path, cell, {LAYER: layer(**{part: torch.full((8, 1), value)})})
    assert not has_checkpoint(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_scale_too_large_for_its_dtype_names_the_wider_one(tmp_path):
    with pytest.raises(NotFiniteError, match=r"is not finite; set grid.scale_dtype=float32, or lower"):
        save_layers(tmp_path / "x.safetensors", {LAYER: layer(zero=torch.full((8, 1), 1e5))}, scale_dtype="float16")


def test_a_number_that_is_not_finite_on_disk_says_what_to_delete(tmp_path):
    path = tmp_path / "nested.safetensors"
    save_layers(path, {LAYER: layer()}, scale_dtype="float32")
    tensors = load_file(path)
    tensors[f"{LAYER}.zero"][0] = NAN
    save_file(tensors, path, {"parent_bits": f'{{"{LAYER}": 8}}'})
    with pytest.raises(NotFiniteError, match=f"{LAYER}.zero in .* is not finite; delete {tmp_path} and run the cell"):
        load_layers(path)


@pytest.mark.parametrize("base", ["base=minmax", "base=omniquant", "base=gptq", "base=qat"])
def test_a_folder_with_a_nan_is_refused_by_every_base_and_measured_once_it_is_mended(tiny_study, tmp_path, base):
    study = tiny_study(
        *(base, "bits=int8", "readout.tasks=[]"),
        *([] if base == "base=minmax" else ["base.batch_size=2", "base.compute_dtype=float32"]),
        *(["base.num_steps=1"] if base in ("base=omniquant", "base=qat") else []),
    )
    folder = tmp_path / "model"
    loaded = load_model(study.cells[0].model, cache=tmp_path, dtype="float32", device=torch.device("cpu"))
    loaded.tokenizer.save_pretrained(folder)
    loaded.model.save_pretrained(folder)
    whole = (folder / "model.safetensors").read_bytes()
    loaded.model.get_submodule(LAYER).get_parameter("weight").data[0, 0] = NAN
    loaded.model.save_pretrained(folder)
    spec = {"kind": "folder", "name": "mine", "path": str(folder)}
    cell = type(study.cells[0]).model_validate({**study.cells[0].model_dump(), "model": spec})
    study = replace(study, cells=(cell,))
    with pytest.raises(UserError, match=rf"model.path={folder} has numbers that are not finite in {LAYER}.weight"):
        run_cell(cell, study.setup)
    run = RunDir(tmp_path / "runs", cell.id)
    assert not has_checkpoint(run.checkpoint)
    Path(folder / "model.safetensors").write_bytes(whole)
    run_cell(cell, study.setup)
    assert has_checkpoint(run.checkpoint)


def test_a_number_that_is_not_finite_is_a_sentence_and_a_reason_of_its_own():
    assert issubclass(NotFiniteError, UserError)
    assert reason_of(NotFiniteError("x")) == "non-finite"
