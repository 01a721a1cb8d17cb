"""The tasks that a read-out asks for: its names with their groups taken apart, and how they are prompted.

Imports neither torch nor lm-eval: planning and tables ask the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any, NamedTuple

from evaluation.results.metrics import LOG_PPLX, Directions, headline_metric, is_fraction
from evaluation.sources.index import Index, own_index
from evaluation.sources.loading import TaskSource, Wanted
from evaluation.sources.outline import Leaf, TaskGroup, outline
from evaluation.sources.own import digest, yaml_digest
from evaluation.sources.yaml_files import plain
from matquant.config.setup import Readout
from matquant.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """`shown`: the names that stand for them in tables.  `leaves`: what is measured.  `groups`: innermost first."""

    shown: tuple[str, ...]
    leaves: Mapping[str, Leaf]
    groups: Mapping[str, TaskGroup]
    """Those that have a score."""

    @property
    def repeated(self) -> frozenset[str]:
        """The shown names whose documents are those of a shown group: Task Avg, which has the group, is without them.

        `[mmlu, mmlu_stem]` shows both scores, and counts every question once.
        """
        groups = (self.groups[name] for name in self.shown if name in self.groups)
        return frozenset(self.shown) & {name for group in groups for name in group.inside}

    @property
    def averaged(self) -> tuple[str, ...]:
        """The names that means over tasks are of; without shares of which less is better, which a mean would hide."""
        return tuple(name for name in self.shown if name not in self.repeated and not self._is_share_of_wrong(name))

    def _is_share_of_wrong(self, name: str) -> bool:
        said = (self.groups.get(name) or self.leaves[name]).directions
        metric = headline_metric(said)
        return metric is not None and is_fraction(metric) and not said[metric]

    @property
    def directions(self) -> Mapping[str, Directions]:
        """Directions of the metrics of each task and group, by its yaml."""
        return {name: one.directions for name, one in (*self.leaves.items(), *self.groups.items())}


PROMPT_DATE = date(2024, 7, 26)
"""The day that a chat template is told it is, for prompts of two days to be equal: Llama 3.2's own without a clock."""


class Prompting(NamedTuple):
    """The form of all prompts of a read-out."""

    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = False

    @property
    def day(self) -> date:
        """The day that a chat template is told it is."""
        return PROMPT_DATE

    @property
    def facts(self) -> Mapping[str, Any]:
        """The settings that differ from the plain form, which older results have and do not name."""
        dated = {"prompt_date": self.day.isoformat()} if self.apply_chat_template else {}
        return {name: value for name, value in self._asdict().items() if value not in (False, None)} | dated


PLAIN = Prompting()


def prompting(readout: Readout) -> Prompting:
    """The form of prompts; in a chat, examples are turns unless the read-out says otherwise."""
    chat = readout.apply_chat_template
    return Prompting(chat, readout.system_instruction, chat and readout.fewshot_as_multiturn is not False)


def asked_tasks(readout: Readout) -> Asked:
    """Every task and group of a read-out; UserError for a name that is none, or that stands for two tasks."""
    everything = readout.source == "hub"
    if readout.include_path is None:
        return _of_lm_eval(readout.tasks, everything)
    return _asked(readout.tasks, readout.include_path, own_index(readout.include_path), everything)


def without_unknown(readout: Readout) -> Readout:
    """The read-out without the names that are no task, for a plan that is made all the same."""
    return readout.model_copy(update={"tasks": tuple(name for name in readout.tasks if _is_known(name, readout))})


def _is_known(name: str, readout: Readout) -> bool:
    try:
        asked_tasks(readout.model_copy(update={"tasks": (name,)}))
    except UserError:
        return False
    return True


@cache
def _of_lm_eval(names: tuple[str, ...], everything: bool) -> Asked:
    return _taken_apart(names, None, everything)


@cache
def _asked(names: tuple[str, ...], include_path: str, _index: Index, everything: bool) -> Asked:
    return _taken_apart(names, include_path, everything)


