"""The model card of a nested folder: whose numbers it shows, and what it never says."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from huggingface_hub import ModelCardData

from analysis.report.card import PICTURE, Bytes, write_card
from analysis.report.card_numbers import is_baseline, plan_of
from analysis.report.card_words import protocol_lines, without_folders
from evaluation.results.store import ResultStore
from matquant.codes.nested import NestedWeight, nest
from matquant.codes.quantizers import Grid, minmax_grid
from matquant.errors import UserError
from matquant.models.layers.families import block_name, blocks, linears
from matquant.models.loading import load_model
from matquant.notation import Plan, Slice
from matquant.runs.checkpoint import NestedCheckpoint
from matquant.runs.files import write_json
from matquant.runs.folder import RunDir
from matquant.runs.tracking import NoTracker
from matquant.serving import export as export_module
from matquant.serving.export import Trained, export_nested, readable, searched_plans
from matquant.serving.export import without_folders as without_folders_of
from matquant.serving.nested.places import nested_folder
from matquant.serving.nested.writer import write_nested
from matquant.training.train import train
from tests.made_results import measure, paper_cells, quantized, study

CODES = "5ea1" * 16
CELLS = paper_cells()
NESTED = CELLS[-1]


@pytest.fixture
def made(tmp_path):
    """A study of the paper's rows with results of every one."""
    found = study(tmp_path, CELLS)
    measure(found)
    return found


@pytest.fixture
def folder(tmp_path):
    """A nested folder before its card is written."""
    return folder_of(tmp_path / "nested")


def folder_of(place, **facts):
    layers = {f"model.layers.{i}.mlp.up_proj": {"shape": [8, 12], "parent_bits": 8} for i in range(2)}
    told = {
        "layers": layers,
        "files": {"nested-grids.safetensors": {"bytes": 100}},
        "plans": {},
        "cell_id": NESTED.id,
        "checksum": CODES,
        "sources": {},
        "commit": "0" * 40,
        "versions": {"torch": "2.13.0"},
    }
    place.mkdir(exist_ok=True)
    (place / "nested-unquantized.safetensors").write_bytes(b"0" * 1000)
    (place / "nested.json").write_text(json.dumps({**told, **facts}))
    return place


def change(made, cell, **fields):
    """Changes the stored results of a cell."""
    store = ResultStore(made.setup.paths.results)
    for result in list(store.results(cell.id)):
        store.put(replace(result, **fields), {"doc_id": list(range(result.num_documents))})


def of_codes(made, codes=CODES):
    """The same study, whose nested cell was measured on these codes, and whose cells are described beside results."""
    change(made, NESTED, checkpoint=codes)
    store = ResultStore(made.setup.paths.results)
    for cell in made.cells:
        store.put_cell(cell.id, cell.model_dump(mode="json"))
    return made


def card(made, folder, cell=NESTED):
    write_card(cell, made.setup, folder)
    return (folder / "README.md").read_text(encoding="utf-8")


