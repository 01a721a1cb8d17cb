"""Every family: its blocks one by one, every base, and each number beside that of `transformers` or lm-eval alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM

from evaluation.export import export, require_places
from evaluation.planning.preflight import refusals
from evaluation.planning.work import size_of
from evaluation.tasks.language_model import SharedContextLM
from matquant.algorithms.block_wise import require_block_wise
from matquant.algorithms.calibration import Shelf, attend, block_outputs, capture, run_chain, suited_to
from matquant.codes.nested import NestedWeight, materialize
from matquant.codes.quantizers import DTYPES
from matquant.config.cell import Cell, FolderModel, Scope
from matquant.config.setup import Setup
from matquant.errors import UserError
from matquant.models.layers.families import FAMILIES, blocks, linears
from matquant.models.loading import load_model
from matquant.notation import Objective, Plan, Slice
from matquant.runs.checkpoint import load_checkpoint
from matquant.runs.folder import RunDir
from matquant.runs.tracking import NoTracker
from matquant.training.train import train
from tests.families import LLAMA, MODELS, loaded, spec_of, table
from tests.mixtures import MIXTURES
from tests.plain_reading import plain_model

CPU = torch.device("cpu")
SCOPE: Scope = "ffn_attention"
TOKENS = torch.randint(0, 256, (3, 16), generator=torch.Generator().manual_seed(0))
BLOCK_WISE = [name for name, tiny in MODELS.items() if not FAMILIES[tiny.family or tiny.architecture].not_block_wise]


def test_every_family_of_the_table_has_a_tiny_model():
    tinies = {**MODELS, **MIXTURES}.values()
    assert {tiny.family or tiny.architecture for tiny in tinies} == set(FAMILIES)


def test_the_table_in_the_documentation_is_the_table_of_the_code():
    assert table() in (Path(__file__).parents[2] / "docs" / "models.md").read_text()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_its_size_whatever_its_settings_are_called(name, cell_of):
    model, size = loaded(name).model, size_of(cell_of(name, "minmax"), Path())
    assert (size.hidden, size.layers, size.vocabulary) == (32, len(blocks(model)), 257)
    assert size.in_scope == sum(linear.weight.numel() for b in blocks(model) for linear in linears(b, SCOPE).values())
    assert size.weights == sum(parameter.numel() for parameter in model.parameters())


# --- block by block --------------------------------------------------------------------------------------------------


@torch.no_grad()
def last_hidden_states(model: torch.nn.Module) -> torch.Tensor:
    """The output of the last block in an ordinary forward pass."""
    seen = []
    handle = blocks(model)[-1].register_forward_hook(lambda *_: seen.append(_[2]))
    model(input_ids=TOKENS, use_cache=False)
    handle.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


@torch.no_grad()
def walk(model: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """The output of the last block where blocks run one by one, each from its remembered attention on."""
    how = {"batch_size": 2, "dtype": dtype, "shelf": Shelf()}
    hidden, arguments = capture(model, TOKENS, **how)
    for block, keywords in zip(blocks(model), arguments, strict=True):
        with suited_to(block, dtype):
            chain = attend(block, hidden, keywords, **how)
            whole = block_outputs(block, hidden, keywords, **how)
            remembered = run_chain(block, chain.batch(torch.arange(2)), keywords, dtype=dtype)
            assert torch.equal(remembered, whole.states[:2])
        hidden = whole
    return hidden.states


@pytest.mark.parametrize("name", BLOCK_WISE)
def test_blocks_one_by_one_give_the_models_own_hidden_states_in_every_dtype(name):
    model = loaded(name).model
    expected = last_hidden_states(model)
    for stored in DTYPES:
        narrow = model if stored == "float32" else loaded(name, stored).model
        for dtype in DTYPES.values():
            distance = (walk(narrow, dtype) - expected).abs().max() / expected.abs().max()
            assert distance <= (1e-6 if stored == "float32" and dtype == torch.float32 else 0.03), (stored, dtype)


# --- every base ------------------------------------------------------------------------------------------------------

NESTED = Objective.parse(8, {"int8": 1.0, "int2": 1.0})
BASES = {
    "minmax": ({"kind": "minmax"}, Objective.parse(8, {"int8": 1.0})),
    "omniquant": (
        {"kind": "omniquant", "num_steps": 1, "batch_size": 2, "clipping_lr": 0.1, "transformation": True},
        NESTED,
    ),
    "gptq": ({"kind": "gptq", "batch_size": 2}, NESTED),
    "qat": (
        {"kind": "qat", "num_steps": 1, "batch_size": 2, "lr": 1e-3, "warmup_steps": 0, "compute_dtype": "float32"},
        NESTED,
    ),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> dict[str, object]:
    """Some calibration text in a file, which is read faster than the embedded corpus."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(f"The {number} ships of the harbour lie still, {number**2}." for number in range(40)))
    return {"kind": "text_files", "paths": (str(path),), "num_sequences": 4, "sequence_length": 16}


