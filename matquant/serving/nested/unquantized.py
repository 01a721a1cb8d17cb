"""The files of a nested folder that hold whatever is not quantized.

nested-unquantized.safetensors               one file, or
nested-unquantized-00001-of-00002...         several, and nested-unquantized.safetensors.index.json beside them

Their names are none that transformers looks for.  A program without `import matquant` does not know the method of the
folder: transformers would warn, load these weights, and draw random numbers for all quantized layers.  Now it finds no
weights, and ends with the sentence that config.json keeps where the name of their file would be (`REMEDY`).

Folders of format 1 have them in model*.safetensors, and load as they are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from matquant.errors import UserError
from matquant.runs.files import read_json, write_json
from matquant.serving.nested.folder import AGAIN, STAMP, NestedFolder

SAVED, OWN = "model", "nested-unquantized"
"""The beginning of the files' names as transformers writes them, and as a nested folder has them."""
WEIGHTS = "weights"
"""The key of `quantization_config` under which a folder keeps the name of its file or index."""
REMEDY = "this folder is read by matquant: `pip install matquant`, and `import matquant` before from_pretrained"
"""The words that transformers ends with where it does not know the method."""


def beginning(folder: NestedFolder) -> str:
    """The beginning of the files' names, which the format of a folder decides."""
    return SAVED if folder.version == 1 else OWN


def pattern(folder: NestedFolder) -> str:
    """A pattern of the names of all files with weights."""
    return f"{beginning(folder)}*.safetensors"


def saved_files(folder: Path) -> list[Path]:
    """The files of weights that `save_pretrained` wrote."""
    return sorted(folder.glob(f"{SAVED}*.safetensors"))


def take_own_names(folder: Path, stamp: str) -> list[str]:
    """Renames and stamps the files that `save_pretrained` wrote, lets config.json say so, and returns their names."""
    names = {}
    for path in saved_files(folder):
        names[path.name] = OWN + path.name.removeprefix(SAVED)
        _copy_stamped(path, folder / names[path.name], stamp)
        path.unlink()
    index, leading = folder / f"{SAVED}.safetensors.index.json", f"{OWN}.safetensors"
    if index.is_file():
        leading += ".index.json"
        facts = read_json(index)
        places = {tensor: names[file] for tensor, file in facts["weight_map"].items()}
        write_json(folder / leading, {**facts, "weight_map": places})
        index.unlink()
    config = read_json(folder / "config.json")
    config["quantization_config"][WEIGHTS] = leading
    write_json(folder / "config.json", {**config, "transformers_weights": REMEDY})
    return list(names.values())


def _copy_stamped(path: Path, target: Path, stamp: str) -> None:
    """Copies a file of safetensors, with a stamp in its header and not a tensor of it in memory."""
    with path.open("rb") as source, target.open("wb") as copy:
        header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
        header["__metadata__"] = {**header.get("__metadata__", {}), STAMP: stamp}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
        copy.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(source, copy, 1 << 20)


def require_same(folder: NestedFolder, paths: Iterable[str | Path]) -> None:
    """Raises UserError for files with weights that belong to other planes; those of format 1 do not say."""
    for path in paths if folder.version > 1 else ():
        try:
            with safe_open(path, framework="pt") as file:
                found = (file.metadata() or {}).get(STAMP)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read, it may be cut short ({error}); {AGAIN}") from error
        folder.require_stamp(Path(path).name, found)


def files(folder: NestedFolder) -> list[Path]:
    """The places of all files with weights, which are fetched first if they lie on a hub; UserError if one is missing.

    Those of format 1 are left to transformers.
    """
    if folder.version == 1:
        return []
    leading = _config(folder).get("quantization_config", {}).get(WEIGHTS, f"{OWN}.safetensors")
    path = folder.find(leading)
    if not leading.endswith(".json"):
        return [path]
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); {AGAIN}") from error
    return [folder.find(name) for name in names]


def _config(folder: NestedFolder) -> dict[str, Any]:
    path = folder.find("config.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {AGAIN}") from error
