"""Scores are lm-eval's own, belong to the model they were asked of, and arrive one task at a time."""

from __future__ import annotations

import json
import logging
import math
import random

import datasets
import lm_eval
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.models.huggingface
import numpy as np
import pytest
import torch
import tqdm
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evaluation.sources.folder import FolderSource
from evaluation.sources.loading import load_tasks
from evaluation.tasks.scoring import (
    TaskScore,
    document_columns,
    language_model,
    num_answers,
    scalar_metrics,
    score_tasks,
)

NAMES = ("arc_easy", "boolq", "piqa", "winogrande")
LIMIT = 16
SILENT = tqdm.tqdm(disable=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Uses one thread: those of so small a model mostly wait for each other on a busy machine, 10 times slower."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def byte_tokenizer(*, sets_bos: bool) -> PreTrainedTokenizerFast:
    """One token a byte."""
    vocabulary = {"<s>": 0} | {byte: i + 1 for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if sets_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


def tiny_model(seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.5,  # far from uniform, so that two models disagree on many documents
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def documents(name: str, index: int) -> dict:
    words = random.Random(f"{name} {index}")
    a, b, c = (
        " ".join(words.choices(["red", "blue", "jar", "sea", "stone", "lid"], k=words.randint(1, 5))) for _ in "abc"
    )
    match name:
        case "arc_easy":
            choices = {"text": [a, b, c], "label": list("ABC")}
            return {"id": str(index), "question": f"{a} or {b}?", "choices": choices, "answerKey": "ABC"[index % 3]}
        case "boolq":
            return {"passage": f"{a}. {b}.", "question": f"is {c}", "label": index % 2}
        case "piqa":
            return {"goal": a, "sol1": b, "sol2": c, "label": index % 2}
        case _:
            return {"sentence": f"{a} when _ was {b}", "option1": "Ann", "option2": c, "answer": str(1 + index % 2)}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> FolderSource:
    root = tmp_path_factory.mktemp("mirror")
    for name in NAMES:
        (root / name).mkdir()
        lines = [json.dumps(documents(name, index)) for index in range(24)]
        (root / name / "data.jsonl").write_text("\n".join(lines))
    return FolderSource(root)


@pytest.fixture
def tasks(source):
    return load_tasks(NAMES, source)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(sets_bos=False)


def scores(model, tokenizer, tasks, *, limit=LIMIT, add_bos=False) -> dict[str, TaskScore]:
    lm = language_model(model, tokenizer, batch_size=4, add_bos=add_bos)
    return dict(score_tasks(lm, tasks, limit=limit, description="int2", bar=SILENT))


def numbers(all_scores: dict[str, TaskScore]) -> dict[str, tuple]:
    """Scores without the seconds they took."""
    return {name: (score.metrics, score.documents, score.num_documents) for name, score in all_scores.items()}


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("limit", [LIMIT, None])
def test_scores_are_those_of_lm_eval_called_directly(source, tasks, add_bos, limit, monkeypatch):
    tokenizer, model = byte_tokenizer(sets_bos=True), tiny_model(0)
    ours = scores(model, tokenizer, tasks, limit=limit, add_bos=add_bos)
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda _: None)  # 2 s of looking at the machine
    direct = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, add_bos_token=add_bos),
        tasks=list(load_tasks(NAMES, source).values()),
        limit=limit,
        num_fewshot=0,
        task_manager=TaskManager(include_defaults=False),
    )
    for name in NAMES:
        theirs = {key.removesuffix(",none"): value for key, value in direct["results"][name].items() if "," in key}
        assert ours[name].metrics == theirs
        assert ours[name].metrics.keys() >= {"acc", "acc_stderr"}
        assert ours[name].num_documents == (limit or 24)
        samples = direct["samples"][name]
        for column, values in ours[name].documents.items():
            assert values == [sample[column] for sample in samples]
    assert "acc_norm_stderr" in ours["piqa"].metrics
    assert "acc_norm" not in ours["boolq"].metrics


