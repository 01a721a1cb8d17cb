"""Models that somebody else quantized are rows: read as their own programs read them, and counted in their own bits."""

from __future__ import annotations

import json
import shutil
from math import nan
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evaluation.results.store import ResultStore
from evaluation.stages import run_cell
from matquant.codes.extra_precision import effective_bits, overhead_bits
from matquant.codes.layouts import slices_of
from matquant.config.cell import Cell, ForeignModel
from matquant.config.study import Study, load_study
from matquant.errors import UserError
from matquant.models.foreign.loading import check_foreign_files, foreign_bits, read_foreign
from matquant.models.foreign.weights import ForeignTensors
from matquant.models.loading import load_model, skeleton, tokenizer_of
from matquant.models.random_model import byte_tokenizer
from matquant.notation import Plan
from matquant.runs.checkpoint import load_checkpoint
from matquant.stored.foreign import describe
from tests.exports import logits, ours, trained
from tests.foreign import FORMATS, GROUP, any_precision, foreign_folder, gptq, matgptq, plain_folder
from tests.tiny import tiny_overrides

CPU = torch.device("cpu")
LAYER = "model.layers.1.mlp.up_proj"


def study(folder: Path, path: Path, *overrides: str) -> Study:
    model = ["model=folder", f"model.path={path}", "model.name=theirs"]
    others = [word for word in tiny_overrides(folder) if not word.startswith(("model=", "data.", "grid="))]
    return load_study([*others, *model, "base=foreign", *overrides])


def foreign(cell: Cell) -> ForeignModel:
    assert isinstance(cell.model, ForeignModel)
    return cell.model


# --- read-outs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_of_each_format_reads_at_each_of_its_widths_as_its_program_reads_it(format, tmp_path):
    pack, config = FORMATS[format]()
    weights = foreign_folder(tmp_path / "theirs", pack, config)
    spec = foreign(study(tmp_path, tmp_path / "theirs").one_cell())
    assert spec.widths == tuple(sorted(weights, reverse=True))
    model, _ = load_model(spec, cache=tmp_path, dtype="float32", device=CPU)
    for bits, expected in weights.items():
        read_foreign(model, spec, Plan.parse(f"int{bits}"))
        for name, weight in expected.items():
            assert torch.allclose(model.get_parameter(name), weight.float(), rtol=1e-5, atol=1e-8), (name, bits)


def test_a_compressed_tensors_file_reads_as_its_library_reads_it(tmp_path):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": True}}
    group["weights"] |= {"strategy": "group", "group_size": GROUP}
    wide = {"targets": ["re:.*down_proj$"], "weights": {**group["weights"], "num_bits": 8}}
    library = BaseCompressor.get_value_from_registry("pack-quantized")
    plain_folder(tmp_path / "theirs")
    tensors, expected = {}, {}
    for name, tensor in load_file(tmp_path / "theirs" / "model.safetensors").items():
        if "_proj" not in name:
            tensors[name] = tensor
            continue
        scheme = QuantizationScheme.model_validate(wide if "down_proj" in name else group)
        top = 127 if "down_proj" in name else 7
        scale = tensor.unflatten(1, (-1, GROUP)).abs().amax(-1) / top
        packed = library.compress({"weight": tensor, "weight_scale": scale}, scheme)
        layer = name.removesuffix(".weight")
        tensors |= {f"{layer}.{part}": one for part, one in packed.items()}
        expected[name] = library.decompress(packed, scheme)["weight"]
    save_file(tensors, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    facts = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "version": "0.20.0",
        "ignore": ["lm_head"],
    }
    configure(tmp_path / "theirs", quantization_config={**facts, "config_groups": {"a": group, "b": wide}})
    cell = study(tmp_path, tmp_path / "theirs").one_cell()
    assert foreign(cell).tool == "compressed-tensors 0.20.0"
    model, _ = load_model(cell.model, cache=tmp_path, dtype="float32", device=CPU)
    for name, weight in expected.items():
        assert torch.equal(model.get_parameter(name), weight)
    # Two widths in one file: it has one read-out, whose bits are an average.
    [plan] = study(tmp_path, tmp_path / "theirs").setup.readout.plans_of(cell)
    assert str(plan) == "stored"
    assert 4 < plan.bits < 8
    assert foreign_bits(foreign(cell), plan, num_parameters=10**5)[0] == pytest.approx(plan.bits, abs=1e-4)


