"""Dequantisation in plain PyTorch: the specification of cpu.cpp, and what runs wherever there is no native kernel.

NF4: level times absmax in fp32, rounded once to the output type (to nearest, ties to even). With double quantisation
absmax = level * nested_absmax, rounded, + offset, rounded. int8: (code * scale) * (1 / 127), each product rounded.
In chunks, so that temporaries stay at some MB.
"""

from __future__ import annotations

from torch import Tensor

from halfbyte.formats import BLOCKSIZE, NESTED_BLOCKSIZE
from halfbyte.kernels import tables
from halfbyte.kernels.packed import Int8Weight, NF4Weight
from halfbyte.kernels.quantise.reference import chunk


def dequantise_nf4(packed: NF4Weight, first: int, last: int, out: Tensor) -> None:
    """Weights first..last of the flat matrix -> out [last - first], of any floating type."""
    device, n = packed.device, packed.shape[0] * packed.shape[1]
    pairs, step = tables.nf4_pairs(device), chunk(device)
    nested_weights = BLOCKSIZE * NESTED_BLOCKSIZE
    for start in range(first // nested_weights * nested_weights, last, step):
        stop = min(start + step, n)
        values = pairs[packed.codes[start // 2 : -(-stop // 2)].int()].view(-1)[: stop - start]
        scale = absmax(packed, start // BLOCKSIZE, -(-stop // BLOCKSIZE))
        values *= scale.repeat_interleave(BLOCKSIZE)[: stop - start]
        low, high = max(start, first), min(stop, last)
        out[low - first : high - first] = values[low - start : high - start]


def absmax(packed: NF4Weight, first: int, last: int) -> Tensor:
    """The scales of the blocks first..last, fp32 [last - first]; `first` is a multiple of 256."""
    codes = packed.absmax[first:last]
    if packed.nested_absmax is None or packed.offset is None:
        return codes
    nested = packed.nested_absmax[first // NESTED_BLOCKSIZE : -(-last // NESTED_BLOCKSIZE)]
    levels = tables.dynamic_levels(packed.device)[codes.int()]
    return levels * nested.repeat_interleave(NESTED_BLOCKSIZE)[: last - first] + packed.offset


def dequantise_int8(packed: Int8Weight, first: int, last: int, out: Tensor) -> None:
    """Rows first..last -> out [last - first, in], of any floating type."""
    step = max(1, chunk(packed.device) // packed.shape[1])
    for start in range(first, last, step):
        stop = min(start + step, last)
        values = packed.codes[start:stop].float() * packed.scale[start:stop, None]
        out[start - first : stop - first] = values * (1.0 / 127.0)