@pytest.fixture
def cell_of(text) -> Callable[..., Cell]:
    def cell(name: str, base: str, *, dtype: str = "float32", scope: Scope = SCOPE, **changes: object) -> Cell:
        settings, objective = BASES[base]
        return Cell.model_validate(
            {
                "model": spec_of(name).model_copy(update={"dtype": dtype}),
                "base": settings | changes,
                "objective": objective,
                "grid": {},
                "scope": scope,
                "data": text,
            }
        )

    return cell


@pytest.fixture
def setup(tiny_study) -> Setup:
    setup = tiny_study().setup
    return setup.model_copy(update={"readout": setup.readout.model_copy(update={"tasks": ()})})


def trained(cell: Cell, setup: Setup) -> dict[str, NestedWeight]:
    """The layers of a cell's checkpoint, which is made first."""
    train(cell, setup, NoTracker())
    return dict(load_checkpoint(RunDir(setup.paths.runs, cell.id).checkpoint, cell).layers)


@pytest.mark.parametrize(
    ("name", "base"),
    [(name, base) for name in MODELS for base in BASES if name in BLOCK_WISE or base in ("minmax", "qat")],
)
def test_a_checkpoint_is_what_a_second_reading_of_it_says(name, base, cell_of, setup):
    # As most models of the hub are: in bfloat16, under products in float32.
    cell = cell_of(name, base, dtype="float32" if base == "minmax" else "bfloat16")
    layers = trained(cell, setup)
    model = load_model(cell.model, cache=setup.paths.cache, dtype="float32", device=CPU).model
    folder, logits = RunDir(setup.paths.runs, cell.id).checkpoint, []
    for bits in (8, 2):
        read = materialize(model, layers, Plan.parse(f"int{bits}"))
        plain = plain_model(MODELS[name].architecture, MODELS[name].config, folder, bits)
        with torch.no_grad():
            ours, theirs = (one(input_ids=TOKENS).logits for one in (read, plain))
        assert torch.allclose(ours, theirs, atol=1e-5)
        logits.append(ours)
    assert (logits[0] - logits[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("dtype", "compute_dtype"),
    [(dtype, other) for dtype in DTYPES for other in DTYPES if "bfloat16" in (dtype, other) or dtype != other],
)
@pytest.mark.parametrize(("name", "base"), [("starcoder2", "qat"), ("bloom", "qat"), ("bloom", "omniquant")])
def test_every_base_takes_a_model_of_one_dtype_under_products_of_another(
    name, base, dtype, compute_dtype, cell_of, setup
):
    layers = trained(cell_of(name, base, dtype=dtype, compute_dtype=compute_dtype), setup)
    exact = trained(cell_of(name, base), setup)
    for path, nested in layers.items():
        distance = (nested.at(Slice(8)).weight - exact[path].at(Slice(8)).weight).abs().mean()
        assert distance < 0.1 * exact[path].at(Slice(8)).weight.abs().mean(), path


@pytest.mark.parametrize("name", ["opt", "gpt2"])
def test_recomputed_activations_turn_no_dropout_on(name, cell_of, setup):
    kept, recomputed = (trained(cell_of(name, "qat", activation_checkpointing=on), setup) for on in (False, True))
    assert all(torch.equal(kept[path].codes, recomputed[path].codes) for path in kept)
    assert all(torch.equal(kept[path].grid.scale, recomputed[path].grid.scale) for path in kept)


# --- preflight -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCK_WISE)
def test_the_walk_without_weights_refuses_no_family_that_is_walked_through_with_them(name, cell_of):
    for scope, base in (("ffn", "gptq"), ("ffn_attention", "omniquant")):
        require_block_wise(cell_of(name, base, scope=scope), cache=Path())


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(BLOCK_WISE)))
def test_preflight_names_the_bases_that_a_family_has_where_others_cannot_be(name, cell_of, setup):
    cells = [cell_of(name, base) for base in BASES]
    refused = refusals(cells, setup)
    assert set(refused) == {cell.id for cell in cells if cell.base.kind in ("omniquant", "gptq")}
    for reason in refused.values():
        assert "keys and values from earlier ones" in reason
        assert reason.endswith("; choose base=minmax, base=search or base=qat")


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("gemma4_unified_text", {}, "its blocks are called with shared_kv_states"),
        ("gpt_neox_japanese", {}, "has no blocks at model.layers or"),
    ],
)
def test_an_architecture_that_nobody_named_is_refused_where_it_does_not_fit(
    architecture, config, message, cell_of, setup
):
    cell = cell_of("llama", "gptq")
    spec = cell.model.model_copy(update={"architecture": architecture, "config": {**LLAMA, **config}})
    (reason,) = refusals([cell.model_copy(update={"model": spec})], setup).values()
    assert message in reason
    assert "\n" not in reason


