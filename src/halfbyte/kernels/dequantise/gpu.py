"""Dequantisation in Triton: the same bits as reference.py, the constants of double quantisation decoded on the way.

NF4: a program decodes `BLOCKS` whole blocks. A byte is loaded once and gives two neighbours; the 16 levels are one line
of the first-level cache. A range that starts or ends within a block is cut by the mask of the store.
int8: a program takes `WIDTH` weights of `ROWS` rows.

Both move 2.5 to 5 bytes a weight and calculate little, so tiles only have to keep enough bytes on their way: 64 blocks
are 2 KB of codes and 8 KB of bf16, 16 bytes a thread of 128 in a load.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from halfbyte.formats import BLOCKSIZE
from halfbyte.kernels import tables
from halfbyte.kernels.gpu import EXACT, block_scales, narrow, on, stored
from halfbyte.kernels.packed import Int8Weight, NF4Weight

BLOCKS, ROWS, WIDTH = 64, 4, 1024


@triton.jit
def _nf4(
    codes_ptr, absmax_ptr, nested_ptr, levels_ptr, dynamic_ptr, out_ptr, offset, first, last, last_byte,
    NESTED: tl.constexpr, HOW: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    block = first // 64 + tl.program_id(0).to(tl.int64) * BLOCKS
    place = tl.arange(0, BLOCKS)
    inside = (block + place) * 64 < last
    scale = block_scales(absmax_ptr, nested_ptr, dynamic_ptr, offset, block, place, inside, NESTED)
    byte = place[:, None] * 32 + tl.arange(0, 32)[None, :]
    codes = tl.load(codes_ptr + block * 32 + byte, mask=block * 32 + byte < last_byte, other=0).to(tl.int32)
    high = tl.load(levels_ptr + (codes >> 4)) * scale[:, None]
    low = tl.load(levels_ptr + (codes & 15)) * scale[:, None]
    values = tl.reshape(tl.join(high, low), [BLOCKS * 64])
    index = block * 64 + tl.arange(0, BLOCKS * 64)
    made = narrow(values, out_ptr.dtype.element_ty, HOW)
    tl.store(out_ptr + (index - first), made, mask=(index >= first) & (index < last))


@triton.jit
def _int8(
    codes_ptr, scale_ptr, out_ptr, rows, columns, HOW: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    row, column = tl.arange(0, ROWS), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = (first + row < rows)[:, None] & (column < columns)[None, :]
    inner = row[:, None] * columns + column[None, :]
    codes = tl.load(codes_ptr + first * columns + inner, mask=inside, other=0)
    scale = tl.load(scale_ptr + first + row, mask=first + row < rows, other=0.0)
    values = codes.to(tl.float32) * scale[:, None] * (1.0 / 127.0)
    tl.store(out_ptr + first * columns + inner, narrow(values, out_ptr.dtype.element_ty, HOW), mask=inside)


def dequantise_nf4(packed: NF4Weight, first: int, last: int, out: Tensor) -> None:
    """As `reference.dequantise_nf4`; `out` is contiguous, bf16, fp16 or fp32."""
    device, nested = packed.device, packed.nested_absmax
    blocks = -(-last // BLOCKSIZE) - first // BLOCKSIZE
    raw, how = stored(out)
    with on(device):
        _nf4[(triton.cdiv(blocks, BLOCKS),)](
            packed.codes, packed.absmax, packed.absmax if nested is None else nested, tables.nf4_levels(device),
            tables.dynamic_levels(device), raw, packed.offset or 0.0, first, last, -(-last // 2),
            NESTED=nested is not None, HOW=how, BLOCKS=BLOCKS, num_warps=4, **EXACT,
        )  # fmt: skip


def dequantise_int8(packed: Int8Weight, first: int, last: int, out: Tensor) -> None:
    """As `reference.dequantise_int8`; `out` is contiguous, bf16, fp16 or fp32."""
    columns = packed.shape[1]
    raw, how = stored(out)
    with on(packed.device):
        _int8[(triton.cdiv(last - first, ROWS), triton.cdiv(columns, WIDTH))](
            packed.codes[first:last], packed.scale[first:last], raw, last - first, columns,
            HOW=how, ROWS=ROWS, WIDTH=WIDTH, num_warps=4, **EXACT,
        )  # fmt: skip
