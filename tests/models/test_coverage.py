"""Coverage: a scope means every matrix of its part of a block, or says its share everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import run
from analysis.frame.load import load_frame
from analysis.frame.summary import summary
from analysis.tables.papers import paper_table
from analysis.tables.summary_table import PARTIAL_NOTE, summary_table
from evaluation.evaluate import evaluate
from evaluation.planning.preflight import refusals
from evaluation.protocol import protocols
from evaluation.results.readouts import readout_rows
from evaluation.results.store import ResultStore
from matquant.config.cell import Cell
from matquant.errors import UserError
from matquant.models.layers import experts
from matquant.models.layers.coverage import check_coverage, coverage, matrices
from matquant.models.layers.families import blocks, linears
from matquant.notation import share_text
from matquant.runs.tracking import NoTracker
from matquant.training.train import train
from tests.families import MODELS
from tests.families import loaded as dense
from tests.mixtures import MIXTURES, loaded

ROUTERS = {
    **{key: {"mlp.gate"} for key in ("qwen3_moe", "mixtral", "olmoe", "deepseek_v3", "glm4_moe")},
    **{key: {"mlp.gate", "mlp.shared_expert_gate"} for key in ("qwen2_moe", "qwen3_next")},
    **{key: {"mlp.router"} for key in ("gpt_oss", "phimoe")},
    "llama4": {"feed_forward.router"},
    "hunyuan_v1_moe": {"mlp.gate.wg"},
    "granitemoe": {"block_sparse_moe.router"},
    "lfm2": set(),
}


@pytest.mark.parametrize("scope", ["ffn", "ffn_attention"])
@pytest.mark.parametrize("name", MIXTURES)
def test_a_scope_reaches_every_matrix_of_a_mixture_but_its_routers(name, scope):
    found = coverage(loaded(name).model, scope)
    assert (found.share, found.left_out) == (1.0, ())
    assert set(found.kept) == ROUTERS.get(name, set(found.kept))


@pytest.mark.parametrize("name", MODELS)
def test_a_scope_reaches_every_matrix_of_a_dense_model(name):
    model = dense(name).model
    for scope in ("ffn", "ffn_attention"):
        found = coverage(model, scope)
        assert (found.share, found.left_out) == (1.0, ()), scope


def test_the_count_is_that_of_all_parameters_with_two_dimensions():
    block = blocks(loaded("qwen3_moe").model)[0]
    by_hand = sum(parameter.numel() for parameter in block.parameters() if parameter.ndim == 2)
    assert sum(weight.numel() for _, weight in matrices(block)) == by_hand


class Odd(nn.Module):
    """A module with weights that no quantizer looks at, and some that are no matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.Parameter(torch.ones(2, 4, 4))
        self.one_row = nn.Parameter(torch.ones(1, 4))
        self.heads_norm = nn.RMSNorm([4, 4])
        self.kernel = nn.Conv1d(4, 4, 3, groups=4)
        self.table = nn.Embedding(4, 4)
        self.A_log = nn.Parameter(torch.ones(4, 4))


def test_norms_kernels_tables_and_vectors_are_no_matrices():
    assert [path for path, _ in matrices(Odd())] == ["fused"]


@pytest.mark.parametrize(("share", "text"), [(0.1234, "12 %"), (0.0004, "0.04 %"), (0.9996, "99.96 %"), (1, "100 %")])
def test_a_share_is_never_rounded_to_none_or_all(share, text):
    assert share_text(share) == text


@pytest.fixture
def of_attention_alone(tiny_study, monkeypatch):
    """Studies of a mixture whose experts cannot be separated: a layout that nobody knows."""
    monkeypatch.setattr(experts, "_is_fused", lambda module: False)

    def study(*overrides: str):
        config = [f"++model.config.{key}={value}" for key, value in MIXTURES["qwen3_moe"].config.items()]
        return tiny_study(
            *("model.architecture=qwen3_moe", *config, "base=minmax", "bits=int8", "scope=ffn_attention"),
            *("readout.plans=[int8,int2]", "readout.tasks=[]", *overrides),
        )

    return study


