"""The headers of safetensors files: names, dtypes and shapes of tensors, and the few bytes of a small one.

A file begins with the length of its header in eight bytes; the header is json, `{name: {dtype, shape, data_offsets}}`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from matquant.errors import UserError

LENGTH = 8
"""Bytes of the length of a header."""
LONGEST = 100_000_000
"""Bytes of the longest header that the format allows."""
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64"), 64),
}
REAL = ("F16", "BF16", "F32", "F64")
"""The dtypes of numbers that are not quantized."""


class Entry(NamedTuple):
    """A tensor of a file, without its values."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    num_bytes: int

    @property
    def num_bits(self) -> int:
        return 8 * self.num_bytes

    @property
    def size(self) -> int:
        """The number of its values."""
        return math.prod(self.shape)

    def content(self) -> bytes:
        """The values as bytes; of small tensors alone."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.num_bytes)

    def integers(self) -> list[int]:
        """The values of a small tensor of integers."""
        width, data = BITS[self.dtype] // 8, self.content()
        is_signed = self.dtype.startswith("I")
        return [
            int.from_bytes(data[place : place + width], "little", signed=is_signed)
            for place in range(0, len(data), width)
        ]


Entries = dict[str, Entry]
"""The tensors of a model by name."""


def entries(files: Iterable[Path]) -> Entries:
    """The tensors of some files; UserError for one that is cut short or damaged."""
    found: Entries = {}
    for path in files:
        found |= _of_file(path)
    return found


def _of_file(path: Path) -> Entries:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH), "little")
            if length > min(size, LONGEST):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        return {
            name: _entry(facts, path, LENGTH + length, size) for name, facts in header.items() if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is cut short, damaged, or no safetensors file ({error}); copy or download it again"
        ) from error


def _entry(facts: dict[str, Any], path: Path, data: int, size: int) -> Entry:
    start, end = (int(offset) for offset in facts["data_offsets"])
    if not 0 <= start <= end <= size - data:
        raise ValueError("a tensor ends behind the end of the file")
    return Entry(str(facts["dtype"]), tuple(int(length) for length in facts["shape"]), path, data + start, end - start)