def test_a_metric_is_the_mean_of_its_documents(tokenizer, tasks):
    for score in scores(tiny_model(0), tokenizer, tasks).values():
        for metric in score.documents.keys() - {"doc_id"}:
            assert set(score.documents[metric]) <= {0, 1}
            assert all(isinstance(outcome, int) for outcome in score.documents[metric])
            assert score.metrics[metric] == sum(score.documents[metric]) / LIMIT
        assert score.documents["doc_id"] == list(range(LIMIT))
        assert score.seconds > 0


def test_scores_can_be_written_as_json(tokenizer, tasks):
    for score in scores(tiny_model(0), tokenizer, tasks).values():
        assert json.loads(json.dumps([score.metrics, score.documents])) == [score.metrics, score.documents]


def test_scoring_again_gives_the_same_numbers(tokenizer, tasks):
    model = tiny_model(0)
    assert numbers(scores(model, tokenizer, tasks)) == numbers(scores(model, tokenizer, tasks))


def test_a_limit_is_not_remembered(tokenizer, tasks):
    model = tiny_model(0)
    first = numbers(scores(model, tokenizer, tasks, limit=None))
    scores(model, tokenizer, tasks, limit=3)
    assert numbers(scores(model, tokenizer, tasks, limit=None)) == first


def test_a_second_model_gives_its_own_answers(tokenizer, tasks, source):
    first = numbers(scores(tiny_model(0), tokenizer, tasks))
    second = numbers(scores(tiny_model(1), tokenizer, tasks))
    assert second == numbers(scores(tiny_model(1), tokenizer, load_tasks(NAMES, source)))
    assert first["piqa"] != second["piqa"]


def test_weights_changed_in_place_give_their_own_answers(tokenizer, tasks):
    model = tiny_model(0)
    scores(model, tokenizer, tasks)
    model.load_state_dict(tiny_model(1).state_dict())
    assert numbers(scores(model, tokenizer, tasks)) == numbers(scores(tiny_model(1), tokenizer, tasks))


def test_a_model_in_training_mode_is_scored_without_dropout(tokenizer, tasks):
    model = tiny_model(0)
    model.config.attention_dropout = 0.9
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.train()
    assert numbers(scores(model, tokenizer, tasks)) == numbers(scores(tiny_model(0), tokenizer, tasks))


def test_each_score_arrives_before_the_next_task_begins(tokenizer, tasks, monkeypatch):
    begun = []
    build = ConfigurableTask.build_all_requests
    monkeypatch.setattr(
        ConfigurableTask,
        "build_all_requests",
        lambda task, **options: (begun.append(task.task_name), build(task, **options)),
    )
    lm = language_model(tiny_model(0), tokenizer, batch_size=4, add_bos=False)
    for position, (name, _) in enumerate(score_tasks(lm, tasks, limit=4, description="int2", bar=SILENT)):
        assert begun == list(NAMES[: position + 1])
        assert name == begun[-1]


def test_a_task_that_fails_does_not_lose_the_others(tokenizer, tasks):
    def broken(_):
        raise RuntimeError("no prompt for this document")

    tasks["boolq"].set_config("doc_to_text", broken)
    seen = {}
    lm = language_model(tiny_model(0), tokenizer, batch_size=4, add_bos=False)
    assert num_answers(tasks, limit=4)["boolq"] == 0
    arriving = score_tasks(lm, tasks, limit=4, description="int2", bar=SILENT)
    with pytest.raises(ExceptionGroup, match="1 of 4 tasks could not be scored on int2") as raised:
        seen.update(arriving)
    assert list(seen) == ["arc_easy", "piqa", "winogrande"]
    (failure,) = raised.value.exceptions
    assert "no prompt" in str(failure)
    assert failure.__notes__ == ["while scoring int2 on boolq"]


def test_scoring_moves_the_callers_bar_once_an_answer_and_shows_nothing_else(tokenizer, tasks, capfd, caplog):
    moved = []

    class Counter:
        def update(self, n: int = 1, /) -> None:
            moved.append(n)

    sizes = num_answers(tasks, limit=LIMIT)
    assert sizes == {"arc_easy": 3 * LIMIT, "boolq": 2 * LIMIT, "piqa": 2 * LIMIT, "winogrande": 2 * LIMIT}
    with caplog.at_level(logging.INFO):
        lm = language_model(tiny_model(0), tokenizer, batch_size=4, add_bos=False)
        for name, _ in score_tasks(lm, tasks, limit=LIMIT, description="int2", bar=Counter()):
            assert sum(moved) == sum(sizes[before] for before in NAMES[: NAMES.index(name) + 1])
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""
    assert not caplog.records