def exported(folder: Path, *words: str) -> Path:
    """A folder that a cell of ours was exported to."""
    from matquant.command import main as command

    typed = [word for word in tiny_overrides(folder) if word.startswith("paths.")]
    assert not command(["export", *words, str(folder / "theirs"), *typed])
    return folder / "theirs"


@pytest.mark.parametrize("named", ["the folder", "the file"])
def test_a_gguf_file_reads_as_transformers_reads_it(named, tmp_path):
    cell = trained(tmp_path, "grid.symmetric=true")
    folder = exported(tmp_path, "gguf", cell.cell.id, "int4")
    [file] = folder.glob("*.gguf")
    with pytest.raises(UserError, match=r"no tokenizer that can be read.*save its tokenizer there too"):
        tokenizer_of(study(tmp_path, folder).one_cell().model, cache=tmp_path)
    byte_tokenizer().save_pretrained(folder)
    found = study(tmp_path, folder if named == "the folder" else file, "readout.tasks=[]")
    spec = foreign(found.one_cell())
    assert (spec.format, spec.widths, spec.grid) == ("gguf", (4,), "Q4_0")
    library = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    model, _ = load_model(spec, cache=tmp_path, dtype="float32", device=CPU)
    for name, weight in library.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    # A float16 scale for each block of 32.
    bits, overhead = foreign_bits(spec, Plan.parse("int4"), num_parameters=10**5)
    assert (bits, overhead["grid_bits"]) == (4, 0.5)
    run_cell(found.one_cell(), found.setup)


def test_a_nested_folder_is_a_row_at_every_width_of_its_checkpoint(tmp_path):
    cell = trained(tmp_path)
    spec = foreign(study(tmp_path, exported(tmp_path, "nested", cell.cell.id)).one_cell())
    assert spec.widths == tuple(range(8, 0, -1))
    model, _ = load_model(spec, cache=tmp_path, dtype="float32", device=CPU)
    layers = load_checkpoint(cell.run.checkpoint, cell.cell).layers
    for plan in map(Plan.parse, ("int8", "int3", "int2")):
        read_foreign(model, spec, plan)
        assert torch.equal(logits(model), ours(cell, plan))
        bits, overhead = foreign_bits(spec, plan, num_parameters=10**5)
        assert bits == effective_bits(layers, plan)
        assert overhead == pytest.approx(overhead_bits(layers, plan, num_parameters=10**5))


def test_layers_of_a_nested_file_are_read_at_widths_of_their_own(tmp_path):
    pack, config = matgptq()
    weights = foreign_folder(tmp_path / "theirs", pack, config)
    found = study(tmp_path, tmp_path / "theirs", "readout.plans=[pyramid@5]")
    spec = foreign(found.one_cell())
    [plan] = found.setup.readout.plans_of(found.one_cell())
    model, _ = load_model(spec, cache=tmp_path, dtype="float32", device=CPU)
    read_foreign(model, spec, plan)
    slices = slices_of(plan, describe(tmp_path / "theirs")[1].layers)
    assert len(set(slices.values())) == 2
    for name, part in slices.items():
        assert torch.equal(model.get_parameter(f"{name}.weight"), weights[part.bits][f"{name}.weight"])


# --- cells and rows --------------------------------------------------------------------------------------------------


