"""Words of a model card that are published: protocols, settings and models, without the folders of a machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, assert_never

from analysis.frame.conventions import is_of_windows, windows_words
from analysis.frame.summary import task_name
from evaluation.results.metrics import LOG_PPLX
from matquant.config.cell import EmbeddedModel, FolderModel, ForeignModel, HubModel, RandomModel

if TYPE_CHECKING:
    from pathlib import Path

    from evaluation.results.store import Protocol
    from matquant.config.cell import BaseSpec, ModelSpec

FOLDERS = re.compile(r"(?<![\w.:/~-])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\,;()'\"]+[/\\])+")
"""The folders before the last name of an absolute path."""


def without_folders(text: str, folder: Path | None = None) -> str:
    """A text that keeps the last name of every absolute path; of what lies in `folder`, the path from there on."""
    if folder is not None:
        for prefix in dict.fromkeys((f"{folder}/", f"{folder.resolve()}/")):
            text = text.replace(prefix, "")
    return FOLDERS.sub("", text)


def content_name(content: str) -> str:
    """The name of a source of text or documents, which is a path if it was a folder: `piqa@0a1b2c3d4e5f`."""
    return re.split(r"[/\\]", content)[-1] if re.match(r"[/~\\]|[A-Za-z]:[/\\]", content) else content


def model_words(model: ModelSpec) -> str:
    """`google/gemma-2-2b at main`."""
    match model:
        case HubModel():
            return f"[{model.repo}](https://huggingface.co/{model.repo}) at revision {model.revision}"
        case FolderModel() | ForeignModel():
            return f"The model {model.name}"
        case EmbeddedModel():
            return f"{model.file} of {model.package} {model.version}"
        case RandomModel():
            return f"A random {model.architecture} for tests"
        case _:
            assert_never(model)


def settings_words(base: BaseSpec) -> str:
    """`, num_steps 32, batch_size 4`: what a base algorithm was told, without what is so by default."""
    told = base.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    return "".join(f", {name} {value}" for name, value in told.items())


def protocol_lines(protocols: Mapping[str, Protocol]) -> list[str]:
    """A sentence for all tasks that were measured alike: `ARC-c, PIQA: the first 300 documents of each, ...`."""
    alike: dict[str, list[str]] = {}
    for task, protocol in protocols.items():
        alike.setdefault(_words(task, protocol), []).append(task_name(task))
    return [f"{', '.join(tasks)}: {words}." for words, tasks in alike.items()]


def _words(task: str, protocol: Protocol) -> str:
    parts = _of_text(protocol) if task == LOG_PPLX else _of_documents(protocol)
    bos = {True: "a BOS token first", "never": "never a BOS token"}.get(protocol.get("add_bos", False))
    parts += [f"batch size {protocol.get('batch_size')}", f"read in {protocol.get('dtype')}", *([bos] if bos else [])]
    return ", ".join(parts)


def _of_text(protocol: Protocol) -> list[str]:
    if is_of_windows(protocol):
        return [windows_words(protocol)]
    part = "tuning" if protocol.get("part") == "tuning" else "held-out"
    most = protocol.get("tokens_per_document")
    return [
        f"{protocol.get('num_sequences')} sequences of {protocol.get('sequence_length')} tokens of {part} text, "
        + content_name(str(protocol.get("data"))),
        *([f"at most {most} tokens of a document"] if most else []),
    ]


def _of_documents(protocol: Protocol) -> list[str]:
    limit = protocol.get("limit")
    return [
        ("all documents" if limit is None else f"the first {limit} documents")
        + f" of {content_name(str(protocol.get('data')))}",
        f"{protocol.get('num_fewshot', 0)} examples in a prompt",
        *(["without the start of longer ones"] if protocol.get("cut_contexts") else []),
        f"lm-eval {protocol.get('lm_eval')}",
    ]
