"""Features of a task's yaml: each of lm-eval's is done as lm-eval does it, or refused in one sentence."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from evaluation.sources.outline import Leaf, TaskGroup, nearest
from evaluation.sources.yaml_files import FunctionName
from matquant.errors import UserError
from matquant.models.generation import generation_settings

if TYPE_CHECKING:
    from lm_eval.api.task import Task

log = logging.getLogger(__name__)
KEYS = (
    *("task", "task_alias", "tag", "custom_dataset", "dataset_path", "dataset_name", "dataset_kwargs"),
    *("training_split", "validation_split", "test_split", "fewshot_split", "process_docs"),
    *("doc_to_text", "doc_to_target", "doc_to_image", "doc_to_audio", "unsafe_code", "doc_to_choice"),
    *("process_results", "use_prompt", "description", "target_delimiter", "fewshot_delimiter", "fewshot_config"),
    *("num_fewshot", "metric_list", "output_type", "generation_kwargs", "repeats", "filter_list"),
    *("should_decontaminate", "doc_to_decontamination_query", "gen_prefix", "metadata"),
)
"""The fields of lm-eval's `TaskConfig`."""
STRUCTURE = ("class", "group", "task_list")
"""Keys that lm-eval takes out of a yaml before it builds the task, and the class of a task written in Python."""
LENGTH, SAME_LENGTH = "max_gen_toks", ("max_new_tokens", "max_tokens", "max_completion_tokens")
"""The most tokens of an answer: of several names lm-eval reads the first, and its yaml files have that one."""
RULE_KEYS = ("metric", "filter_list", "aggregation", "weight_by_size")
"""The fields of lm-eval's `AggMetricConfig`."""


def check_features(leaf: Leaf) -> None:
    """Refuses a task that asks for what is not done here, or has a key that lm-eval does not know."""
    if leaf.kind == "paper" and not leaf.overrides:
        return
    config, place = leaf.config, f"task {leaf.name} ({leaf.path or 'in the yaml of its group'})"
    if "class" not in config:
        for key in config.keys() - {*KEYS, *STRUCTURE}:
            raise UserError(f"{place}: lm-eval knows no key '{key}'{nearest(key, KEYS)}; remove it from the yaml")
    for key, thing in (("doc_to_image", "images"), ("doc_to_audio", "sound")):
        if config.get(key) is not None:
            raise UserError(f"{place} shows its model {thing} ({key}); leave it out of readout.tasks")
    if config.get("unsafe_code"):
        raise UserError(
            f"{place} runs code that the model wrote (unsafe_code), which is not done here; leave it out of "
            "readout.tasks, and measure an exported model in a sandbox (`matquant export lm-eval`)"
        )
    if leaf.is_rolling and config.get("num_fewshot"):
        raise UserError(
            f"{place} scores whole texts, before which lm-eval puts no examples; remove num_fewshot from its yaml"
        )


def check_generation(given: Mapping[str, Any]) -> None:
    """Refuses settings of generation that nothing reads, or that another name of the same setting would overrule."""
    known = ("until", LENGTH, *generation_settings())
    for key, value in given.items():
        if key in SAME_LENGTH:
            raise UserError(f"readout.gen_kwargs: {key} is {LENGTH} in lm-eval's yaml files; write {LENGTH}: {value}")
        if key not in known:
            raise UserError(f"readout.gen_kwargs: generation has no setting '{key}'{nearest(key, known)}; leave it out")
    length = given.get(LENGTH, 1)
    if type(length) is not int or length < 1:
        raise UserError(f"readout.gen_kwargs: {LENGTH}={length} is no number of tokens; write 1 or more")


def check_rules(groups: Iterable[TaskGroup]) -> None:
    """Refuses rules of a group's score that lm-eval reads and does not follow, or does not know."""
    for group in groups:
        for rule in group.rules:
            for key in rule.keys() - set(RULE_KEYS):
                raise UserError(
                    f"group {group.name} ({group.path}): lm-eval knows no key '{key}' in aggregate_metric_list"
                    f"{nearest(key, RULE_KEYS)}; remove it from the yaml"
                )
            if "metric" not in rule:
                raise UserError(f"group {group.name} ({group.path}): an entry of aggregate_metric_list has no metric")
            if (found := rule.get("aggregation", "mean")) != "mean":
                named: Any = found.name if isinstance(found, FunctionName) else found
                raise UserError(
                    f"group {group.name} ({group.path}): aggregation: {named} is no rule that lm-eval follows; write "
                    "aggregation: mean, with weight_by_size: true or false"
                )


def check_examples(task: Task, num_fewshot: int) -> None:
    """Refuses more examples than there are documents to take them from."""
    if not num_fewshot or (sampler := getattr(task, "sampler", None)) is None:
        return
    config: Any = task.config
    there = len(sampler.fewshot_indices or sampler.df)
    leaves_out = config.fewshot_config.split == config.test_split  # lm-eval draws one more, to leave the document out
    if there < num_fewshot + leaves_out:
        raise UserError(
            f"task {task.task_name}: {num_fewshot} examples are asked for, and there are {there} documents to take "
            f"them from; set readout.num_fewshot={max(0, there - leaves_out)} or less, or name a longer "
            "fewshot_split in its yaml"
        )
    drawn_from = config.fewshot_config.split or config.training_split or config.validation_split or config.test_split
    if drawn_from == (config.test_split or config.validation_split) and not leaves_out:
        log.warning(
            "task %s: its examples are drawn from the split that is scored (%s), a document itself among them, as by "
            "lm-eval; name a fewshot_split in its yaml",
            *(task.task_name, drawn_from),
        )