def test_a_foreign_model_is_measured_and_counted_in_its_own_bits(tmp_path):
    pack, config = gptq()
    foreign_folder(tmp_path / "theirs", pack, config)
    found = study(tmp_path, tmp_path / "theirs", "readout.tasks=[piqa]")
    cell = found.one_cell()
    assert cell.id.startswith("theirs-gptq-")
    run_cell(cell, found.setup)
    store = ResultStore(found.setup.paths.results)
    results = [store.read(path) for path in store.paths(cell.id)]
    assert {(result.plan, result.task) for result in results} == {("int4", "piqa"), ("int4", "log_pplx")}
    [_, measured] = results
    assert measured.effective_bits == 4
    layers = describe(tmp_path / "theirs")[1].layers
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    held = sum(one.nbytes for name, one in tensors.items() if "_proj" in name)
    size = sum(layer.size for layer in layers.values())
    assert measured.overhead["grid_bits"] == pytest.approx(8 * held / size - 4)
    left = sum(one.numel() for name, one in tensors.items() if "_proj" not in name)
    assert measured.overhead["model_bits"] == pytest.approx((8 * held + 16 * left) / (size + left))
    assert measured.checkpoint == foreign(cell).content


def test_a_row_says_format_tool_groups_and_what_is_left_in_16_bits(tmp_path):
    from analysis.frame.names import identities, reads_of

    pack, config = gptq()
    foreign_folder(tmp_path / "theirs", pack, config)
    found = study(tmp_path, tmp_path / "theirs")
    [row] = identities(reads_of(found.cells, found.setup.readout), found.setup.readout).values()
    assert row["label"] == "GPTQ file (gptqmodel 2.2.0)"
    assert row["grid"] == f"groups of {GROUP}, zeros that are codes, embed_tokens, lm_head in 16 bits"
    assert (row["base"], row["plan"], row["bits"]) == ("foreign", "int4", 4)


def test_two_files_of_one_format_are_told_apart_by_their_names(tmp_path):
    from analysis.frame.names import identities, reads_of

    for name, bits in (("a", 4), ("b", 4)):
        pack, config = gptq(bits, act_order=name == "b")
        foreign_folder(tmp_path / name, pack, config)
    cells = [study(tmp_path, tmp_path / name).one_cell() for name in "ab"]
    readout = study(tmp_path, tmp_path / "a").setup.readout
    labels = [row["label"] for row in identities(reads_of(cells, readout), readout).values()]
    assert labels == ["GPTQ file (gptqmodel 2.2.0), file=a", "GPTQ file (gptqmodel 2.2.0), file=b"]