def _taken_apart(names: tuple[str, ...], include_path: str | None, everything: bool) -> Asked:
    found = [one for name in names if name != LOG_PPLX for one in outline(name, include_path, everything=everything)]
    shown = (name for one in found for name in ([one.name] if isinstance(one, Leaf) else one.shown))
    leaves: dict[str, Leaf] = {}
    for leaf in (leaf for one in found for leaf in ([one] if isinstance(one, Leaf) else one.leaves)):
        if not _same(leaves.setdefault(leaf.name, leaf), leaf):
            raise UserError(
                f"readout.tasks asks for '{leaf.name}' twice, with other settings each time; measure them with two "
                "commands, or give one of them a name of its own in a yaml file"
            )
    groups = (group for one in found if isinstance(one, TaskGroup) for group in one.groups)
    return Asked(tuple(dict.fromkeys(shown)), leaves, {group.name: group for group in groups if group.rules})


def _same(one: Leaf, other: Leaf) -> bool:
    return one is other or (yaml_digest(one), one.num_fewshot) == (yaml_digest(other), other.num_fewshot)


def num_fewshot(leaf: Leaf, readout: Readout) -> int:
    """The examples before each document of a task; one that its yaml fixes at 0 has none, as in lm-eval."""
    fixed = leaf.num_fewshot
    return fixed or 0 if readout.num_fewshot is None or fixed == 0 else readout.num_fewshot


def facts_of(leaf: Leaf, readout: Readout) -> Mapping[str, Any]:
    """The facts of a task's protocol that its yaml and the read-out's form of prompts decide."""
    changed = yaml_digest(leaf)
    generation = {"gen_kwargs": plain(readout.gen_kwargs)} if readout.gen_kwargs and leaf.generates else {}
    return {
        "num_fewshot": num_fewshot(leaf, readout),
        **({} if leaf.is_rolling else prompting(readout).facts),
        **generation,
        **({} if changed is None else {"yaml": changed}),
    }


def facts_of_group(group: TaskGroup, readout: Readout) -> Mapping[str, Any]:
    """The facts of a group's protocol: those of its tasks, together, and the rules that make its score."""
    of_leaves = {leaf.name: facts_of(leaf, readout) for leaf in group.leaves}
    counts = sorted({facts["num_fewshot"] for facts in of_leaves.values()})
    return {
        "num_fewshot": counts[0] if len(counts) == 1 else counts,
        **prompting(readout).facts,
        "members": digest({"rules": group.rules, "tasks": of_leaves}),
    }


def wanted(leaf: Leaf, readout: Readout, source: TaskSource) -> Wanted:
    """A task as it is loaded for a read-out."""
    return Wanted(leaf, source, num_fewshot(leaf, readout), plain(readout.gen_kwargs or {}) if leaf.generates else {})


def check_settings(readout: Readout) -> None:
    """Refuses settings that change none of the tasks; says which tasks one leaves as they are."""
    leaves = asked_tasks(readout).leaves.values()
    if not leaves:
        return
    fixed = [leaf.name for leaf in leaves if leaf.num_fewshot == 0] if readout.num_fewshot else []
    if fixed and len(fixed) == len(leaves):
        raise UserError(
            f"readout.num_fewshot={readout.num_fewshot} changes no task: the yaml of {_some(fixed)} fixes num_fewshot "
            "at 0, or scores whole texts; leave readout.num_fewshot out"
        )
    if fixed:
        log.warning("the yaml of %s fixes num_fewshot at 0, as in lm-eval: no examples there", _some(fixed))
    if (typed := prompting(readout).facts) and all(leaf.is_rolling for leaf in leaves):
        raise UserError(
            f"readout.{next(iter(typed))} changes no task: {_some([leaf.name for leaf in leaves])} scores whole texts, "
            f"without a prompt; leave readout.{next(iter(typed))} out"
        )
    if readout.gen_kwargs and not any(leaf.generates for leaf in leaves):
        raise UserError(
            f"readout.gen_kwargs changes no task: none of {_some([leaf.name for leaf in leaves])} is answered with "
            "generated text; leave readout.gen_kwargs out"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
