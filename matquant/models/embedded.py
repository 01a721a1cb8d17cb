"""Models out of wheels: a GGUF file, whole or in parts, converted once into an ordinary `save_pretrained` folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from matquant.config.cell import EmbeddedModel
from matquant.disk import writing
from matquant.errors import UserError
from matquant.models.checks import plain_words, title
from matquant.models.gguf_model import require_placed, settle
from matquant.models.weight_files import report_kept
from matquant.models.wheels import DataWheel, folders, reinstall

log = logging.getLogger(__name__)

BLOCK = 1 << 24
"""Bytes of a file that are copied, or digested, at a time."""


def converted(spec: EmbeddedModel, cache: Path) -> Path:
    """The folder of an embedded model below the cache, made once; UserError if its wheels are missing or damaged."""
    folder = converted_folder(spec, cache)
    if (folder / "config.json").is_file():
        return folder
    embedded_files(spec)  # asked before anything is said of them
    log.info("converting %s from GGUF, once, into %s (half a minute to two)", spec.name, folder)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with writing(folder), whole_file(spec, beside) as path, report_kept(), plain_words(spec):
            read: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
            settle(read.config, path, title(spec))
            require_placed(read.config, path, title(spec), divides=False)
            # transformers refuses to save a model that it read from GGUF: give its weights to a fresh one.
            settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
            model = type(read)(type(read.config)(**settings))
            model.load_state_dict(read.state_dict())
            model.save_pretrained(beside)
            AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(beside)
        try:
            os.rename(beside, folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was first, with the same files
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def converted_folder(spec: EmbeddedModel, cache: Path) -> Path:
    """The place of a converted model: told by its wheel, and by the file out of it with its parts and its digest."""
    facts = json.dumps(spec.model_dump(mode="json", include={"file", "parts", "sha256"}), sort_keys=True)
    return cache / f"{spec.package}-{spec.version}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


def embedded_files(spec: EmbeddedModel) -> list[Path]:
    """The GGUF file inside the installed wheel, or its parts in order, found without importing any package."""
    wheels = wheels_of(spec)
    home, *others = folders(wheels, title(spec))
    parts = [folder / f"{spec.file}.part{number:02}" for number, folder in enumerate(others)]
    places = dict(zip(parts, wheels[1:], strict=True)) if parts else {home / spec.file: wheels[0]}
    for path, wheel in places.items():
        if not path.is_file():
            raise UserError(f"{path} is missing; run: {reinstall([wheel])}")
    return list(places)


def wheels_of(spec: EmbeddedModel) -> list[DataWheel]:
    """The wheel of a model, and those of its parts, all of one version."""
    return [DataWheel(name, spec.version, name.replace("-", "_")) for name in (spec.package, *spec.parts)]


@contextmanager
def whole_file(spec: EmbeddedModel, beside: Path) -> Iterator[Path]:
    """One GGUF file out of all parts for as long as it is read, with the digest that it should have.

    Parts are joined beside a path that is the caller's own; UserError if the wheels are missing or damaged.
    """
    files = embedded_files(spec)
    if len(files) == 1:
        if spec.sha256 is not None:
            _check(spec, files[0])
        yield files[0]
        return
    folder = beside.with_suffix(".joined")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / Path(spec.file).name
        with path.open("wb") as target:
            for file in files:
                with file.open("rb") as part:
                    shutil.copyfileobj(part, target, BLOCK)
        if spec.sha256 is not None:
            _check(spec, path)
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(spec: EmbeddedModel, path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != spec.sha256:
        raise UserError(
            f"the file of {title(spec)} is damaged: its sha256 is {found} and should be {spec.sha256}; "
            f"run: {reinstall(wheels_of(spec))}"
        )