def rows_of(text):
    """The cells of the table, by data type and method."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {(line[0], line[1]): line for line in lines}


def test_every_width_stands_beside_its_baselines_and_the_unquantized_model(made, folder):
    text = card(of_codes(made), folder)
    rows = rows_of(text)
    assert ("int2", "MatQuant (OmniQuant)") in rows
    assert ("int2", "Baseline (OmniQuant)") in rows
    assert ("int2", "Sliced int8 (OmniQuant)") in rows
    assert ("bfloat16", "unquantized") in rows
    assert f"![Quality against bits]({PICTURE})" in text
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert "ARC-e" in text
    assert "lm-eval" in text
    assert "Problems" not in text


def test_results_of_other_codes_with_the_same_id_are_not_shown_but_counted(made, folder, capsys):
    text = card(of_codes(made, "0dd" * 21), folder)
    assert "12 results of other codes of this cell (another checksum) are left out" in text
    assert "12 results of other codes" in capsys.readouterr().err
    assert "Nothing was measured on these codes yet" in text
    assert "Baseline" not in text
    assert not (folder / PICTURE).exists()


def test_without_results_a_card_says_so_and_still_tells_the_bytes_of_every_width(tmp_path, folder, capsys):
    text = card(study(tmp_path, CELLS), folder)
    assert "Nothing was measured on these codes yet: `matquant run`" in text
    assert capsys.readouterr().err == ""
    assert {plan for plan, _ in rows_of(text)} >= {"int8", "int4", "int3", "int2"}
    assert "log pplx" not in text


def test_a_broken_result_is_one_sentence_on_the_card_and_one_on_stderr(made, folder, capsys):
    of_codes(made)
    results = made.setup.paths.results
    next((results / NESTED.id / "int4").glob("boolq-*.json")).write_text("{")
    text, err = card(made, folder), capsys.readouterr().err
    sentences = [line for line in text.splitlines() if "is not a whole result file" in line]
    assert len(sentences) == 1
    assert sentences[0].startswith(f"- {NESTED.id}/int4/boolq-")
    assert str(results) not in text + err
    assert err.count("is not a whole result file") == 1


@pytest.mark.parametrize("name", ["facts.parquet", f"{NESTED.id}/cell.json"])
def test_a_broken_file_of_the_folder_costs_no_export(made, folder, capsys, name):
    of_codes(made)
    (made.setup.paths.results / name).write_bytes(b"PAR1 cut short")
    text = card(made, folder)
    assert "matquant.load" in text
    assert "Problems" in text or "MatQuant (OmniQuant)" in text
    assert capsys.readouterr().err.count("\n") <= 1


def test_the_description_of_a_rival_that_is_broken_is_named(made, folder):
    of_codes(made)
    (made.setup.paths.results / CELLS[2].id / "cell.json").write_text("[]")
    text = card(made, folder)
    assert f"{CELLS[2].id}/cell.json cannot be read" in text
    assert ("int2", "Baseline (OmniQuant)") not in rows_of(text)


def test_of_two_protocols_the_one_of_more_widths_is_shown_and_the_other_counted(made, folder):
    store = of_codes(made) and ResultStore(made.setup.paths.results)
    (one,) = [result for result in store.results(NESTED.id) if (result.plan, result.task) == ("int4", "boolq")]
    store.put(replace(one, protocol={**one.protocol, "limit": 7}), {"doc_id": list(range(one.num_documents))})
    text = card(made, folder)
    assert "the first 100 documents" in text
    assert "the first 7 documents" not in text
    assert "1 result under other protocols is left out" in text


def test_a_baseline_of_other_weights_of_the_model_is_left_out(made, tmp_path):
    of_codes(made)
    change(made, CELLS[2], sources={"model": "sha256:other"})
    text = card(made, folder_of(tmp_path / "nested", sources={"model": "sha256:ours"}))
    assert "3 results of baselines with other weights of the model are left out" in text
    assert ("int2", "Baseline (OmniQuant)") not in rows_of(text)


def test_a_baseline_differs_in_nothing_but_being_trained_for_one_width():
    assert [is_baseline(cell, NESTED) for cell in CELLS] == [True, True, True, False]
    assert not is_baseline(quantized({"int2": 1.0}, parent_bits=2, seed=1), NESTED)
    assert not is_baseline(quantized({"int2": 1.0}, parent_bits=2, num_steps=3), NESTED)
    assert not is_baseline(quantized({"int2": 1.0}, parent_bits=2, name="another"), NESTED)


def test_plans_that_were_searched_for_have_rows_under_their_own_names(made, tmp_path):
    widths = {f"model.layers.{i}.mlp.up_proj": width for i, width in enumerate(("int2", "int4"))}
    plans = {"evolution@3": widths, "evolution@3-0a1b2c3d": widths}
    rows = rows_of(card(of_codes(made), folder_of(tmp_path / "nested", plans=plans)))
    assert {plan for plan, _ in rows} >= set(plans)
    assert plan_of("evolution@3-0a1b2c3d", plans).label == "evolution@3-0a1b2c3d"
    assert plan_of("mine-0a1b2c3d", {}) is None


def test_front_matter_is_what_a_hub_reads_and_names_the_base_model_of_a_hub(made, folder):
    hub = NESTED.model_copy(
        update={"model": quantized({"int8": 1.0}, kind="random").model.model_copy(update={"name": "mine"})}
    )
    data = NESTED.model_dump(mode="json")
    data["model"] = {"kind": "hub", "name": "mine", "repo": "owner/mine: it's"}
    on_hub = type(NESTED).model_validate(data)
    for cell, base in ((hub, None), (on_hub, "owner/mine: it's")):
        front = card(made, folder, cell).split("---")[1]
        import yaml

        told = ModelCardData(**yaml.safe_load(front))
        assert told.base_model == base
        assert told.license is None
        assert "matquant" in told.tags


def written(tiny_study, place, **plans):
    """A nested folder of the tiny model in round to nearest int8."""
    made = tiny_study("base=minmax", "bits=int8")
    model, tokenizer = load_model(
        made.cells[0].model, cache=made.setup.paths.cache, dtype="float32", device=torch.device("cpu")
    )
    layers = {
        f"{block_name(model, number)}.{name}": nest(linear.weight, minmax_grid(linear.weight, 8, made.cells[0].grid), 8)
        for number, block in enumerate(blocks(model))
        for name, linear in linears(block, "ffn").items()
    }
    place.mkdir()
    found = {name: dict.fromkeys(layers, width) for name, width in plans.items()}
    write_nested(place, model, tokenizer, layers, scale_dtype="float32", facts={}, plans=found)
    return place


def test_bytes_are_those_that_the_reader_counts(tiny_study, tmp_path):
    place = written(tiny_study, tmp_path / "nested")
    sizes, reader = Bytes(json.loads((place / "nested.json").read_text()), place), nested_folder(place)
    for text in ("int8", "int7", "int4", "int2+ep", "int1", "pyramid@3"):
        assert sizes.planes(Plan.parse(text)) == reader.num_bytes(Plan.parse(text))


def test_a_plan_whose_search_had_settings_of_its_own_needs_its_whole_name_only_among_several(tiny_study, tmp_path):
    whole = "evolution@3-0a1b2c3d"
    folder = nested_folder(written(tiny_study, tmp_path / "nested", **{whole: "int2"}))
    for asked in (whole, "evolution@3"):
        plan = folder.plan(asked)
        assert str(plan) == whole
        assert folder.num_bytes(plan) == folder.num_bytes(Plan.parse("int2"))
    with pytest.raises(UserError, match=f"it has {whole}"):
        folder.plan("evolution@4")
    other = whole.replace("0a", "1a")
    several = nested_folder(written(tiny_study, tmp_path / "several", **{whole: "int2", other: "int2"}))
    with pytest.raises(UserError, match=f"it has {whole}, {other}"):
        several.plan("evolution@3")


@pytest.mark.filterwarnings("ignore:.*jaxtyping:UserWarning")
def test_no_file_of_an_exported_folder_names_a_folder_of_the_machine(tiny_study, tmp_path):
    source = tmp_path / "from" / "mine"
    tiny = tiny_study()
    for saved in load_model(
        tiny.cells[0].model, cache=tiny.setup.paths.cache, dtype="float32", device=torch.device("cpu")
    ):
        saved.save_pretrained(source)
    made = tiny_study("base=minmax", "bits=int8", "model=folder", f"model.path={source}", "model.name=mine")
    train(made.cells[0], made.setup, NoTracker())
    export_nested(Trained(made.cells[0], made.setup), tmp_path / "nested")
    told = [path for path in (tmp_path / "nested").iterdir() if path.suffix != ".safetensors"]
    assert {path.name for path in told} >= {"README.md", "config.json", "nested.json", "tokenizer_config.json"}
    assert [path.name for path in told if str(tmp_path).encode() in path.read_bytes()] == []
    assert json.loads((tmp_path / "nested" / "nested.json").read_text())["cell"]["model"]["path"] == "mine"


def test_protocols_are_told_in_words_without_the_folders_of_a_machine():
    shared = {"batch_size": 4, "dtype": "float32", "add_bos": False, "limit": None, "num_fewshot": 0, "lm_eval": "1"}
    lines = protocol_lines(
        {
            "piqa": {**shared, "data": "/home/me/my docs/piqa@0a1b2c3d4e5f"},
            "log_pplx": {**shared, "num_sequences": 2, "sequence_length": 8, "data": "files 0a", "add_bos": True},
        }
    )
    assert lines == [
        "PIQA: all documents of piqa@0a1b2c3d4e5f, 0 examples in a prompt, lm-eval 1, batch size 4, read in float32.",
        "log pplx: 2 sequences of 8 tokens of held-out text, files 0a, batch size 4, read in float32, "
        "a BOS token first.",
    ]


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("/a/b/c.json is cut short; see '/d/x y.txt'", "c.json is cut short; see 'x y.txt'"),
        ("~/runs/one and a/b/c", "one and a/b/c"),
        ("https://huggingface.co/a/b and 1/2 of it", "https://huggingface.co/a/b and 1/2 of it"),
        ("llm==0.1/file.gguf", "llm==0.1/file.gguf"),
    ],
)
def test_of_an_absolute_path_the_last_name_is_published(text, published):
    assert without_folders(text) == published


def test_a_description_keeps_everything_but_the_folders_of_absolute_paths():
    cell = {"model": {"path": "/home/me/model", "name": "a/b"}, "data": {"paths": ["/t/x.txt", "y/z.txt"]}, "seed": 0}
    assert without_folders_of(cell) == {
        "model": {"path": "model", "name": "a/b"},
        "data": {"paths": ["x.txt", "y/z.txt"]},
        "seed": 0,
    }


def test_a_card_says_nothing_of_the_machine(made, folder, tmp_path):
    text = card(of_codes(made), folder)
    assert str(tmp_path) not in text
    assert not re.search(r"(?<![\w.:/])/(home|root|tmp|work|Users)\b", text)


def test_a_nested_folder_gets_the_plans_that_were_searched_for_on_its_codes(tmp_path, capsys):
    run = RunDir(tmp_path, "cell")
    widths = {"model.layers.0.mlp.up_proj": "int2"}
    for name, facts in {
        "evolution@3": {"layers": widths, "search": {"checksum": CODES}},
        "evolution@4": {"layers": widths, "search": {"checksum": "of codes that were replaced"}},
        "evolution@5": {"layers": 3, "search": {"checksum": CODES}},
    }.items():
        write_json(run.plan(name), facts)
    assert searched_plans(run, CODES) == {"evolution@3": widths}
    assert capsys.readouterr().err.count("evolution@5.json is no plan that was searched for") == 1


def test_a_read_out_at_a_plan_that_was_searched_for_has_the_widths_that_were_found(tiny_study, monkeypatch):
    made = tiny_study("base=minmax", "bits=int8")
    layer = NestedWeight(torch.zeros(2, 8, dtype=torch.uint8), Grid(torch.ones(2, 1), torch.zeros(2, 1)), 8)
    monkeypatch.setattr(export_module, "found_plan", lambda *asked: {"layers": {"a": "int2"}})
    checkpoint = NestedCheckpoint({"a": layer}, "0")
    read = readable(Trained(made.cells[0], made.setup), checkpoint, Plan.parse("evolution@3"))
    assert str(read) == "evolution@3"
    assert dict(read.layers) == {"a": Slice(2)}
