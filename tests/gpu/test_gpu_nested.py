"""The part `nested` of the GPU check, small and on the CPU."""

from __future__ import annotations

import torch

from benchmarks.gpu.lines import Scale
from benchmarks.gpu.nested import FEW, nested


def test_the_part_measures_its_widths_and_nothing_fails():
    lines = {line.what: line for line in nested(Scale(torch.device("cpu"), small=True))}
    assert not [line for line in lines.values() if line.failed]
    for plan in FEW:
        assert lines[f"{plan}: layers, packed and expanded, unlike those of materialize"].value == 0
        assert lines[f"{plan}: their logits, relative difference"].value == 0
        assert lines[f"decoded tokens a second, packed {plan}"].value
    read = {plan: lines[f"read for {plan}, packed"].value or 0 for plan in FEW}
    assert read["int2"] < read["int3"] < read["int8"]
