"""Results: one file a key, nothing overwritten by another protocol, nothing trusted that is not whole."""

from __future__ import annotations

import dataclasses

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
