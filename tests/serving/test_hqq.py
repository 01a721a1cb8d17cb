"""Exports in HQQ's layout: its library opens them with the weights that the checkpoint reads."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from matquant.disk import number_of
from matquant.errors import UserError
from matquant.notation import Plan
from matquant.serving.engines.hqq import HQQ, PACKINGS, packed_rows
from matquant.serving.export import export_readout
from tests import families
from tests.exports import ALL_LINEAR, CHANNELS, REAL, TOKENS, mixed, nested_layers, ours, source, trained

FORMAT = HQQ()
GRIDS = {"real": (*ALL_LINEAR, *REAL), "channels": (*ALL_LINEAR, *CHANNELS, "grid.zero=real")}
PLANS = ("int8", "int6", "int4", "int3", "int2", "int1", "int2+ep", "int7+ep")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return cache(lambda grid: trained(tmp_path_factory.mktemp(grid), *GRIDS[grid]))


def opened(folders, tokens):
    """The logits that HQQ's own library computes; it lives in an environment of its own."""
    engines = Path(os.environ.get("MATQUANT_ENGINES") or "~/.cache/matquant/engines").expanduser()
    python = engines / "hqq" / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"hqq has no environment at {python}")
    done = subprocess.run(
        [python, "benchmarks/engines/in_hqq.py"],
        input=json.dumps({"folders": [str(folder) for folder in folders], "tokens": tokens}),
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONSAFEPATH": "1"},
    )
    assert done.returncode == 0, done.stderr
    return {folder: load_file(Path(folder) / "logits.safetensors")["logits"] for folder in folders}


def test_the_library_opens_what_the_checkpoint_reads(cells, tmp_path):
    expected = {}
    own = mixed(tmp_path, cells("real"), {"0.mlp.gate_proj": "int8", "k_proj": "int2", "1.mlp.down_proj": "int3"})
    # Rows of channels do not fill the last number, and are kept with a byte a code.
    of_channels = [Plan.parse("int3"), Plan.parse("int2")]
    for grid, plans in {"real": [*map(Plan.parse, PLANS), own], "channels": of_channels}.items():
        for number, plan in enumerate(plans):
            folder = tmp_path / f"{grid}_{number}"
            assert str(export_readout(cells(grid), FORMAT, plan, folder).exactness) == "exact"
            expected[str(folder)] = ours(cells(grid), plan)[0]
    found = opened(expected, TOKENS[0].tolist())
    assert list(found) == list(expected)
    for folder, logits in found.items():
        assert torch.equal(logits, expected[folder])


def plainly_unpacked(packed, bits, together, rows):
    """Rows of codes, one number at a time: the first part of the rows is in the highest bits."""
    step, codes = len(packed), torch.zeros(len(packed) * together, packed.shape[1], dtype=torch.uint8)
    for row, numbers in enumerate(packed.tolist()):
        for column, number in enumerate(numbers):
            for part in range(together):
                codes[part * step + row, column] = number >> bits * (together - 1 - part) & (1 << bits) - 1
    return codes[:rows]


@pytest.mark.parametrize("bits", PACKINGS)
def test_rows_are_packed_as_they_are_unpacked_one_by_one(bits):
    rows = 16 if bits != 3 else 17  # of three bits the last number may be half filled
    codes = torch.randint(0, 1 << bits, (rows, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    _, together = PACKINGS[bits]
    packed = packed_rows(codes, bits, together)
    assert packed.dtype == (torch.int32 if bits == 3 else torch.uint8)
    assert torch.equal(plainly_unpacked(packed, bits, together, rows), codes)


def test_widths_without_a_packing_are_said_to_take_a_byte(cells, tmp_path):
    record = export_readout(cells("real"), FORMAT, Plan.parse("int6"), tmp_path / "served")
    assert record.notes == ["hqq keeps 6 bits in 8, so that they take the memory of int8"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpt2", "transformers keeps them transposed"),
        ("gemma3 with images", "this one is a Gemma3ForConditionalGeneration"),
        ("falcon", "these have a class of their own"),
        ("gemma4", "layer_scalar.*: its library reads the weights of modules without others inside"),
    ],
)
def test_models_that_the_library_cannot_build_are_refused(name, why):
    model = families.loaded(name)
    with pytest.raises(UserError, match=why):
        FORMAT.refuse(source(model, nested_layers(model.model), Plan.parse("int4")))


def test_a_disk_that_is_full_is_told_from_a_defect():
    """torch writes to /dev/full as the export does, into a file of Python's, whose error keeps its number."""
    with pytest.raises((OSError, RuntimeError)) as raised, open("/dev/full", "wb") as file:
        torch.save({"a": torch.zeros(1 << 16)}, file)
    assert number_of(raised.value) == errno.ENOSPC
