"""The part `products` of the GPU check, small and on the CPU, where Humming is skipped."""

from __future__ import annotations

import torch

from benchmarks.gpu.lines import Scale
from benchmarks.gpu.products import BEYOND_CACHE, Measured, beside, copies_of, products

SMALL = Scale(torch.device("cpu"), small=True)


def test_our_packed_layer_is_measured_and_humming_is_skipped_with_its_reason():
    lines = {line.what: line for line in products(SMALL)}
    assert not [line for line in lines.values() if line.failed]
    for bits in (8, 4, 3, 2):
        line = lines[f"packed int{bits}, 128 x 128, batch 4"]
        assert line.value
        assert "relative error 0;" in f"{line.note};"  # the same bfloat16 weights
    assert lines["Humming's kernels"].note == "skipped: no GPU"


def test_a_product_that_is_wrong_is_a_failure():
    right, wrong = (Measured(1.0, 8, torch.full((2, 2), value)) for value in (1.0, 1.5))
    (line,) = beside("humming int4", lambda: wrong, right)
    assert line.failed == "relative error 0.5, more than 0.02"


def test_copies_of_a_weight_are_larger_than_a_cache():
    scale = Scale(torch.device("cuda"), small=False)
    assert copies_of(10**8, scale) * 10**8 >= BEYOND_CACHE
    assert copies_of(10**9, scale) == 1