def test_an_id_follows_the_content_of_the_files_and_not_their_place(tmp_path):
    pack, config = gptq()
    foreign_folder(tmp_path / "theirs", pack, config)
    first = study(tmp_path, tmp_path / "theirs").one_cell().id
    shutil.copytree(tmp_path / "theirs", tmp_path / "copy")
    assert study(tmp_path, tmp_path / "copy").one_cell().id == first
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    tensors[f"{LAYER}.scales"][0, 0] *= 2
    save_file(tensors, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    assert study(tmp_path, tmp_path / "copy").one_cell().id != first


def test_one_table_holds_files_of_several_widths_beside_cells_of_ours(tmp_path):
    for name, (pack, config) in {"a": gptq(), "b": any_precision(), "c": matgptq()}.items():
        foreign_folder(tmp_path / name, pack, config)
    theirs = [f"{{base: foreign, model: folder, model.name: tiny, model.path: {tmp_path / name}}}" for name in "abc"]
    ours = ["{base: minmax, model: tiny, bits: [int4, int8]}"]
    found = load_study(
        [*tiny_overrides(tmp_path)[1:], f"cells=[{','.join([*theirs, *ours])}]", "readout.plans=[int4,int3]"]
    )
    reads = {(cell.id.split("-")[1], str(plan)) for cell in found.cells for plan in found.setup.readout.plans_of(cell)}
    assert reads >= {("gptq", "int4"), ("any", "int4"), ("any", "int3"), ("matgptq", "int4"), ("matgptq", "int3")}
    assert ("gptq", "int3") not in reads
    # At the same nominal width, the bits that lie in the files are told apart.
    stored = {}
    for cell in found.cells:
        if isinstance(cell.model, ForeignModel):
            bits, overhead = foreign_bits(cell.model, Plan.parse("int4"), num_parameters=10**5)
            stored[cell.model.format] = bits + overhead["grid_bits"]
    assert len(set(stored.values())) == 3


def test_rows_meet_at_equal_stored_bits():
    from analysis.tables.equal_stored import at_equal_stored, equal_stored_table

    names = ("base", "config_id", "plan", "model_bits", "log_pplx")
    found = [
        ("none", "full", "full", 16.0, 3.0),
        ("foreign", "file", "int4", 4.5, 3.2),
        ("gptq", "ours", "int4", 4.4, 3.3),
        ("gptq", "ours", "int3", 3.4, 3.9),
        ("gptq", "ours", "int8", 8.4, 3.1),
        ("gptq", "ours", "int4_floor", 4.4, 3.6),
        ("foreign", "planes", "int4", 4.6, 3.25),
        ("foreign", "planes", "int3", 3.6, 3.5),
    ]
    rows = pd.DataFrame([dict(zip(names, row, strict=True)) for row in found])
    rows = rows.assign(model="m", name=rows["config_id"], task_avg=nan, task_avg_stderr=nan, log_pplx_stderr=nan)
    chosen = at_equal_stored(rows)
    assert set(chosen[["config_id", "plan", "budget"]].itertuples(index=False, name=None)) == {
        ("file", "int4", 4.5),
        ("ours", "int4", 4.5),
        ("ours", "int4_floor", 4.5),
        ("planes", "int3", 4.5),
    }
    table = equal_stored_table(rows)
    assert table is not None
    assert [entry.text for entry in table.sections[0].rows[0]][:4] == ["4.5", "file", "int4", "4.5"]
    assert table.heads[-2:] == ("Stored", "log pplx ↓"), "no column for tasks that nobody asked for"
    scored = equal_stored_table(rows.assign(task_avg=0.5))
    assert scored is not None
    assert scored.heads[-2:] == ("Task Avg ↑", "log pplx ↓")
    assert equal_stored_table(rows[rows["base"] != "foreign"]) is None


# --- refusals --------------------------------------------------------------------------------------------------------


def configure(folder: Path, **facts: object) -> None:
    known = json.loads((folder / "config.json").read_text()) | facts
    (folder / "config.json").write_text(json.dumps({key: value for key, value in known.items() if value is not None}))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    pack, config = gptq()
    folder = tmp_path_factory.mktemp("foreign") / "theirs"
    foreign_folder(folder, pack, config)
    return folder


@pytest.fixture
def folder(theirs, tmp_path) -> Path:
    return Path(shutil.copytree(theirs, tmp_path / "theirs"))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("bits=int3", "bits is not for base=foreign: theirs was quantized by somebody else, as its files say"),
        ("grid=group_64", "leave grid out"),
        ("scope=ffn", "leave scope out"),
        ("extra_bit=on", "leave extra_bit out"),
        ("slicing=floor", "leave slicing out"),
        ("data.num_sequences=4", "leave data.num_sequences out"),
        ("readout.plans=[int3]", "readout.plans names int3, and .* is read at int4; leave it out"),
        ("readout.plans=[int4,int2]", "readout.plans names int2"),
        ("readout.plans=[evolution@3]", "readout.plans names evolution@3"),
        ("readout.plans=[int4+ep]", r"readout.plans names int4\+ep"),
    ],
)
def test_settings_that_are_those_of_the_file_are_refused_by_name(word, says, folder, tmp_path):
    with pytest.raises(UserError, match=says):
        study(tmp_path, folder, word)
    assert study(tmp_path, folder).cells


def test_settings_for_the_other_cells_of_a_study_are_left_out(folder, tmp_path):
    cells = (
        f"cells=[{{base: foreign, model: folder, model.name: t, model.path: {folder}}},{{base: minmax, model: tiny}}]"
    )
    found = load_study([*tiny_overrides(tmp_path)[1:], cells, "bits=int8", "readout.plans=[int8,int3]"])
    assert [cell.base.kind for cell in found.cells] == ["foreign", "minmax"]


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"quantization_config": None}, "is not quantized: .* measure it with base=none"),
        (
            {"quantization_config": {"quant_method": "quanto"}},
            "quant_method=quanto, which is not read here; give a model",
        ),
        ({"quantization_config": {"quant_method": "awq", "version": "gemv"}}, "the gemv layout of awq"),
        ({"quantization_config": {"quant_method": "gptq", "checkpoint_format": "marlin"}}, "the marlin layout of gptq"),
        ({"quantization_config": {"quant_method": "hqq"}}, "says hqq in its configuration, and none of its tensors"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, "configuration says 8 bits, and its shapes 4"),
        (
            {"quantization_config": {"quant_method": "gptq", "group_size": 128}},
            "configuration says groups of 128, and its shapes groups of 16",
        ),
        ({"quantization_config": {"quant_method": "gptq", "group_size": -1}}, "says groups of -1, and its shapes"),
    ],
)
def test_a_configuration_of_another_format_is_refused(facts, says, folder, tmp_path):
    configure(folder, **facts)
    with pytest.raises(UserError, match=says):
        study(tmp_path, folder)


