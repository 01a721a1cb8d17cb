"""Identity is content: other weights or other text under an old name never meet old codes or old results."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evaluation.export import export
from evaluation.identity import require_same_widths
from evaluation.planning import preflight
from evaluation.results.pack import pack
from evaluation.results.store import ResultStore
from evaluation.stages import run_cell
from matquant.config.study import Study
from matquant.errors import UserError
from matquant.models.fingerprint import model_fingerprint
from matquant.models.loading import load_model
from matquant.models.random_model import byte_tokenizer, random_config
from matquant.models.text import documents
from matquant.notation import Plan
from matquant.runs import stopping
from matquant.runs.files import read_json, write_json
from matquant.runs.folder import RunDir
from matquant.runs.stopping import Stopped
from matquant.search.stage import search
from matquant.stored import digests
from slurm.launch import launch
from tests.made_results import MATQUANT, measure, quantized
from tests.made_results import study as made_study
from tests.tiny import TINY_GPTQ

SMALL = ("readout.tasks=[]", "readout.plans=[int8]", "readout.perplexity.num_sequences=2")


def write_model(folder: Path, seed: int) -> None:
    """Writes a small model with random weights and its tokenizer, over one that may be there."""
    import torch
    from transformers import AutoModelForCausalLM

    from matquant.config.cell import RandomModel

    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        spec = RandomModel(kind="random", name="m", architecture="llama", config=config)
        AutoModelForCausalLM.from_config(random_config(spec)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


@pytest.fixture
def folder(tmp_path) -> Path:
    write_model(tmp_path / "model", seed=0)
    return tmp_path / "model"


@pytest.fixture
def of_folder(tiny_study, folder):
    """Composes a study of the model in the folder."""

    def compose(*overrides: str) -> Study:
        return tiny_study("model=folder", f"model.path={folder}", "model.name=mine", *SMALL, *overrides)

    return compose


def run(study: Study) -> list[float]:
    """Does as `matquant run` does: checks, then runs every cell; returns what is on disk then."""
    preflight.check([study])
    for cell in study.cells:
        run_cell(cell, study.setup)
    store = ResultStore(study.setup.paths.results)
    return [result.metrics["log_pplx"] for cell in study.cells for result in store.results(cell.id)]


def refusal(study: Study) -> str:
    """The sentence that refuses a study before anything is computed."""
    with pytest.raises(UserError) as caught:
        preflight.check([study])
    with pytest.raises(UserError, match=re.escape(str(caught.value))):  # a job of a cluster comes without the checks
        run_cell(study.cells[0], study.setup)
    return str(caught.value)


def type_removal(sentence: str) -> None:
    """Types the command that a sentence ends with."""
    command = sentence[sentence.index("or delete those: ") + len("or delete those: ") :]
    typed = command.replace("matquant ", f"{shlex.quote(sys.executable)} -m matquant ", 1)
    subprocess.run(typed if "--unpack" in command else command, shell=True, check=True)


@pytest.mark.parametrize("base", ["base=none", "base=minmax"])
def test_other_weights_under_the_same_path_are_refused_and_both_remedies_work(of_folder, folder, tmp_path, base):
    old = run(of_folder(base))
    write_model(folder, seed=1)
    sentence = refusal(of_folder(base))
    cell_id = of_folder(base).cells[0].id
    assert f"model.path={folder} holds other weights" in sentence
    assert f"made {tmp_path / 'runs' / cell_id} and {tmp_path / 'results' / cell_id}" in sentence
    assert refusal(of_folder(base, "readout.perplexity.num_sequences=3")) == sentence  # more is asked of the same cell

    (name,) = re.findall(r"model\.name=\S+(?=,)", sentence)
    new = run(of_folder(base, name))
    assert new != old
    type_removal(sentence)
    assert run(of_folder(base)) == new


def test_weights_that_come_back_are_the_same_model(of_folder, folder, tmp_path):
    (tmp_path / "other").mkdir()
    old = run(of_folder("base=none"))
    write_model(folder, seed=1)
    refusal(of_folder("base=none"))
    write_model(folder, seed=0)
    assert run(of_folder("base=none")) == old


def test_a_time_of_modification_that_is_set_back_hides_nothing(of_folder, folder, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_S", 0.0)
    run(of_folder("base=none"))
    weights = folder / "model.safetensors"
    before = weights.stat()
    whole = bytearray(weights.read_bytes())
    whole[-1] ^= 1
    weights.write_bytes(bytes(whole))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_mtime_ns == before.st_mtime_ns
    assert "holds other weights" in refusal(of_folder("base=none"))


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "chat_template.jinja", "generation_config.json"])
def test_another_tokenizer_or_configuration_is_another_model(of_folder, folder, name):
    (folder / name).touch()  # one may have none
    run(of_folder("base=none"))
    (folder / name).write_text((folder / name).read_text() + "\n")
    assert "or another config or tokenizer" in refusal(of_folder("base=none"))


def test_files_that_no_model_is_read_from_change_nothing(folder, tmp_path):
    spec = {"kind": "folder", "name": "m", "path": str(folder)}
    before = fingerprint(spec, tmp_path)
    for name in ("README.md", "trainer_state.json", "pytorch_model.bin"):
        (folder / name).write_text("{}")
    assert fingerprint(spec, tmp_path) == before


def test_shards_are_part_of_a_model(folder, tmp_path):
    spec = {"kind": "folder", "name": "m", "path": str(folder)}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "model-00001-of-00001.safetensors"}})
    before = fingerprint(spec, tmp_path)
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"other")
    assert fingerprint(spec, tmp_path) != before


def fingerprint(facts: dict[str, str], cache: Path) -> str | None:
    from pydantic import TypeAdapter

    from matquant.config.cell import ModelSpec

    return model_fingerprint(TypeAdapter(ModelSpec).validate_python(facts), cache)


def test_an_interrupted_training_does_not_go_on_with_other_weights(of_folder, folder, monkeypatch):
    study = of_folder(*TINY_GPTQ, "bits=int8")
    (cell,) = study.cells
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "requested", lambda: True)
        with pytest.raises(Stopped):
            run_cell(cell, study.setup)
    state = RunDir(study.setup.paths.runs, cell.id).state
    assert list(state.glob("*.safetensors"))
    write_model(folder, seed=1)
    sentence = refusal(study)
    assert "holds other weights" in sentence
    assert list(state.glob("*.safetensors"))  # nothing is lost
    type_removal(sentence)
    assert run(study)


def test_searches_and_exports_do_not_meet_other_weights(of_folder, folder, tmp_path):
    study = of_folder(*TINY_GPTQ, "bits=matquant")
    (cell,) = study.cells
    run(study)
    checkpoint = read_json(RunDir(study.setup.paths.runs, cell.id).description)
    assert set(checkpoint["sources"]) == {"model", "text"}
    write_model(folder, seed=1)
    with pytest.raises(UserError, match="holds other weights"):
        search(cell, study.setup, [Plan.parse("dynamic_program@3.5")])
    with pytest.raises(UserError, match="holds other weights"):
        export(cell, study.setup, Plan.parse("int4"), tmp_path / "exported")


def test_calibration_text_is_told_by_its_content(of_folder, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("\n\n\n".join(f"{number} of many short documents in a file of text" * 3 for number in range(200)))
    overrides = (*TINY_GPTQ, "bits=int8", "data=text_files", f"data.paths=[{file}]", "data.num_sequences=2")
    small = "data.sequence_length=32"
    run(of_folder(*overrides, small))
    file.write_text(file.read_text().replace("short", "brief"))
    sentence = refusal(of_folder(*overrides, small))
    assert f"data.paths=[{file}] holds other text" in sentence
    type_removal(sentence)
    run(of_folder(*overrides, small))


def test_packed_results_are_of_the_old_weights_too(of_folder, folder, tmp_path):
    study = of_folder("base=none")
    run(study)
    pack(tmp_path / "results")
    subprocess.run(["rm", "-r", tmp_path / "runs"], check=True)
    write_model(folder, seed=1)
    sentence = refusal(study)
    assert (
        f"matquant pack {tmp_path / 'results'} --unpack && rm -r {tmp_path / 'results' / study.cells[0].id}" in sentence
    )
    type_removal(sentence)
    assert len(run(study)) == 1


def test_a_launch_names_a_finished_cell_of_other_weights(of_folder, folder, capsys):
    from slurm.launch import Options

    study = of_folder("base=none", "cluster=debug")
    run(study)
    write_model(folder, seed=1)
    options = Options((), dry_run=True, retry_failed=None, only=(), cancel=False, wait=False, show_all=False)
    launch(study, options)
    assert f"{study.cells[0].id}: model.path={folder} holds other weights" in capsys.readouterr().out


def test_a_model_that_changes_while_it_is_read_is_refused(of_folder, folder, monkeypatch):
    from evaluation import evaluate

    def load(*given: Any, **named: Any) -> Any:
        loaded = load_model(*given, **named)
        write_model(folder, seed=1)
        return loaded

    monkeypatch.setattr(evaluate, "load_model", load)
    with pytest.raises(UserError, match=r"the model of mine-none-.* was changed while it was read; run the same"):
        run(of_folder("base=none"))
    monkeypatch.undo()
    assert run(of_folder("base=none"))


def test_a_model_of_which_nothing_was_made_may_be_replaced(of_folder, folder, monkeypatch):
    from matquant.training import train

    def fail(*_: Any, **__: Any) -> None:
        raise FloatingPointError("not finite")

    with monkeypatch.context() as patch:
        patch.setattr(train.minmax, "fit", fail)
        with pytest.raises(FloatingPointError):
            run(of_folder("base=minmax"))
    write_model(folder, seed=1)
    assert run(of_folder("base=minmax"))


# --- records of earlier versions -------------------------------------------------------------------------------------


def forget_sources(folder: Path) -> None:
    """Makes runs and results such as an earlier version wrote."""
    for path in folder.glob("runs/*/sources.json"):
        path.unlink()
    for path in [*folder.glob("results/*/*/*.json"), *folder.glob("runs/*/checkpoint/nested.json")]:
        facts = json.loads(path.read_text())
        del facts["sources"]
        path.write_text(json.dumps(facts))


def test_old_results_are_shown_and_new_work_joins_them_once_the_user_vouches(of_folder, folder, tmp_path):
    old, more = of_folder("base=minmax"), of_folder("base=minmax", "readout.plans=[int8,int4]")
    numbers = run(old)
    forget_sources(tmp_path)
    assert run(old) == numbers
    sentence = refusal(more)
    assert "do not say which weights or text made them" in sentence
    subprocess.run(sentence[sentence.index("mkdir -p") : sentence.index("; else delete")], shell=True, check=True)
    assert len(run(more)) == 2
    write_model(folder, seed=1)
    assert "holds other weights" in refusal(old)


def test_an_embedded_or_random_model_needs_no_record(tiny_study, tmp_path):
    old, more = tiny_study("base=none", *SMALL), tiny_study("base=none", *SMALL, "readout.perplexity.num_sequences=3")
    run(old)
    forget_sources(tmp_path)
    assert len(run(more)) == 2


# --- the hub ---------------------------------------------------------------------------------------------------------


def test_a_branch_of_the_hub_that_has_moved_is_refused(tiny_study, folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    place = tmp_path / "hub/models--a--b"
    (place / "refs").mkdir(parents=True)
    for digit, seed in (("a", 0), ("b", 1)):
        write_model(place / "snapshots" / (digit * 40), seed)
    (place / "refs/main").write_text("a" * 40)
    hub = ("model=hub", "model.repo=a/b", "model.name=b", "model.dtype=float32", "base=none", *SMALL)
    old = run(tiny_study(*hub))
    (place / "refs/main").write_text("b" * 40)
    sentence = refusal(tiny_study(*hub))
    assert f"model.revision=main of a/b holds other weights (bbbbbbbb) than made {tmp_path / 'runs'}" in sentence
    (commit,) = re.findall(r"model\.revision=b\S+(?=,)", sentence)
    assert run(tiny_study(*hub, commit)) != old


def test_held_out_text_of_a_branch_that_has_moved_is_refused(tiny_study, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(documents, "_stream", lambda *_: [{"text": "some held-out text " * 100}] * 3)
    main = tmp_path / "hub/datasets--wiki--text/refs/main"
    main.parent.mkdir(parents=True)
    main.write_text("a" * 40)
    overrides = ("base=none", *SMALL, "perplexity=wikitext2", "readout.perplexity.repo=wiki/text")
    run(tiny_study(*overrides))
    assert run(tiny_study(*overrides))
    main.write_text("b" * 40)
    sentence = refusal(tiny_study(*overrides))
    assert "readout.perplexity.revision=main of wiki/text holds other text (bbbbbbbb)" in sentence
    run(tiny_study(*overrides, f"readout.perplexity.revision={'b' * 40}"))


# --- cost ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_once_for_each_time_that_it_changes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_S", 0.0)
    read, sha256_of = list[str](), digests.sha256_of
    monkeypatch.setattr(digests, "sha256_of", lambda path, told: (read.append(path.name), sha256_of(path, told))[1])
    spec = {"kind": "folder", "name": "m", "path": str(folder)}
    first = fingerprint(spec, tmp_path)
    facts = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(read) == facts
    read.clear()
    assert fingerprint(spec, tmp_path) == first
    assert not read
    (folder / "config.json").touch()
    assert fingerprint(spec, tmp_path) == first
    assert read == ["config.json"]


def test_a_memory_that_is_damaged_is_not_trusted(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_S", 0.0)
    spec = {"kind": "folder", "name": "m", "path": str(folder)}
    first = fingerprint(spec, tmp_path)
    for number, entry in enumerate((tmp_path / "digests").iterdir()):
        entry.write_bytes((b"", b"abc", b"\xff" * 64, b"g" * 64)[number % 4])
    assert fingerprint(spec, tmp_path) == first


def test_codes_of_a_second_training_are_not_measured_beside_results_of_the_first(tiny_study):
    words = ("base=minmax", "bits=int8", *(word for word in SMALL if "plans" not in word))
    first, more = (tiny_study(*words, f"readout.plans=[{plans}]") for plans in ("int8", "int8,int4"))
    run(first)
    cell, results = first.cells[0], ResultStore(first.setup.paths.results)
    for path in results.paths(cell.id):  # as another machine would have made them
        path.write_text(path.read_text().replace(json.loads(path.read_text())["checkpoint"], "0" * 64))
    sentence = refusal_of_run(more)
    assert "holds other codes than" in sentence
    assert sentence.endswith(f"again after: rm -r {results.folder / cell.id}")
    shutil.rmtree(results.folder / cell.id)
    assert run(more)


def test_widths_of_a_second_search_are_not_measured_beside_results_of_the_first(tmp_path):
    made = made_study(tmp_path, [quantized(MATQUANT)], plans=("evolution@3",))
    (cell,), store = made.cells, ResultStore(made.setup.paths.results)
    (plan,) = made.setup.readout.plans_of(cell)
    first, second = ({"layers": {"a": bits}, "search": {}} for bits in ("int4", "int2"))
    store.put_plan(cell.id, str(plan), first)
    require_same_widths(cell, plan, second, store)  # nothing was measured with the first
    measure(made)
    require_same_widths(cell, plan, {**first, "search": {"dtype": "bfloat16"}}, store)
    with pytest.raises(UserError, match=r"a search found other widths for evolution@3.* again after: rm -r "):
        require_same_widths(cell, plan, second, store)


def refusal_of_run(study) -> str:
    with pytest.raises(UserError) as refused:
        run(study)
    return str(refused.value)
