"""Windows as GPTQ's scripts cut them: the number of an independent script, and a protocol of its own."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from analysis.frame.conventions import WINDOWS as CHOICES
from analysis.frame.load import load_frame
from analysis.frame.summary import summary
from analysis.report.card_words import protocol_lines
from analysis.tables.summary_table import summary_table
from evaluation.planning.preflight import refusals
from evaluation.planning.text_size import sequences_of
from evaluation.protocol import protocols
from evaluation.results.store import ResultStore, protocol_id
from evaluation.text.perplexity import block_nats, log_perplexity
from matquant.config.cell import EmbeddedText, FilesText, HubText, TextSpec
from matquant.config.study import load_study
from matquant.errors import UserError
from matquant.models.random_model import byte_tokenizer
from matquant.models.text.documents import documents
from matquant.models.text.tokens import heldout_tokens
from reference.windows_reference import perplexity
from tests import made_results
from tests.evaluation.test_identity import run, write_model

GPTQ = ("wikitext2_gptq", "c4_gptq")


def made_rows(number: int, seed: int = 0) -> list[str]:
    """Rows of a few words, some of them empty, as WikiText's are."""
    draw = random.Random(seed)
    words = ["one", "two", " = three = \n", "vier é"]
    return [" ".join(draw.choices(words, k=draw.randrange(30))) for _ in range(number)]


ROWS = made_rows(150)


def text_of(choice: str, **changes: Any) -> HubText:
    """The text of a choice of `perplexity`."""
    spec = load_study(["model=tiny", f"perplexity={choice}"]).setup.readout.perplexity
    return HubText.model_validate({**HubText.model_validate(spec, from_attributes=True).model_dump(), **changes})


class Rows(list[dict[str, str]]):
    """A data set of the hub, in which nothing is shuffled."""

    def shuffle(self, **_: int) -> Rows:
        return self


@pytest.fixture
def hub(monkeypatch) -> None:
    """A hub whose every data set holds the same rows."""
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Rows({"text": row} for row in ROWS))


# --- the number ------------------------------------------------------------------------------------------------------


def test_the_number_of_a_run_is_that_of_an_independent_script(tiny_study, tmp_path):
    """A folder of jsonl stands for the data set, which the run streams as it streams one of the hub."""
    write_model(tmp_path / "model", seed=0)
    (tmp_path / "rows").mkdir()
    lines = "".join(json.dumps({"text": row}) + "\n" for row in ROWS)
    (tmp_path / "rows" / "test.jsonl").write_text(lines)
    (tmp_path / "rows" / "train.jsonl").write_text(lines)
    study = tiny_study(
        *("model=folder", f"model.path={tmp_path / 'model'}", "model.name=mine", "base=none", "readout.tasks=[]"),
        *(
            "perplexity=wikitext2_gptq",
            f"readout.perplexity.repo={tmp_path / 'rows'}",
            "readout.perplexity.subset=null",
        ),
        *("readout.perplexity.num_sequences=null", "readout.perplexity.sequence_length=64", "readout.dtype=float32"),
    )
    (nats,) = run(study)
    assert math.exp(nats) == pytest.approx(perplexity(str(tmp_path / "model"), ROWS, length=64), rel=1e-5)


@pytest.mark.parametrize("choice", GPTQ)
@pytest.mark.parametrize("special_tokens", [False, True])
@pytest.mark.parametrize("sets_bos", [False, True])
def test_rows_amounts_and_special_tokens_are_those_of_the_script(choice, special_tokens, sets_bos, hub, tmp_path):
    write_model(tmp_path, seed=0)
    byte_tokenizer(sets_bos=sets_bos).save_pretrained(tmp_path)
    amounts = {"num_rows": 40, "most_sequences": 9} if choice == "c4_gptq" else {}
    spec = text_of(choice, sequence_length=64, special_tokens=special_tokens, **amounts)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    blocks = heldout_tokens(spec, tokenizer, add_bos=sets_bos)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = log_perplexity(torch.cat(list(block_nats(model, blocks, batch_size=4))), 63)
    assert spec.separator is not None
    rows = ROWS[: spec.num_rows]
    if spec.most_sequences:  # the script's slice, of a text of one byte a token
        text = spec.separator.join(rows)
        size = spec.most_sequences * 64 - int(special_tokens and sets_bos)
        rows = [text.encode()[:size].decode(errors="ignore")]
    theirs = perplexity(str(tmp_path), rows, separator=spec.separator, length=64, bos=special_tokens)
    assert math.exp(ours.mean) == pytest.approx(theirs, rel=1e-5)
    assert len(blocks) == (spec.most_sequences or len(blocks))


