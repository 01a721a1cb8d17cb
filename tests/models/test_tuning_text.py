"""Tuning text: held-out documents for choosing defaults, of which none is test text, and numbers that say so."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from analysis.frame.load import load_frame
from analysis.frame.summary import summary
from analysis.report.compare import difference_lines, measured
from analysis.report.wandb_report import as_json, build
from analysis.tables.summary_table import summary_table
from evaluation.planning.preflight import refusals
from evaluation.protocol import protocols
from evaluation.results.readouts import readout_point, readout_rows
from evaluation.results.store import ResultStore, protocol_id
from matquant.config.cell import Cell, EmbeddedText, FilesText, HubText, TextSpec
from matquant.config.study import load_study
from matquant.errors import UserError
from matquant.models.random_model import byte_tokenizer
from matquant.models.text.documents import documents, tuning_half
from matquant.models.text.tokens import blocks_before, heldout_tokens
from tests import made_results

EMBEDDED = EmbeddedText(kind="embedded", num_sequences=48, sequence_length=256, tokens_per_document=256)


def tuning(spec: TextSpec) -> TextSpec:
    return spec.model_copy(update={"part": "tuning"})


def files(folder: Path, count: int) -> FilesText:
    """A text file of so many documents, every twentieth of which is there twice."""
    found = [f"document {index - index % 20 // 19} of this file" for index in range(count)]
    (folder / "a.txt").write_text("\n\n\n".join(found))
    return FilesText(kind="text_files", paths=(str(folder / "a.txt"),), num_sequences=2, sequence_length=8)


class Rows(list[dict[str, str]]):
    """A data set of the hub, which is shuffled by turning it around."""

    def shuffle(self, **_: int) -> Rows:
        return Rows(reversed(self))


def hub(monkeypatch: pytest.MonkeyPatch, count: int, **changes: str) -> HubText:
    rows = Rows({"text": f"row {index % (count - 2)}"} for index in range(count))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    return HubText.model_validate({"kind": "hub", "repo": "a/b", "num_sequences": 1, "sequence_length": 8, **changes})


@pytest.mark.parametrize("count", range(9))
def test_tuning_text_is_the_second_half_of_the_held_out_documents_backwards(count):
    ordered = [str(index) for index in range(count)]
    assert [*ordered[: (count + 1) // 2], *reversed(list(tuning_half(ordered)))] == ordered


def test_a_document_that_is_held_out_twice_is_test_text():
    assert list(tuning_half(["a", "b", "a", "c"])) == ["c"]


@pytest.mark.parametrize("kind", ["embedded", "text_files", "hub"])
def test_text_of_any_kind_begins_with_test_text_and_ends_with_tuning_text(kind, tmp_path, monkeypatch):
    made = {
        "embedded": lambda: EMBEDDED,
        "text_files": lambda: files(tmp_path, 400),
        "hub": lambda: hub(monkeypatch, 60),
    }
    spec = made[kind]()
    test, tuned = list(documents(spec, "heldout", seed=0)), list(documents(tuning(spec), "heldout", seed=0))
    first = test[: (len(test) + 1) // 2]
    assert tuned == [text for text in reversed(test[len(first) :]) if text not in first] != []
    if kind != "hub":
        assert not set(tuned) & set(documents(spec, "train", seed=0))


def test_the_embedded_test_text_and_tuning_text_share_no_document():
    assert blocks_before(EMBEDDED, tuning(EMBEDDED), byte_tokenizer(), add_bos=False) is None
    assert blocks_before(tuning(EMBEDDED), EMBEDDED, byte_tokenizer(), add_bos=False) is None


def test_tuning_text_that_is_too_short_names_its_part_and_a_number_that_works(tmp_path):
    spec = files(tmp_path, 400).model_copy(update={"num_sequences": 9_000, "part": "tuning"})
    with pytest.raises(
        UserError, match=r"tokens of tuning text .* set readout\.perplexity\.num_sequences=(\d+)"
    ) as told:
        heldout_tokens(spec, byte_tokenizer(), add_bos=False)
    number = int(str(told.value).partition("num_sequences=9000")[2].partition("num_sequences=")[2].split()[0])
    fitting = spec.model_copy(update={"num_sequences": number})
    assert heldout_tokens(fitting, byte_tokenizer(), add_bos=False).shape == (number, 8)


def test_rows_that_are_one_document_have_no_tuning_text(monkeypatch):
    with pytest.raises(ValueError, match=r"joined to one document.*choose perplexity=tuning"):
        hub(monkeypatch, 9, separator="\n", part="tuning")


def test_nothing_is_trained_on_a_part_of_held_out_text():
    with pytest.raises(ValueError, match=r"data\.part=tuning.*readout\.perplexity\.part=tuning"):
        Cell.model_validate({**made_results.quantized({"int8": 1.0}).model_dump(), "data": tuning(EMBEDDED)})


def test_tuning_text_is_as_long_as_the_long_test_text_under_another_protocol():
    test, tuned = (
        load_study(["model=tiny", f"perplexity={name}"]).setup.readout for name in ("embedded_long", "tuning")
    )
    ours, theirs = (protocols(readout, add_bos=False)["log_pplx"] for readout in (test, tuned))
    assert "part" not in ours  # numbers of before keep their place
    assert theirs == {**ours, "part": "tuning"}
    assert protocol_id(ours) != protocol_id(theirs)


# --- numbers ---------------------------------------------------------------------------------------------------------


def both_parts(folder: Path):
    """The same cells, measured on test text and on tuning text."""
    text = {**made_results.TEXT, "part": "tuning"}
    test, tuned = (
        made_results.study(folder, made_results.paper_cells(), perplexity=perplexity)
        for perplexity in (made_results.TEXT, text)
    )
    made_results.measure(test)
    return test, tuned


def test_a_number_of_one_part_is_not_shown_for_the_other_and_its_option_is_named(tmp_path):
    test, tuned = both_parts(tmp_path)
    loaded = load_frame(tuned.cells, tuned.setup, ResultStore(tuned.setup.paths.results))
    assert (loaded.missing["task"] == "log_pplx").all()
    assert summary(loaded)["log_pplx"].isna().all()
    assert any("add readout.perplexity.part=test to show them" in sentence for sentence in loaded.others)
    made_results.measure(tuned)
    loaded = load_frame(test.cells, test.setup, ResultStore(test.setup.paths.results))
    assert any("add readout.perplexity.part=tuning to show them" in sentence for sentence in loaded.others)


def test_every_row_says_that_it_was_read_on_tuning_text(tmp_path):
    test, tuned = both_parts(tmp_path)
    made_results.measure(tuned)
    for study, expected in ((test, False), (tuned, True)):
        rows = summary(load_frame(study.cells, study.setup, ResultStore(study.setup.paths.results)))
        assert all(label.endswith("read on tuning text") == expected for label in rows["label"])
        text = str(summary_table(rows, made_results.TASKS))
        assert ("no document of it is test text" in text) == expected


def test_a_tracker_gets_numbers_of_tuning_text_under_a_name_of_their_own(tmp_path):
    test, tuned = both_parts(tmp_path)
    store = made_results.measure(tuned)
    for study, name, other in ((test, "log_pplx", "log_pplx_tuning"), (tuned, "log_pplx_tuning", "log_pplx")):
        wanted = protocols(study.setup.readout, add_bos=False)
        rows = readout_rows(store, study.cells[-1].id, wanted)
        assert f"readout/{name}" in readout_point(rows, "int2")
        assert f"readout/{other}" not in readout_point(rows, "int2")


def test_a_report_of_tuning_text_draws_its_numbers_under_their_own_name(tmp_path):
    test, tuned = both_parts(tmp_path)
    store = made_results.measure(tuned)
    for study, name, other in ((test, "log_pplx", "log_pplx_tuning"), (tuned, "log_pplx_tuning", "log_pplx")):
        text = json.dumps(as_json(build(study, load_frame(study.cells, study.setup, store))))
        assert f'"readout/{name}"' in text
        assert f'"readout/{other}"' not in text


def test_a_comparison_says_which_part_a_text_is(tmp_path):
    _, tuned = both_parts(tmp_path)
    store = made_results.measure(tuned)
    ours, theirs = (measured(f"{cell.id}:int2", store) for cell in tuned.cells[2:])
    printed = "\n".join(difference_lines(ours, theirs))
    assert "measured with part test:" in printed
    assert "measured with part tuning:" in printed


def test_a_text_that_reaches_into_the_other_part_that_was_measured_is_refused(tmp_path):
    spec = files(tmp_path, 400)
    heldout = sum(len(document) + 1 for document in documents(spec, "heldout", seed=0)) // 8
    tuned = {**spec.model_dump(), "part": "tuning"}
    study = made_results.study(tmp_path, made_results.paper_cells()[:1], tasks=(), perplexity=tuned)
    made_results.measure(study)
    for number, is_refused in ((heldout, True), (2, False)):
        text = {**spec.model_dump(), "num_sequences": number}
        test = made_results.study(tmp_path, study.cells, tasks=(), perplexity=text)
        found = refusals(test.cells, test.setup)
        assert bool(found) == is_refused, found
        if is_refused:
            (sentence,) = found.values()
            assert "the test text takes documents that" in str(sentence)
            assert "set readout.perplexity.num_sequences=" in str(sentence)
