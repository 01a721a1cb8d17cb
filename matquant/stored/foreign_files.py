"""The files of a model that somebody else quantized: which they are, their content, and their configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matquant.errors import UserError
from matquant.stored.digests import digests_of

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PLANES = "nested-*.safetensors"
"""The files of weights of a nested folder of this program."""
PICKLES = ("*.bin", "*.pt", "*.pth")
PROMPTING = ("generation_config.json", "chat_template.json", "*.jinja", "additional_chat_templates/*.jinja")
"""What prompts and generated answers are made by, beside the tokenizer."""
BESIDE = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.bpe", "*.spm", *PROMPTING)
"""Configuration and tokenizer, which decide a number as the weights do."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
OLD_CONFIG = "quantize_config.json"
"""The file in which AutoGPTQ kept what config.json has today."""
RAW_LAYER = "data.pt"
"""The file of each layer in a raw checkpoint of MatGPTQ."""


@dataclass(frozen=True)
class ForeignFiles:
    """A folder, or a single GGUF file, with its weights and what it says of them."""

    path: Path
    weights: tuple[Path, ...]
    config: Mapping[str, Any]
    """Of config.json; empty for a GGUF file, which is described by itself."""
    quantization: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def gguf(self) -> Path | None:
        return self.weights[0] if self.weights[0].suffix == ".gguf" else None

    @property
    def has_tokenizer_beside(self) -> bool:
        """True if a GGUF file lies beside a tokenizer, which is read instead of its own."""
        return (self.folder / TOKENIZER[0]).is_file()

    @property
    def title(self) -> str:
        return f"model.path={self.path}"

    @property
    def read(self) -> list[Path]:
        """Every file that a number depends on."""
        if self.gguf is not None:
            return [self.gguf, *(sorted(self._beside((*TOKENIZER, *PROMPTING))) if self.has_tokenizer_beside else [])]
        return sorted({*self.weights, *self._beside(BESIDE)})

    def _beside(self, patterns: Sequence[str]) -> set[Path]:
        return {path for pattern in patterns for path in self.folder.glob(pattern) if path.is_file()}

    def content(self, memo: Path) -> str:
        """The fingerprint of all files, wherever they lie; `memo` is the folder of digests that are remembered."""
        digests = digests_of(self.read, memo=memo, what=str(self.path))
        lines = (f"{digests[path]}  {path.relative_to(self.folder).as_posix()}\n" for path in self.read)
        return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def find_files(path: Path) -> ForeignFiles:
    """The files of a foreign model; UserError where there are none that can be read."""
    if path.suffix == ".gguf" and path.is_file():
        return ForeignFiles(path, (path,), {}, {})
    if not path.is_dir():
        raise UserError(
            f"model.path={path} is neither a folder nor a .gguf file; give one that is on this machine, or download it "
            "first: `hf download OWNER/NAME --local-dir FOLDER`"
        )
    if (path / "config.json").is_file():
        config = _json(path / "config.json")
        quantization = _quantization(config)
        if not quantization and (path / OLD_CONFIG).is_file():
            quantization = {"quant_method": "gptq", **_json(path / OLD_CONFIG)}
        return ForeignFiles(path, _weights(path), config, quantization)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return ForeignFiles(path, (files[0],), {}, {})
    if files:
        raise UserError(
            f"model.path={path} holds {len(files)} .gguf files; name one of them, such as model.path={files[0]}"
        )
    if any(path.glob(f"*/{RAW_LAYER}")):
        raise UserError(
            f"model.path={path} is a raw checkpoint of MatGPTQ, quantized layers alone; make a folder of it with "
            f"`matquant import matgptq {path} DIR --model MODEL`, and give model.path=DIR"
        )
    raise UserError(
        f"model.path={path} holds neither config.json nor a .gguf file; give the folder of a quantized model"
    )


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry on quantization, of a model or of the text model inside of one."""
    inner = [value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)]
    for place in (config, *inner):
        for key in ("quantization_config", "compression_config"):
            if isinstance(found := place.get(key), dict) and found:
                return found
    return {}


def _weights(folder: Path) -> tuple[Path, ...]:
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if (folder / INDEX).is_file():
        listed = _json(folder / INDEX).get("weight_map")
        names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
        if absent := [name for name in names if not (folder / name).is_file()]:
            raise UserError(f"model.path={folder} lacks {absent[0]}, which its {INDEX} names; copy or download it too")
        if names:
            return tuple(folder / name for name in names)
    if files := sorted(folder.glob(PLANES)):
        return tuple(files)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:  # AutoGPTQ's own name, such as gptq_model-4bit-128g.safetensors
        return (files[0],)
    raise _no_weights(folder, files)


def _no_weights(folder: Path, files: Sequence[Path]) -> UserError:
    if files:
        return UserError(f"model.path={folder} holds {len(files)} files of weights and no {INDEX}; add it")
    pickles = sorted(path for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return UserError(
            f"{pickles[0]} is a pickle, which may bring code and is not loaded here; save its tensors as {WEIGHTS} "
            "first, where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW)"
        )
    return UserError(f"model.path={folder} holds no weights ({WEIGHTS}); copy or download them too")


def _json(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy or download it again") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path} is no json object; copy or download it again")
    return facts