SHARE = 100 * (2 * 32 * 32 + 2 * 32 * 16) / (2 * 32 * 32 + 2 * 32 * 16 + 4 * 3 * 32 * 32)


def test_a_scope_that_leaves_matrices_out_is_refused_with_the_share_and_their_names(of_attention_alone):
    study = of_attention_alone()
    assert list(refusals(study.cells, study.setup).values()) == [
        f"scope=ffn_attention reaches {SHARE:.0f} % of the block weights of tiny: mlp.experts.gate_up_proj, "
        "mlp.experts.down_proj are left out; set scope.partial=true to go on, and every table will say so"
    ]
    (cell,) = study.cells
    with pytest.raises(UserError, match="no linear layers for scope=ffn"):
        check_coverage(cell.model_copy(update={"scope": "ffn"}), loaded("qwen3_moe").model)


def test_a_partial_scope_goes_on_and_every_table_says_the_share(of_attention_alone, monkeypatch):
    monkeypatch.setattr("analysis.report.report.FORMS", ("svg",))  # the other forms have tests of their own
    study = of_attention_alone("scope.partial=true")
    (cell,) = study.cells
    run.run_study(study, [])
    store = ResultStore(study.setup.paths.results)
    share = f"{SHARE:.0f} % of block weights"
    wanted = protocols(study.setup.readout, add_bos=cell.sets_bos)
    assert {row["block_share"] for row in readout_rows(store, cell.id, wanted)} == {SHARE / 100}
    rows = summary(load_frame(study.cells, study.setup, store))
    assert all(label.endswith(share) for label in rows["label"])
    table = summary_table(rows, [])
    assert PARTIAL_NOTE in table.notes
    assert share in (study.setup.paths.out / study.name / "report.html").read_text(encoding="utf-8")
    rows = rows.assign(base="omniquant", scope="ffn", method="MatQuant")
    assert any(share in note for note in paper_table(1, rows).notes)


def test_a_checkpoint_of_fewer_layers_than_the_scope_names_is_not_taken_for_the_whole(of_attention_alone, monkeypatch):
    """As one that was made before experts were separated, under the id that the cell still has."""
    study = of_attention_alone("scope.partial=true")
    (cell,) = study.cells
    train(cell, study.setup, NoTracker())
    monkeypatch.undo()
    message = (
        "does not hold the layers that scope=ffn_attention names in tiny: model.layers.0.mlp.experts.0.down_proj is"
    )
    with pytest.raises(UserError, match=message):
        evaluate(cell, study.setup, NoTracker())


def test_a_whole_scope_says_nothing_of_shares(tiny_study):
    study = tiny_study("base=minmax", "bits=int8", "scope.partial=true", "readout.tasks=[]")
    run.run_cell(study.cells[0], study.setup)
    store = ResultStore(study.setup.paths.results)
    rows = summary(load_frame(study.cells, study.setup, store))
    assert not rows["label"].str.contains("of block weights").any()
    assert all("block_share" not in result.overhead for cell in study.cells for result in store.results(cell.id))


def test_a_partial_scope_is_typed_beside_the_scope_and_is_another_cell(tiny_study):
    whole, part = (tiny_study("scope=ffn_attention", *more).cells[0] for more in ([], ["scope.partial=true"]))
    assert (part.scope, part.partial_scope, whole.partial_scope) == ("ffn_attention", True, False)
    assert part.id != whole.id
    assert whole.id == Cell.model_validate(whole.model_dump(exclude={"partial_scope"})).id


def test_the_layers_of_a_scope_are_linear_and_no_routers():
    for block in blocks(loaded("deepseek_v3").model):
        assert all(type(linear) is nn.Linear for linear in linears(block, "ffn_attention").values())
