"""Hydra's several lines about a mistake as one sentence with a remedy."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matquant.config.syntax.files import axes, choices, choices_in_words, nearest
from matquant.config.syntax.grammar import RUN, as_typed, parsed_override
from matquant.config.syntax.keys import is_list
from matquant.config.syntax.overrides import key_of

Compose = Callable[[Sequence[str]], Mapping[str, Any]]
OPEN = ("weights", "only")
"""Sections that take names of the user's own."""
OF_LM_EVAL = {
    "samples": "readout.limit takes the first documents, and process_docs in a yaml of your own takes any",
    "predict_only": "every answer is scored; metrics that are not wanted cost nothing",
    "use_cache": "answers are not kept between weights; results on disk are never measured again",
    "cache_requests": "prompts are built once a run without it",
    "seed": "tasks are scored with lm-eval's own seeds, 0,1234,1234,1234",
    "metadata": "write `metadata:` into a yaml of your own",
    "trust_remote_code": "code of the hub is never run; copy the documents to files and write a yaml over them",
    "confirm_run_unsafe_code": "code that a model wrote is not run here; `matquant export lm-eval` writes the model",
    "chat_template": "readout.apply_chat_template=true applies the tokenizer's",
    "system_prompt": "readout.system_instruction=TEXT stands before every prompt",
    "generation_kwargs": "'readout.gen_kwargs={max_gen_toks: 64}' replaces settings of the yaml",
    "max_batch_size": "readout.batch_size is halved where memory is too small",
    "device": "device=cpu or device=cuda",
    "log_samples": "the outcome of every document is stored with each result",
    "write_out": "`matquant export lm-eval` writes the tasks, and lm-eval shows their prompts",
}
"""Options of lm-eval's command line that are no keys of a read-out, and what is done instead."""


def in_one_line(error: Exception, overrides: Sequence[str], compose: Compose) -> str:
    """The sentence about a command line that Hydra refuses; `compose` gives those values that another has."""
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1], overrides, compose)
    if match := re.search(r"Could not find '([^']+)/([^'/]*)'", text):
        group, name = _as_typed(match[1], match[2], overrides)
        if group == "hydra/sweeper":
            return _no_sweeper(group, name)
        given = f"{group}={name} does not exist" if name else f"{group}= has no value"
        return f"{given}; {nearest(name, choices(group), cutoff=0.4)}{choices_in_words(group)}"
    if match := re.search(r"Multiple values for (\S+)\. To override .*: (\S+)'", text):
        return f"{match[1]} has a choice already; leave out the plus and write {match[1]}={match[2]}"
    if match := re.search(r"Could not append to config\. An item is already at '([^']+)'", text):
        return f"{match[1]} has a value already; leave out the plus and write {_given(match[1], overrides)}"
    if match := re.search(r"full_key: (\S+)", text) if "Missing mandatory value" in text else None:
        remedy = f"{match[1]}={'[FILE,...]' if is_list(match[1]) else 'VALUE'}"
        return f"{match[1]} is required with these choices; add {remedy}"
    if match := re.search(r"Interpolation key '(.+)' not found full_key: (\S+)", " ".join(text.split())):
        return (
            f"{match[2]} refers to ${{{match[1]}}}, which is no key of this configuration; write \\${{{match[1]}}} "
            "for a dollar sign that stands for itself"
        )
    if match := re.search(r"Error merging override (.*)", text):
        return f"{match[1]} has not the shape that this key takes; {_shape(match[1], compose)}"
    return " ".join(text.split()).partition(" See https")[0]


PACKAGES = {"optuna": "hydra-optuna-sweeper", "ax": "hydra-ax-sweeper", "nevergrad": "hydra-nevergrad-sweeper"}
"""The packages that bring Hydra's sweepers."""


def _no_sweeper(group: str, name: str) -> str:
    product = f"or leave it out, and type what is swept: {RUN} base.num_steps=10,20"
    if name not in PACKAGES:
        near = nearest(name, PACKAGES, cutoff=0.4)
        return f"{group}={name} does not exist; {near}choices: basic, {', '.join(PACKAGES)}; {product}"
    return f"{group}={name} is not installed; install it with `pip install {PACKAGES[name]}`, {product}"


def _as_typed(folder: str, name: str, overrides: Sequence[str]) -> tuple[str, str]:
    """The axis and its choice out of a file's place: experiment/smollm2/x is typed experiment=smollm2/x."""
    typed = (override.lstrip("+").partition("=") for override in overrides)
    pairs = ((axis, choice) for axis, _, choice in typed)
    return next((pair for pair in pairs if "/".join(pair) == f"{folder}/{name}"), (folder, name))


def _given(key: str, overrides: Sequence[str], sign: str = "") -> str:
    """The override of a key, as a shell takes it, with other signs before it."""
    typed = [override.lstrip("+~") for override in overrides if key_of(override) == key]
    return shlex.quote(f"{sign}{typed[-1]}") if typed else f"{sign}{key}=VALUE"


def _shape(override: str, compose: Compose) -> str:
    """The end of a sentence about a value of another shape than that of its key: the shape that it has now."""
    value: Any = compose([])
    for part in key_of(override).split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, list):
        return f"write a list: {shlex.quote(f'{key_of(override)}=[...]')}"
    return "python run.py --cfg job shows it"


def _unknown_key(key: str, overrides: Sequence[str], compose: Compose) -> str:
    """A sentence about a key that the choices of a command line do not have."""
    axis, _, name = key.partition(".")
    if name and f"~{axis}" in overrides:
        return f"{axis}=null leaves no {axis} to set {name} of; leave out {_given(key, overrides)}"
    if key.startswith(tuple(f"{section}." for section in OPEN)):
        return f"{key} is not among these choices; write it with two pluses to add it: {_given(key, overrides, '++')}"
    if axis == "readout" and name in OF_LM_EVAL:
        return f"there is no key {key}: {OF_LM_EVAL[name]}"
    values = compose([override for override in overrides if key_of(override) != key])
    if isinstance(values.get(key), Mapping):
        return f"{key} holds values of its own; {_one_by_one(key, overrides)}"
    hint = nearest(key, _known(key, values), cutoff=0.55).rstrip()
    said = f"there is no key {key} in this configuration{'; ' if hint else ''}{hint}"
    return f"{said} (python run.py --cfg job prints all keys)"


def _one_by_one(key: str, overrides: Sequence[str]) -> str:
    """The end of a sentence about a mapping: its values one by one, as a shell takes them."""
    parsed = parsed_override(next(override for override in reversed(overrides) if key_of(override) == key))
    given: Any = None if parsed is None or parsed.is_sweep_override() else parsed.value()
    if not isinstance(given, dict) or not given:
        return f"set one of them with ++{key}.NAME=VALUE"
    typed = (shlex.quote(f"++{key}.{name}={as_typed(content)}") for name, content in given.items())
    return f"set one by one: {' '.join(typed)}"


def _known(key: str, values: Mapping[str, Any]) -> list[str]:
    """The keys that may be meant: those of the same section first, then those that end alike, then all and the axes."""
    section = key.rpartition(".")[0]
    leaves = list(_leaves(values))
    mine = [leaf for leaf in leaves if leaf.rpartition(".")[0] == section]
    return [*mine, *(leaf for leaf in leaves if leaf not in mine), *(axes() if not section else ())]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """The keys that hold a value; a section is none."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