@pytest.mark.parametrize("location", ["input", "output", "q_attn", "k_cache"])
def test_weights_behind_a_rotation_of_activations_are_refused(location, folder, tmp_path):
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}
    facts = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"a": group}}
    apply = [{"targets": ["re:.*down_proj$"], "location": place} for place in (location, "weight_input")]
    rotation = {"config_groups": {"R4": {"type": "hadamard", "apply": apply}}}
    configure(folder, quantization_config={**facts, "transform_config": rotation})
    with pytest.raises(UserError, match=rf"is rotated while it runs \(R4 of its transform_config, at {location}\)"):
        study(tmp_path, folder)
    # The next sentence is about the tensors, which are GPTQ's: what is merged into weights is no obstacle.
    for merged in ({"config_groups": {"R1": {"type": "hadamard", "apply": apply[1:]}}}, {}, None):
        configure(folder, quantization_config={**facts, "transform_config": merged})
        with pytest.raises(UserError, match="none of its tensors is quantized so"):
            study(tmp_path, folder)


@pytest.mark.parametrize("format", FORMATS)
def test_a_tensor_of_a_layer_that_its_reader_does_not_use_is_refused(format, tmp_path):
    pack, config = FORMATS[format]()

    def rotated(weight):
        parts, at = pack(weight)
        return {**parts, "R4_input.weight": torch.eye(4)}, at

    foreign_folder(tmp_path / "theirs", rotated, config)
    with pytest.raises(UserError, match=r"down_proj of .* has R4_input.weight, which the reader of .* does not use"):
        study(tmp_path, tmp_path / "theirs")