def test_lm_eval_is_left_as_it_was_even_after_a_failure(tokenizer, tasks):
    tasks["piqa"].set_config("doc_to_text", lambda _: 1 / 0)
    level = logging.getLogger("lm_eval").level
    with pytest.raises(ExceptionGroup):
        scores(tiny_model(0), tokenizer, tasks)
    for module in (lm_eval.api.task, lm_eval.api.model, lm_eval.models.huggingface):
        assert module.tqdm is tqdm.tqdm
    assert logging.getLogger("lm_eval").level == level
    assert not logging.getLogger("lm_eval.api.task").filters


def test_the_random_state_of_the_caller_is_left_alone(tokenizer, tasks):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    scores(tiny_model(0), tokenizer, tasks, limit=4)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_bos_reaches_the_model_when_asked_for_and_only_then(tasks):
    tokenizer, model = byte_tokenizer(sets_bos=True), tiny_model(0)
    with_bos, without = (language_model(model, tokenizer, batch_size=4, add_bos=bos) for bos in (True, False))
    first_tokens = set()
    model.model.embed_tokens.register_forward_pre_hook(lambda _, args: first_tokens.update(args[0][:, 0].tolist()))
    list(score_tasks(with_bos, tasks, limit=4, description="int2", bar=SILENT))
    assert first_tokens == {tokenizer.bos_token_id}
    first_tokens.clear()
    list(score_tasks(without, tasks, limit=4, description="int2", bar=SILENT))
    assert tokenizer.bos_token_id not in first_tokens


def test_bos_from_a_tokenizer_that_sets_none_is_refused(tokenizer, tasks):
    with pytest.raises(ValueError, match=r"sets no BOS token before a text .* set model.add_bos=false"):
        scores(tiny_model(0), tokenizer, tasks, add_bos=True)


def other_task(output_type: str, **config) -> ConfigurableTask:
    """A task of another kind than multiple choice, over four documents."""
    texts = datasets.Dataset.from_list([{"text": f"the jar {i}", "answer": str(i)} for i in range(4)])
    return ConfigurableTask(
        config={
            "task": output_type,
            "custom_dataset": lambda **_: {"test": texts},
            "test_split": "test",
            "output_type": output_type,
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{answer}}",
            "num_fewshot": 0,
            **config,
        }
    )


def test_scalars_of_other_kinds_of_tasks_are_kept(tokenizer):
    exact = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    perplexity = {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
    rolling = other_task("loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}", metric_list=[perplexity])
    generating = other_task(
        "generate_until",
        metric_list=[exact],
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
    )
    both = scores(tiny_model(0), tokenizer, {"rolling": rolling, "generating": generating})
    assert both["generating"].metrics.keys() == {"exact_match", "exact_match_stderr"}
    assert both["generating"].documents == {"doc_id": [0, 1, 2, 3], "exact_match": [0, 0, 0, 0]}
    assert math.isfinite(both["rolling"].metrics["word_perplexity"])
    assert both["rolling"].documents == {"doc_id": [0, 1, 2, 3]}


def test_metrics_lose_the_name_of_the_filter_only_where_there_is_none():
    results = {"name": "gsm8k", "sample_len": 2, "exact_match,strict": 0.5, "acc,none": 1, "acc_stderr,none": "N/A"}
    assert scalar_metrics(results) == {"exact_match,strict": 0.5, "acc": 1.0}


def test_documents_scored_through_several_filters_stay_one_row_each():
    samples = [
        {"doc_id": 0, "filter": "strict", "metrics": ["em"], "em": 0.0},
        {"doc_id": 1, "filter": "strict", "metrics": ["em"], "em": 1.0},
        {"doc_id": 0, "filter": "none", "metrics": ["em", "f1"], "em": 0.5, "f1": (1, 0)},
        {"doc_id": 1, "filter": "none", "metrics": [], "em": 1.0},
    ]
    assert document_columns(samples) == {"doc_id": [0, 1], "em,strict": [0, 1], "em": [0.5, None]}