def spaced_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of whole words, to which a space or a line end is nothing."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<unk>", "one", "two", "three", "vier", "é", "="])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), byte_tokenizer(sets_bos=True), spaced_tokenizer()])
def test_windows_are_the_tokens_of_the_joined_text_without_a_bos_token(tokenizer, hub):
    spec = text_of("wikitext2_gptq", sequence_length=32)
    whole = tokenizer("\n\n".join(ROWS), add_special_tokens=False, verbose=False)["input_ids"]
    for add_bos in (False, True):
        blocks = heldout_tokens(spec, tokenizer, add_bos=add_bos)
        assert blocks.flatten().tolist() == whole[: len(whole) // 32 * 32]
    few = heldout_tokens(spec.model_copy(update={"num_sequences": 3}), tokenizer, add_bos=True)
    assert few.flatten().tolist() == whole[:96]


# --- amounts ---------------------------------------------------------------------------------------------------------


def refusal(spec: TextSpec) -> str:
    with pytest.raises(UserError) as told:
        heldout_tokens(spec, byte_tokenizer(), add_bos=False)
    return str(told.value)


def test_more_windows_than_there_are_are_refused_with_their_number(hub):
    spec = text_of("wikitext2_gptq", sequence_length=64)
    there = len(heldout_tokens(spec, byte_tokenizer(), add_bos=False))
    sentence = refusal(spec.model_copy(update={"num_sequences": there + 1}))
    assert f"are {there} windows of readout.perplexity.sequence_length=64; set readout.perplexity.num_" in sentence
    assert f"num_sequences={there} or null" in sentence
    fitting = spec.model_copy(update={"num_sequences": there})
    assert len(heldout_tokens(fitting, byte_tokenizer(), add_bos=False)) == there
    capped = spec.model_copy(update={"num_sequences": 9, "most_sequences": 5})
    assert "and the convention takes 5; set readout.perplexity.num_sequences=5 or null instead of 9" in refusal(capped)


def test_a_text_of_less_than_one_window_is_refused_before_anything_runs(hub, tiny_study):
    rows = ("readout.perplexity.num_rows=3", "readout.perplexity.sequence_length=2048")
    study = tiny_study("base=none", "readout.tasks=[]", "perplexity=wikitext2_gptq", *rows)
    (sentence,) = map(str, refusals(study.cells, study.setup).values())
    assert "less than one window of readout.perplexity.sequence_length=2048" in sentence
    length = int(sentence.partition("; set readout.perplexity.sequence_length=")[2].split()[0])
    fitting = text_of("wikitext2_gptq", num_rows=3, sequence_length=length)
    assert heldout_tokens(fitting, byte_tokenizer(), add_bos=False).shape == (1, length)


def files(folder: Path, text: str, **changes: Any) -> FilesText:
    (folder / "a.txt").write_text(text)
    facts = {"kind": "text_files", "paths": (str(folder / "a.txt"),), "num_sequences": None, "sequence_length": 16}
    return FilesText.model_validate({**facts, **changes})


@pytest.mark.parametrize(
    ("kind", "part", "add_bos"),
    [
        *itertools.product(["text_files", "hub"], ["test", "tuning"], [False, True]),
        ("embedded", "tuning", False),
    ],
)
def test_no_number_of_sequences_means_all_of_any_text(kind, part, add_bos, hub, tmp_path):
    made: dict[str, TextSpec] = {
        "text_files": files(tmp_path, "\n\n\n".join(f"document number {index}" for index in range(400))),
        "embedded": EmbeddedText(kind="embedded", num_sequences=None, sequence_length=256, tokens_per_document=256),
        "hub": HubText(kind="hub", repo="a/b", num_sequences=None, sequence_length=16),
    }
    spec, tokenizer = made[kind].model_copy(update={"part": part}), byte_tokenizer(sets_bos=add_bos)
    sizes = [len(document.encode()) for document in documents(spec, "heldout", seed=0)]
    there = sum(min(size, spec.tokens_per_document or size) + 1 for size in sizes)
    blocks = heldout_tokens(spec, tokenizer, add_bos=add_bos)
    assert blocks.shape == (there // (spec.sequence_length - add_bos), spec.sequence_length)
    few = heldout_tokens(spec.model_copy(update={"num_sequences": 2}), tokenizer, add_bos=add_bos)
    assert torch.equal(few, blocks[:2])


def test_a_whole_text_of_less_than_one_block_is_refused(tmp_path):
    text = "\n\n\n".join(f"document {index}" for index in range(30))
    sentence = refusal(files(tmp_path, text, sequence_length=900))
    assert "num_sequences=null with readout.perplexity.sequence_length=900 needs 900" in sentence


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.num_sequences=null"], r"data\.num_sequences=null is for held-out text alone; set data\.num_sequences="),
        (["data=hub", "data.repo=a/b", "data.separator=x", "data.convention=gptq"], r"data\.convention=gptq is for"),
        (["perplexity=c4_gptq", "readout.perplexity.separator=null"], r"set readout\.perplexity\.separator"),
        (["perplexity=c4_gptq", "readout.perplexity.tokens_per_document=9"], r"tokens_per_document=null"),
        (["perplexity=c4_gptq", "readout.perplexity.convention=blocks"], r"num_rows belongs to convention=gptq"),
        (["perplexity=c4_gptq", "readout.perplexity.part=tuning"], r"has no part=tuning; choose perplexity=tuning"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_sentence(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        load_study(["model=tiny", "base=gptq", *overrides])


@pytest.mark.parametrize(("choice", "sequences"), [("wikitext2_gptq", 140), ("c4_gptq", 256)])
def test_all_windows_of_a_known_text_are_estimated(choice, sequences):
    assert sequences_of(text_of(choice)) == pytest.approx(sequences, rel=0.05)
    assert sequences_of(text_of(choice, num_sequences=7)) == 7


def test_all_of_another_text_is_estimated_by_its_size(tmp_path):
    spec = files(tmp_path, "\n\n\n".join(f"{index} documents of a file" for index in range(2000)))
    characters = sum(map(len, documents(spec, "heldout", seed=0)))
    assert sequences_of(spec) == pytest.approx(characters / 4.2 / 16, rel=0.2)
    assert sequences_of(files(tmp_path, "", sequence_length=900)) == 1
    assert sequences_of(text_of("c4", num_sequences=None)) > 50_000
    assert sequences_of(text_of("c4", num_sequences=None, repo="a/b")) > 100


# --- the protocol ----------------------------------------------------------------------------------------------------


def test_every_fact_of_windows_is_in_their_protocol_and_in_no_other():
    for choice in ("wikitext2", "c4", "embedded"):
        readout = load_study(["model=tiny", f"perplexity={choice}"]).setup.readout
        known = {"task", "num_sequences", "sequence_length", "tokens_per_document", "batch_size", "dtype", "add_bos"}
        unusual = {"heldout_split", "separator"} if choice == "wikitext2" else set()
        assert set(protocols(readout, add_bos=True)["log_pplx"]) <= known | {"data"} | unusual
    readout = load_study(["model=tiny", "perplexity=c4_gptq"]).setup.readout
    found = [protocols(readout, add_bos=add_bos)["log_pplx"] for add_bos in (False, True)]
    assert found[0] == found[1]
    windows = {"convention": "gptq", "separator": " ", "num_rows": 1100, "most_sequences": 256, "special_tokens": False}
    whole = {"num_sequences": None, "sequence_length": 2048, "add_bos": False}
    assert found[0].items() >= (windows | whole | {"heldout_split": "validation", "column": "text"}).items()


@pytest.mark.parametrize("choice", ["wikitext2", "c4"])
@pytest.mark.parametrize("other", [{"heldout_split": "train"}, {"column": "url"}, {"separator": " "}])
def test_another_split_column_or_separator_of_a_packed_text_is_another_protocol(choice, other):
    readout = load_study(["model=tiny", f"perplexity={choice}"]).setup.readout
    changed = readout.model_copy(update={"perplexity": readout.perplexity.model_copy(update=other)})
    before, after = (protocol_id(protocols(one, add_bos=True)["log_pplx"]) for one in (readout, changed))
    assert before != after


def studies(folder: Path, *texts: TextSpec):
    """The same cells, once for each text."""
    cells = made_results.paper_cells()
    return [made_results.study(folder, cells, perplexity=text.model_dump()) for text in texts]


@pytest.mark.parametrize("choice", GPTQ)
def test_a_number_of_windows_is_not_shown_for_ours_and_its_option_is_named(choice, tmp_path):
    ours, theirs = studies(tmp_path, text_of(choice.removesuffix("_gptq")), text_of(choice))
    made_results.measure(theirs)
    loaded = load_frame(ours.cells, ours.setup, ResultStore(ours.setup.paths.results))
    assert (loaded.missing["task"] == "log_pplx").all()
    assert summary(loaded)["log_pplx"].isna().all()
    sentence = next(sentence for sentence in loaded.others if "log_pplx" in sentence)
    assert f"add perplexity={choice} to show them" in sentence
    made_results.measure(ours)
    loaded = load_frame(theirs.cells, theirs.setup, ResultStore(theirs.setup.paths.results))
    sentence = next(sentence for sentence in loaded.others if "log_pplx" in sentence)
    assert f"add perplexity={choice.removesuffix('_gptq')} readout.perplexity.num_sequences=" in sentence
    typed = shown(sentence)
    again = load_study(["model=tiny", *typed]).setup.readout.perplexity
    assert again == ours.setup.readout.perplexity


def shown(sentence: str) -> Sequence[str]:
    """The options that a sentence names."""
    return sentence.partition("; add ")[2].removesuffix(" to show them").split()


def test_windows_of_another_length_or_text_are_named_with_what_differs(tmp_path):
    short = text_of("c4_gptq", sequence_length=1024)
    whole, other, shorter = studies(tmp_path, text_of("c4_gptq"), text_of("wikitext2_gptq"), short)
    made_results.measure(shorter)
    loaded = load_frame(whole.cells, whole.setup, ResultStore(whole.setup.paths.results))
    assert any("readout.perplexity.sequence_length=1024 to show" in sentence for sentence in loaded.others)
    loaded = load_frame(other.cells, other.setup, ResultStore(other.setup.paths.results))
    (sentence,) = (sentence for sentence in loaded.others if "log_pplx" in sentence)
    assert load_study(["model=tiny", *shown(sentence)]).setup.readout.perplexity == short


def test_tables_and_cards_say_that_a_number_is_of_windows(tmp_path):
    ours, theirs = studies(tmp_path, text_of("c4"), text_of("c4_gptq"))
    words = "the first 256 windows of 2048 tokens of allenai/c4/en@main, the first 1100 rows as one text, without BOS"
    for study, expected in ((ours, False), (theirs, True)):
        store = made_results.measure(study)
        rows = summary(load_frame(study.cells, study.setup, store))
        text = " ".join(str(summary_table(rows, made_results.TASKS)).split())
        assert ("measured as in the GPTQ papers" in text) == expected
        assert (words in text) == expected
        lines = " ".join(protocol_lines(protocols(study.setup.readout, add_bos=False)))
        assert (words in lines) == expected


def test_every_choice_of_windows_is_known_by_its_facts():
    for choice in GPTQ:
        spec = text_of(choice)
        facts = (f"{spec.repo}/{spec.subset}", spec.separator, spec.num_rows, spec.most_sequences)
        assert CHOICES[facts] == choice


def test_windows_over_rows_that_are_tuning_text_of_the_same_cell_are_refused(hub, tmp_path):
    tuning = text_of("c4", part="tuning", num_sequences=2, sequence_length=16)
    near, far = (text_of("c4_gptq", num_rows=number, sequence_length=16) for number in (len(ROWS), 5))
    cells = made_results.paper_cells()[:1]
    tuned, all_rows, few_rows = (
        made_results.study(tmp_path, cells, tasks=(), perplexity=spec.model_dump()) for spec in (tuning, near, far)
    )
    made_results.measure(tuned)
    (sentence,) = map(str, refusals(all_rows.cells, all_rows.setup).values())
    assert "the test text takes rows that" in sentence
    assert "choose defaults on perplexity=tuning" in sentence
    assert not refusals(few_rows.cells, few_rows.setup)
    made_results.measure(all_rows)
    more = {**tuning.model_dump(), "num_sequences": 3}
    tuned = made_results.study(tmp_path, cells, tasks=(), perplexity=more)
    (sentence,) = map(str, refusals(tuned.cells, tuned.setup).values())
    assert "the tuning text takes rows that" in sentence
