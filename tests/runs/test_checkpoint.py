"""The nested checkpoint: what is read is what was written, and what is damaged is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from matquant.codes.nested import nest
from matquant.codes.quantizers import minmax_grid
from matquant.config.cell import GridSpec
from matquant.errors import UserError
from matquant.notation import Slice
from matquant.runs.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def cell(tiny_study):
    return tiny_study("base=minmax", "bits=int8").cells[0]


def layers(spec: GridSpec, *, seed: int = 0):
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(seed))
    return {
        f"model.layers.{index}.mlp.up_proj": nest(weight + index, minmax_grid(weight + index, 8, spec), 8)
        for index in (9, 10)
    }


def test_every_slice_is_read_back_bit_for_bit(cell, tmp_path):
    written = layers(cell.grid)
    saved = save_checkpoint(tmp_path, cell, written)
    loaded = load_checkpoint(tmp_path, cell)
    assert loaded.checksum == saved.checksum
    assert list(loaded.layers) == list(written)
    for name, nested in written.items():
        for part in (Slice(8), Slice(3), Slice(2, extra_precision=True)):
            assert torch.equal(loaded.layers[name].at(part).weight, nested.at(part).weight)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scales_are_evaluated_as_they_are_stored(tiny_study, tmp_path, dtype):
    cell = tiny_study("base=minmax", "bits=int8", f"grid.scale_dtype={dtype}").cells[0]
    written = layers(cell.grid)
    save_checkpoint(tmp_path, cell, written)
    name = next(iter(written))
    assert torch.equal(
        load_checkpoint(tmp_path, cell).layers[name].at(Slice(4)).weight, written[name].at(Slice(4)).weight
    )


def test_equal_weights_are_equal_files(cell, tmp_path):
    for folder in ("a", "b"):
        save_checkpoint(tmp_path / folder, cell, layers(cell.grid))
    assert (tmp_path / "a/nested.safetensors").read_bytes() == (tmp_path / "b/nested.safetensors").read_bytes()


def damaged(folder: Path, **facts: object) -> None:
    path = folder / "nested.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def test_a_checkpoint_cut_short_is_refused(cell, tmp_path):
    save_checkpoint(tmp_path, cell, layers(cell.grid))
    path = tmp_path / "nested.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged: its checksum is not the recorded one; delete"):
        load_checkpoint(tmp_path, cell)


def test_a_checkpoint_with_one_bit_flipped_is_refused(cell, tmp_path):
    save_checkpoint(tmp_path, cell, layers(cell.grid))
    path = tmp_path / "nested.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path, cell)


def test_a_checkpoint_without_its_tensors_is_refused(cell, tmp_path):
    save_checkpoint(tmp_path, cell, layers(cell.grid))
    (tmp_path / "nested.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path, cell)


def test_a_checkpoint_of_another_format_or_cell_is_refused(cell, tmp_path, tiny_study):
    save_checkpoint(tmp_path, cell, layers(cell.grid))
    other = tiny_study("base=minmax", "bits=int4").cells[0]
    with pytest.raises(UserError, match=f"holds cell {cell.id}, not {other.id}"):
        load_checkpoint(tmp_path, other)
    damaged(tmp_path, format_version=99)
    with pytest.raises(UserError, match="has format version 99, this program reads 1"):
        load_checkpoint(tmp_path, cell)


def test_a_description_that_is_not_json_is_refused(cell, tmp_path):
    save_checkpoint(tmp_path, cell, layers(cell.grid))
    (tmp_path / "nested.json").write_text('{"format_version": 1,')
    with pytest.raises(UserError, match="is not a checkpoint description"):
        load_checkpoint(tmp_path, cell)


def test_files_are_as_open_to_others_as_the_user_wants(cell, tmp_path):
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "checkpoint", cell, layers(cell.grid))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "checkpoint").iterdir()}
    assert modes == {"nested.safetensors": 0o640, "nested.json": 0o640}