def test_an_architecture_that_nobody_named_is_taken_where_it_is_built_like_llama(cell_of, setup):
    cell = cell_of("llama", "gptq")
    spec = cell.model.model_copy(update={"architecture": "apertus"})
    assert "apertus" not in FAMILIES
    assert not refusals([cell.model_copy(update={"model": spec})], setup)


# --- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "gemma3 with images", "opt", "falcon"])
def test_an_exported_read_out_is_read_by_transformers_alone(name, cell_of, setup, tmp_path):
    cell = cell_of(name, "minmax")
    trained(cell, setup)
    memory = load_model(cell.model, cache=setup.paths.cache, dtype="float32", device=CPU)
    exported = export(cell, setup, Plan.parse("int4"), tmp_path / "exported", loaded=memory)
    plain = AutoModelForCausalLM.from_pretrained(exported.model)
    assert type(plain) is type(memory.model)
    spec = FolderModel(kind="folder", name="exported", path=str(exported.model))
    again = load_model(spec, cache=setup.paths.cache, dtype="float32", device=CPU).model
    with torch.no_grad():
        ours, theirs, ours_again = (one(input_ids=TOKENS).logits for one in (memory.model, plain, again))
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.equal(ours, ours_again)


def test_a_read_out_whose_biases_a_folder_would_lose_is_not_exported(cell_of, setup):
    require_places(cell_of("phi", "omniquant"), setup)
    require_places(cell_of("llama", "omniquant", transformation=False), setup)
    with pytest.raises(
        UserError, match=r"14 layers of tiny a bias, such as model.layers.0.self_attn.q_proj, .*=false$"
    ):
        require_places(cell_of("llama", "omniquant"), setup)


# --- evaluation ------------------------------------------------------------------------------------------------------

# lm-eval's decorator hides the class's signature from type checkers.
_HFLM: Any = HFLM
QUESTIONS = ["Is the sea blue, or green?", "Who?"]
ANSWERS = [" yes", " no", " a blue lid, or a jar"]
REQUESTS = [
    Instance("loglikelihood", {}, (question, answer), index, metadata=("made", document, 1))
    for document, question in enumerate(QUESTIONS)
    for index, answer in enumerate(ANSWERS)
]


@pytest.mark.parametrize("name", MODELS)
def test_log_likelihoods_are_those_of_lm_eval_and_transformers_alone(name):
    tiny = MODELS[name]
    model, tokenizer = loaded(name, initializer_range=0.3)
    plain = plain_model(tiny.architecture, {**tiny.config, "initializer_range": 0.3})
    ours, theirs = (
        kind(pretrained=one, tokenizer=tokenizer, batch_size=4, max_length=60)
        for kind, one in ((SharedContextLM, model), (_HFLM, plain))
    )
    assert ours.shares_contexts == (name not in ("bloom", "mpt", "falcon with alibi", "gpt_neo"))
    for (score, greedy), (their_score, their_greedy) in zip(
        ours.loglikelihood(REQUESTS), theirs.loglikelihood(REQUESTS, disable_tqdm=True), strict=True
    ):
        assert score == pytest.approx(their_score, abs=1e-4)
        assert greedy == their_greedy