def test_codes_that_no_layer_has_are_refused(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.codes"] = torch.zeros(4, dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    spec = foreign(study(tmp_path, folder).one_cell())
    with pytest.raises(UserError, match=r"1 tensor that its model does not know.*layers.0.mlp.codes"):
        check_foreign_files(spec, skeleton(spec, cache=tmp_path))


def test_scales_of_the_cache_are_left_aside_and_other_names_that_end_alike_are_not(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    attention = "model.layers.0.self_attn"
    tensors |= {f"{attention}.{name}": torch.ones(1) for name in ("k_scale", "k_proj.k_scale", "v_proj.v_scale")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    spec = foreign(study(tmp_path, folder).one_cell())
    check_foreign_files(spec, skeleton(spec, cache=tmp_path))
    save_file({**tensors, f"{attention}.block_scale": torch.ones(1)}, folder / "model.safetensors")
    spec = foreign(study(tmp_path, folder).one_cell())
    with pytest.raises(UserError, match=r"1 tensor that its model does not know.*block_scale"):
        check_foreign_files(spec, skeleton(spec, cache=tmp_path))


def test_a_pickle_is_never_loaded(folder, tmp_path):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle, which may bring code and is not loaded"):
        study(tmp_path, folder)


def test_a_raw_checkpoint_of_matgptq_names_the_command_that_makes_a_folder_of_it(tmp_path):
    (tmp_path / "raw" / LAYER).mkdir(parents=True)
    torch.save({}, tmp_path / "raw" / LAYER / "data.pt")
    with pytest.raises(UserError, match=r"matquant import matgptq .* DIR --model MODEL"):
        study(tmp_path, tmp_path / "raw")


def test_a_packed_checkpoint_of_matgptq_that_lost_its_zeros_is_refused(tmp_path):
    pack, config = matgptq()

    def lossy(weight):
        parts, at = pack(weight)
        first, last = torch.zeros_like(parts["qweight"]), parts["qweight"].clone()
        first[:, 1::2] = 255
        return {**parts, "qweight": torch.where(last > 127, 255, first).to(torch.uint8)}, at

    foreign_folder(tmp_path / "theirs", lossy, config)
    spec = study(tmp_path, tmp_path / "theirs").one_cell().model
    with pytest.raises(UserError, match=r"reach both ends of the codes.*matquant import matgptq RAW DIR"):
        load_model(spec, cache=tmp_path, dtype="float32", device=CPU)


def test_files_that_are_not_those_of_the_model_are_refused_before_anything_is_computed(folder, tmp_path):
    spec = foreign(study(tmp_path, folder).one_cell())
    tensors = load_file(folder / "model.safetensors")
    lacking = {name: one for name, one in tensors.items() if not name.startswith(LAYER)}
    save_file(lacking, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 tensor of its model.*up_proj"):
        check_foreign_files(spec, skeleton(spec, cache=tmp_path))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cut short"):
        study(tmp_path, folder)


@pytest.mark.parametrize("value", [0, 1])
def test_a_bias_that_the_model_has_not_is_left_out_where_it_is_zero(value, folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{LAYER}.bias"] = torch.full((64,), value).half()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    spec = foreign(study(tmp_path, folder).one_cell())
    if value:
        with pytest.raises(UserError, match=rf"has a {LAYER}.bias, which its model does not"):
            check_foreign_files(spec, skeleton(spec, cache=tmp_path))
    else:
        check_foreign_files(spec, skeleton(spec, cache=tmp_path))
        load_model(spec, cache=tmp_path, dtype="float32", device=CPU)


def test_a_quantized_head_that_is_tied_is_refused(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    head = {name.replace(LAYER, "lm_head"): one.clone() for name, one in tensors.items() if name.startswith(LAYER)}
    del tensors["lm_head.weight"]
    save_file({**tensors, **head}, folder / "model.safetensors", metadata={"format": "pt"})
    configure(folder, tie_word_embeddings=True)
    spec = foreign(study(tmp_path, folder).one_cell())
    with pytest.raises(UserError, match=r"has a quantized lm_head, and its config.json ties that to the embedding"):
        check_foreign_files(spec, skeleton(spec, cache=tmp_path))


def test_a_shape_that_gives_no_width_is_refused_with_its_layer(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{LAYER}.qzeros"] = tensors[f"{LAYER}.qzeros"][:, :1].contiguous()
    tensors[f"{LAYER}.qweight"] = tensors[f"{LAYER}.qweight"][:3].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{LAYER} of .* is not stored as gptq is documented"):
        study(tmp_path, folder)


def test_a_format_whose_package_is_missing_is_one_sentence(monkeypatch, folder):
    from matquant.models.foreign import compressed

    monkeypatch.setattr(compressed, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"which is not installed; pip install 'compressed-tensors>=0.18'"):
        compressed.require_library()


def test_our_own_bases_name_the_base_that_reads_a_quantized_folder(folder, tmp_path):
    spec = study(tmp_path, folder).one_cell().model
    with pytest.raises(UserError, match=r"already quantized .*, or measure it as it is with base=foreign"):
        load_model(plain(spec), cache=tmp_path, dtype="float32", device=CPU)


def plain(spec):
    from matquant.config.cell import FolderModel

    return FolderModel(kind="folder", name=spec.name, path=spec.path)


def test_a_model_of_the_hub_is_downloaded_first(tmp_path):
    with pytest.raises(UserError, match=r"base=foreign reads a folder or a GGUF file.*`hf download"):
        load_study([*tiny_overrides(tmp_path)[1:], "model=tiny", "base=foreign"])


def test_only_what_is_asked_for_is_read(folder):
    files, found = describe(folder)
    with ForeignTensors(files, found) as tensors:
        assert tensors.weight(LAYER, 4).shape == found.layers[LAYER].shape
        assert set(tensors.names()) >= {"model.embed_tokens.weight", "lm_head.weight"}
