"""Labels of a cell's run: a name that can be read, tags, and fields that runs are grouped by."""

from __future__ import annotations

from pathlib import Path

import pytest

from matquant.runs.tracked.labels import LONGEST_NAME, LONGEST_TAG, labels_of

MODEL = "smollm2_135m"
GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def labels(composed):
    """The labels of the only cell of a command line."""

    def of(*overrides: str, job_type="cell"):
        study = composed(*overrides)
        return labels_of(study.one_cell(), study.setup, job_type)

    return of


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["weights=gemma2", "seed=1"], "omniquant · matquant · gemma2 λ · seed 1"),
        (["base=gptq", "bits=matquant_843"], "gptq · matquant {8, 4, 3} · uniform λ · seed 0"),
        (
            ["bits.widths=[8,2]", "+weights.int8=0.3", "+weights.int2=1"],
            "omniquant · matquant {8, 2} · λ 0.3, 1 · seed 0",
        ),
        (["base=qat", "distill=8to2"], "qat · matquant · uniform λ · distill 8->2 · seed 0"),
        (["base=qat", "distill=only_8to2"], "qat · matquant · uniform λ · distill 8->2 alone · seed 0"),
        (["bits=single_precision", "extra_bit=on"], "omniquant · single_precision_ep · seed 0"),
        (
            ["bits=int4", "scope=ffn_attention", "grid=per_channel"],
            "omniquant · int4 · per channel, real zero · ffn_attention · seed 0",
        ),
        (["base=minmax", "bits=int8"], "minmax · int8"),
        (["base=none"], "unquantized"),
    ],
)
def test_a_name_says_what_a_cell_is_and_what_is_unusual_about_it(labels, overrides, name):
    assert labels(*overrides).name == f"{name} · {MODEL}"


def test_what_somebody_else_quantized_is_called_by_the_format_of_its_files(labels):
    files = ["model=folder", "model.name=theirs", "base=foreign", f"model.path={GOLDEN / 'foreign'}"]
    found = labels(*files)
    assert (found.name, found.config["method"], found.config["algorithm"]) == (
        "foreign gptq · theirs",
        "foreign gptq",
        "foreign",
    )
    assert "unquantized" not in found.tags


def test_lambda_is_called_by_the_shortest_name_of_a_file_that_holds_it(labels):
    names = ("lambda_01", "lambda_03", "mistral_omniquant", "uniform")
    found = [labels(f"weights={name}").config["weights"] for name in names]
    assert found == ["gemma2", "lambda_03", "lambda_04", "uniform"]


def test_runs_are_grouped_by_fields_beside_the_keys_as_they_are_typed(labels):
    config = labels("weights=gemma2", "distill=8to2", "readout.limit=200", "readout.tasks=[piqa]").config
    words = {"algorithm": "omniquant", "method": "MatQuant", "widths": "8, 4, 2", "weights": "gemma2"}
    words |= {"distill": "8->2", "scope": "ffn", "readout_words": "piqa and log_pplx", "limit": 200}
    assert {name: config[name] for name in words} == words
    assert config["grid_words"].startswith("groups of 64, real zero, ")
    assert config["cell_id"].startswith(f"{MODEL}-omniquant-matquant-")
    assert (config["base"]["num_steps"], config["grid"]["group_size"]) == (16, 64)
    assert (config["readout"]["limit"], config["readout"]["tasks"]) == (200, ["piqa"])


def test_tags_hold_every_word_of_a_cell_in_the_form_that_wandb_takes(labels):
    tags = labels("weights=gemma2", "distill=8to4_and_2", "seed=2", "readout=paper", "grid.zero=aligned_int2").tags
    for tag in (MODEL, "omniquant", "MatQuant", "int8", "int4", "int2", "gemma2 λ", "distill 8->4 8->2"):
        assert tag in tags
    for tag in ("groups of 64", "zero on int2's step", "ffn", "seed 2", "6 tasks and log_pplx", "all documents"):
        assert tag in tags
    assert len(set(tags)) == len(tags)
    assert all(0 < len(tag) <= LONGEST_TAG and "," not in tag for tag in tags)


def test_a_long_name_and_a_long_tag_are_cut(labels):
    long = labels(
        "model=tiny", f"model.name={'x' * 60}", "grid.scale_dtype=bfloat16", "distill=8to4_and_2", "bits=matquant"
    )
    assert len(long.name) <= LONGEST_NAME
    assert all(len(tag) <= LONGEST_TAG for tag in long.tags)


def test_an_export_has_no_read_out(labels):
    exported = labels("weights=gemma2", job_type="export")
    assert exported.name.startswith("export · omniquant · matquant · gemma2 λ")
    assert not {"readout", "limit", "readout_words"} & set(exported.config)
    assert not [tag for tag in exported.tags if tag.startswith("limit")]
