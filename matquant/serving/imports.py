"""The command `matquant import FORMAT THEIRS DIR`: a checkpoint of another program as a nested folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from matquant.codes.quantizers import DTYPES
from matquant.command.parsing import parse
from matquant.config.cell import FolderModel, HubModel
from matquant.config.home import at_home
from matquant.errors import UserError
from matquant.models.checks import title
from matquant.models.foreign.matgptq import Theirs, is_packed, quantization_of, read_packed, read_raw, tensors_of
from matquant.models.foreign.matgptq_damage import refuse_reaching_both_ends, refuse_unlike, weight_of
from matquant.models.loading import LoadedModel, config_of, load_model
from matquant.notation import Slice
from matquant.runs.files import write_json
from matquant.runs.provenance import library_versions, source_commit
from matquant.serving.nested.writer import write_nested
from matquant.serving.whole_folder import require_free, whole

BESIDE_WEIGHTS = (".json", ".txt", ".model", ".jinja")
"""The files of tokenizer and generation; code is not taken along."""
CACHE = Path("~/.cache/matquant")


def import_matgptq(theirs: Path, folder: Path, *, model: str | None = None) -> str:
    """Writes a checkpoint of MatGPTQ as a nested folder, and returns a sentence on it.

    `model` is the unquantized model, a folder or a repository of the hub: a raw checkpoint needs it, and a packed one
    is compared with it.  UserError for a checkpoint that is damaged, and for one that no nested folder can hold.
    """
    require_free(folder)
    packed = is_packed(theirs)
    if not packed and model is None:
        raise UserError(
            f"{theirs} holds quantized layers alone; add --model MODEL, the model that was quantized, as a folder or a "
            "repository of the hub"
        )
    read = (read_packed if packed else read_raw)(theirs)
    around = None if model is None else _load(model_named(model))
    if around is not None:
        refuse_unlike(read.layers, around.model, f"--model {model}")
        compared = f"compared with the weights of {model}"
    else:
        refuse_reaching_both_ends(read.layers)
        compared = (
            "not compared with the unquantized model: add --model MODEL to be sure that no order of columns was lost"
        )
    if packed:
        # What is not quantized is theirs too: it may have been tuned.
        around = _load_packed(theirs, read, folder.absolute().parent)
    assert around is not None
    _write(theirs, folder, read, around, packed=packed)
    return f"{folder}: every width of {len(read.layers)} layers of {theirs}, {compared}"


def _write(theirs: Path, folder: Path, read: Theirs, around: LoadedModel, *, packed: bool) -> None:
    tied = around.model.get_input_embeddings().weight
    for name in read.layers:
        if around.model.get_submodule(name).weight is tied:
            raise UserError(
                f"{name} is tied to the embedding of the model, which has one weight for both; quantize without it"
            )
    origin = {
        "format": "matgptq",
        "layout": "packed" if packed else "raw",
        "folder": theirs.resolve().name,
        "quantization_config": quantization_of(theirs) if packed else {},
    }
    facts = {"imported": origin, **source_commit(), "versions": library_versions()}
    with whole(folder) as beside, tqdm(total=10, desc=f"writing {folder}", unit="file", leave=False) as bar:
        write_nested(
            beside,
            around.model,
            around.tokenizer,
            read.layers,
            scale_dtype=read.scale_dtype,
            facts=facts,
            plans={},
            wrote=lambda file: bar.update(),
        )


# --- the model around the layers -------------------------------------------------------------------------------------


def model_named(text: str) -> FolderModel | HubModel:
    """The model in a folder, or else of the hub; UserError for a path where there is none."""
    folder = at_home(text)
    if folder.is_dir():
        return FolderModel(kind="folder", name=folder.resolve().name, path=str(folder.resolve()))
    if folder.exists() or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise UserError(
            f"--model {text} is not a folder; give one that save_pretrained wrote, or a repository of the hub"
        )
    return HubModel(kind="hub", name=text.rpartition("/")[2], repo=text)


def _load(spec: FolderModel | HubModel) -> LoadedModel:
    """A model in the dtype that it was published in."""
    own = config_of(spec, cache=at_home(CACHE)).dtype
    dtype = next((name for name, one in DTYPES.items() if one == own), "float32")
    return load_model(spec, cache=at_home(CACHE), dtype=dtype, device=torch.device("cpu"))


def _load_packed(theirs: Path, read: Theirs, place: Path) -> LoadedModel:
    """The model of a packed checkpoint: as an ordinary folder for a moment, so that it is loaded as any other is."""
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".matgptq.", dir=place) as plain:
        _expand(theirs, read, Path(plain))
        spec = FolderModel(kind="folder", name=theirs.resolve().name, path=plain)
        try:
            loaded = _load(spec)
        except UserError as error:
            raise UserError(str(error).replace(title(spec), str(theirs)).replace(plain, str(theirs))) from error
        for name, layer in read.layers.items():
            weight_of(name, layer, loaded.model, str(theirs))
        return loaded


def _expand(theirs: Path, read: Theirs, plain: Path) -> None:
    """Writes a packed checkpoint as an ordinary folder, a file of weights at a time."""
    facts = json.loads((theirs / "config.json").read_text(encoding="utf-8"))
    write_json(plain / "config.json", {key: value for key, value in facts.items() if key != "quantization_config"})
    for path in theirs.iterdir():
        if path.suffix in BESIDE_WEIGHTS and path.name not in ("config.json", SAFE_WEIGHTS_INDEX_NAME):
            shutil.copyfile(path, plain / path.name)
    places: dict[str, str] = {}
    with ExitStack() as stack:
        files = tensors_of(theirs, stack)
        for path, (names, reader) in files.items():
            tensors = {name: reader(name) for name in names if not _is_of_layer(name, read)}
            for name in (key.removesuffix(".qweight") for key in names if key.endswith(".qweight")):
                weight = read.layers[name].at(Slice(read.layers[name].parent_bits)).weight
                tensors[f"{name}.weight"] = weight.to(DTYPES[read.scale_dtype])
            save_file(tensors, plain / path.name, metadata={"format": "pt"})
            places |= dict.fromkeys(tensors, path.name)
    if len(files) > 1:
        write_json(plain / SAFE_WEIGHTS_INDEX_NAME, {"metadata": {}, "weight_map": places})


def _is_of_layer(name: str, read: Theirs) -> bool:
    layer, _, kind = name.rpartition(".")
    return layer in read.layers and kind in ("qweight", "scales")


# --- the command -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int | None:
    given = parse("import", arguments)
    print(import_matgptq(at_home(given.theirs), at_home(given.folder), model=given.model))
    return None
