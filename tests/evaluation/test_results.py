"""Results: one file a key, nothing overwritten by another protocol, nothing trusted that is not whole."""

from __future__ import annotations

import dataclasses
import json

import pytest

from evaluation.results.store import Key, Result, ResultStore, documents_path

PROTOCOL = {"task": "piqa", "limit": 10, "dtype": "bfloat16"}
RESULT = Result("cell-1", "int4", "piqa", PROTOCOL, {"acc": 0.5}, 2, 4.0)
DOCUMENTS = {"doc_id": [0, 300], "acc": [1, 0], "f1": [0.25, None]}


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path)


def test_a_result_is_read_back_as_it_was_put(store):
    store.put(RESULT, DOCUMENTS)
    assert list(store.results("cell-1")) == [RESULT]
    assert store.documents(RESULT.key) == DOCUMENTS
    assert store.has(RESULT.key)


@pytest.mark.parametrize("change", [{"limit": 20}, {"dtype": "float32"}, {"extra": 1}])
def test_another_protocol_is_another_file(store, change):
    other = dataclasses.replace(RESULT, protocol={**PROTOCOL, **change})
    store.put(RESULT, DOCUMENTS)
    assert not store.has(other.key)
    store.put(other, DOCUMENTS)
    assert len(list(store.results("cell-1"))) == 2


def test_a_file_cut_short_counts_as_missing(store):
    store.put(RESULT, DOCUMENTS)
    path = store.path(RESULT.key)
    for length in (0, 1, path.stat().st_size - 3):
        path.write_text(path.read_text()[:length])
        assert not store.has(RESULT.key)


def test_documents_cut_short_count_as_missing(store):
    store.put(RESULT, DOCUMENTS)
    path = documents_path(store.path(RESULT.key))
    whole = path.read_bytes()
    for length in (0, 1, len(whole) - 3):
        path.write_bytes(whole[:length])
        assert not store.has(RESULT.key)
        with pytest.raises(ValueError, match=r"piqa-.*parquet cannot be read .* evaluate again"):
            store.documents(RESULT.key)
    path.unlink()
    assert not store.has(RESULT.key)


def test_fewer_documents_than_the_result_counts_is_missing(store):
    store.put(RESULT, {"doc_id": [0], "acc": [1]})
    assert not store.has(RESULT.key)


def test_ten_thousand_documents_take_a_few_kilobytes(store):
    outcomes = [index % 3 == 0 for index in range(10_000)]
    many = dataclasses.replace(RESULT, num_documents=10_000)
    store.put(many, {"doc_id": list(range(10_000)), "acc": list(map(int, outcomes))})
    assert documents_path(store.path(many.key)).stat().st_size < 50_000


def test_a_file_copied_to_another_place_counts_as_missing(store):
    store.put(RESULT, DOCUMENTS)
    key = Key("cell-1", "int2", "piqa", PROTOCOL)
    store.path(key).parent.mkdir()
    store.path(key).write_bytes(store.path(RESULT.key).read_bytes())
    assert not store.has(key)


def test_what_is_not_a_result_is_named(store):
    store.put(RESULT, DOCUMENTS)
    store.path(RESULT.key).write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"piqa-.*json is not a whole result file"):
        list(store.results("cell-1"))


def test_what_a_cell_is_stands_beside_its_results_and_is_written_once(store, tmp_path):
    store.put_cell("cell-1", {"a": 1})
    store.put_cell("cell-1", {"a": 2})
    assert (tmp_path / "cell-1/cell.json").read_text() == '{\n "a": 1\n}\n'


EDITS = [
    ({"metrics": {"acc": "0.5"}}, 'metrics.acc is "0.5", which is no number'),
    ({"metrics": {"acc": "0.5", "acc_norm": 0.5}}, 'metrics.acc is "0.5", which is no number'),
    ({"metrics": {"acc": 1.5}}, r"metrics.acc is 1.5, which is no share of documents \(0 to 1\)"),
    ({"metrics": {"acc_norm": -0.1}}, "metrics.acc_norm is -0.1, which is no share"),
    ({"metrics": {"exact_match,strict-match": 50.0}}, "metrics.exact_match,strict-match is 50.0, which is no share"),
    ({"metrics": {"acc": 0.5, "acc_stderr": "N/A"}}, 'metrics.acc_stderr is "N/A", which is no number'),
    ({"metrics": {"acc": True}}, "metrics.acc is true, which is no number"),
    ({"metrics": {"acc": float("nan")}}, "metrics.acc is NaN, which is no number"),
    ({"metrics": {"log_pplx": -1.0}}, "metrics.log_pplx is -1.0, which is below 0"),
    ({"metrics": {"f1": 50.0, "f1_stderr": -1.0}}, "metrics.f1_stderr is -1.0, which is below 0"),
    ({"num_documents": 0}, "num_documents is 0, which is no number of documents"),
    ({"num_documents": 2.0}, "num_documents is 2.0, which is no number of documents"),
    ({"effective_bits": float("inf")}, "effective_bits is Infinity, which is no number of bits"),
    ({"effective_bits": 32.0}, r"effective_bits is 32.0, which is no number of bits \(up to 16\)"),
    ({"overhead": {"grid_bits": -3.0}}, "overhead.grid_bits is -3.0, which is no number of bits"),
    ({"overhead": {"grid_bits": "1"}}, 'overhead.grid_bits is "1", which is no number'),
    ({"sources": {"model": 1}}, "sources.model is 1, which is no text"),
]


@pytest.mark.parametrize(("edit", "words"), EDITS)
def test_a_value_that_no_result_has_is_named_and_counts_as_missing(store, edit, words):
    store.put(RESULT, DOCUMENTS)
    path = store.path(RESULT.key)
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    with pytest.raises(ValueError, match=rf"piqa-.*json is no sound result: {words}.*; delete it and evaluate again"):
        store.read(path)
    assert not store.has(RESULT.key)


def test_metrics_on_other_scales_are_left_alone(store):
    metrics = {"f1": 50.0, "bleu": 34.5, "mcc": -0.2, "word_perplexity": 1e9, "acc_norm": 1.0, "acc": 0.0}
    store.put(dataclasses.replace(RESULT, metrics=metrics), DOCUMENTS)
    assert store.has(RESULT.key)


def test_a_result_without_sources_is_read_as_one_of_an_earlier_version(store):
    store.put(RESULT, DOCUMENTS)
    path = store.path(RESULT.key)
    facts = json.loads(path.read_text())
    del facts["sources"]
    path.write_text(json.dumps(facts))
    assert store.read(path) == RESULT
    assert store.sources("cell-1") == [{}]
