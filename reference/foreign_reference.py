"""The layouts of foreign models spelled out, one weight at a time: the slow twin of `matquant.models.foreign`.

From the programs that write them: AutoGPTQ's and GPTQModel's QuantLinear, AutoAWQ's packing_utils, hqq's BitPack,
bitsandbytes' QuantState, any-precision-llm's pack.py and AnyBCQ's Packer32.
"""

from __future__ import annotations

from collections.abc import Sequence

Words = Sequence[Sequence[int]]
Numbers = Sequence[Sequence[float]]
Place = tuple[int, int]
AWQ_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output whose code lies in each place of a word."""


def bit(word: int, place: int) -> int:
    """One bit of a 32-bit word, whose sign does not matter."""
    return (word & 0xFFFFFFFF) >> place & 1


def code_in(words: Sequence[int], number: int, bits: int) -> int:
    """The code of a number in a stream of words, lowest bits first."""
    places = range(number * bits, (number + 1) * bits)
    return sum(bit(words[place // 32], place % 32) << power for power, place in enumerate(places))


def gptq_weight(
    qweight: Words, qzeros: Words, scales: Numbers, g_idx: Sequence[int], bits: int, *, of_output: int, of_input: int
) -> float:
    """A weight of GPTQ's first layout, in which every zero is stored less one."""
    code = code_in([row[of_output] for row in qweight], of_input, bits)
    group = g_idx[of_input]
    zero = (code_in(qzeros[group], of_output, bits) + 1) % 2**bits
    return (code - zero) * scales[group][of_output]


def awq_weight(
    qweight: Words, qzeros: Words, scales: Numbers, group_size: int, *, of_output: int, of_input: int
) -> float:
    """A weight of AWQ's gemm layout in 4 bits."""
    word, place = of_output // 8, AWQ_OUTPUTS.index(of_output % 8)
    group = of_input // group_size
    code, zero = code_in([qweight[of_input][word]], place, 4), code_in([qzeros[group][word]], place, 4)
    return (code - zero) * scales[group][of_output]


def any_precision_weight(planes: Sequence[Words], table: Numbers, bits: int, *, of_output: int, of_input: int) -> float:
    """A weight of any-precision: the place in the row's table, one bit a plane."""
    num_words = len(planes[0][0])
    # A warp is 32 words; what is left over is a warp of its own.
    warp = of_input // 1024
    threads = min(32, num_words - 32 * warp)
    byte = (of_input - 1024 * warp) // 8
    quarter, thread = byte // threads, byte % threads
    place = 31 - 8 * quarter - of_input % 8
    index = 0
    for plane in planes[:bits]:
        index = 2 * index + bit(plane[of_output][32 * warp + thread], place)
    return table[of_output][index]


def any_bcq_weight(
    qweight: Sequence[Words],
    alpha: Sequence[Numbers],
    beta: Numbers,
    bits: int,
    group_size: int,
    *,
    of_output: int,
    of_input: int,
) -> float:
    """A weight of AnyBCQ: a shift, and a scale for each bit, added where it is set and subtracted where it is not."""
    group = of_input // group_size
    signs = [2 * bit(qweight[of_input // 32][plane][of_output], of_input % 32) - 1 for plane in range(bits)]
    terms = (sign * alpha[group][plane][of_output] for plane, sign in enumerate(signs))
    return beta[group][of_output] + sum(terms)


def bitsandbytes_weight(
    packed: Sequence[int],
    table: Sequence[float],
    largest: Sequence[float],
    block: int,
    columns: int,
    *,
    place: tuple[int, int],
) -> float:
    """A weight of bitsandbytes' 4 bits: two codes a byte, the first in its upper half, a scale for each block."""
    number = place[0] * columns + place[1]
    byte = packed[number // 2]
    return table[byte >> 4 if number % 2 == 0 else byte & 15] * largest[number // block]


def hqq_weight(
    packed: Words,
    scale: Numbers,
    zero: Numbers,
    bits: int,
    together: int,
    group_size: int,
    columns: int,
    *,
    place: tuple,
) -> float:
    """A weight of HQQ along the inputs (axis 1): rows are groups, and several lie in one, the first in the top bits."""
    number = place[0] * columns + place[1]
    row, column = number // group_size, number % group_size
    part, line = row // len(packed), row % len(packed)
    code = packed[line][column] >> bits * (together - 1 - part) & (2**bits - 1)
    return (code - zero[row][0]) * scale[row][0]
