"""Quantisation in Triton: the same bits as reference.py, whose docstring has the peculiarities.

A program takes `BLOCKS` blocks of NF4, `NESTED_BLOCKS` blocks of absmax values, or `ROWS` rows in int8 (read twice, the
second time from the cache). A value that is not finite makes its absmax infinite, so that one look at the absmax
values, after all kernels, tells whether a matrix can be encoded; only that look waits for the card.

The levels are compared one after another, 15 comparisons a weight: a search by halves would save arithmetic, but
packing waits for the bus, which brings a weight more slowly than the card compares it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from halfbyte.formats import BLOCKSIZE, NESTED_BLOCKSIZE
from halfbyte.kernels import tables
from halfbyte.kernels.gpu import EXACT, on, stored, widen
from halfbyte.kernels.quantise.reference import F16_MAX, TINY

BLOCKS, NESTED_BLOCKS, ROWS, WIDTH = 64, 16, 8, 512
_LARGEST = torch.finfo(torch.float32).max


@triton.jit
def _nf4(
    weight_ptr, bounds_ptr, codes_ptr, absmax_ptr, n, blocks, tiny, LARGEST: tl.constexpr,
    RAGGED: tl.constexpr, HOW: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """`n` weights in `blocks` blocks. `RAGGED`: one block that is not full, by a division and with a least absmax."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS
    place = tl.arange(0, BLOCKS)
    inner = place[:, None] * 64 + tl.arange(0, 64)[None, :]
    values = widen(tl.load(weight_ptr + block * 64 + inner, mask=block * 64 + inner < n, other=0), HOW)
    size = tl.abs(values)
    largest = tl.max(tl.where(size <= LARGEST, size, float("inf")), axis=1)
    divisor = tl.maximum(largest, tl.cast(tiny, tl.float32))
    if RAGGED:
        largest = divisor
        scaled = tl.math.div_rn(values, divisor[:, None] + tl.zeros_like(values))
    else:
        scaled = values * tl.math.div_rn(tl.full([BLOCKS], 1.0, tl.float32), divisor)[:, None]
    code = tl.zeros([BLOCKS, 64], tl.int32)
    for index in tl.static_range(15):
        code += (scaled > tl.load(bounds_ptr + index)).to(tl.int32)
    high, low = tl.split(tl.reshape(code, [BLOCKS, 32, 2]))
    byte = place[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(codes_ptr + block * 32 + byte, (high << 4 | low).to(tl.uint8), mask=block * 64 + byte * 2 < n)
    tl.store(absmax_ptr + block + place, largest, mask=block + place < blocks)


@triton.jit
def _absmax(absmax_ptr, lookup_ptr, codes_ptr, nested_ptr, offset, count, blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * BLOCKS
    place = tl.arange(0, BLOCKS)
    inner = place[:, None] * 256 + tl.arange(0, 256)[None, :]
    inside = block * 256 + inner < count
    values = tl.where(
        inside, tl.load(absmax_ptr + block * 256 + inner, mask=inside, other=0.0) - tl.cast(offset, tl.float32), 0.0
    )
    largest = tl.max(tl.abs(values), axis=1)
    share = values * tl.math.div_rn(tl.full([BLOCKS], 1.0, tl.float32), largest)[:, None]
    known = tl.where(share == share, share, 0.0)  # 0 / 0, or an infinite reciprocal
    position = (tl.minimum(tl.maximum(known, -1.0), 1.0) + 1.0) * 0.5 * 65535.0 + 0.5
    position = tl.where(share == share, position, 0.0).to(tl.int32)
    tl.store(codes_ptr + block * 256 + inner, tl.load(lookup_ptr + position), mask=inside)
    tl.store(nested_ptr + block + place, largest, mask=block + place < blocks)


@triton.jit
def _int8(
    weight_ptr, codes_ptr, scale_ptr, rows, columns, F16_MAX: tl.constexpr, HOW: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    row, place = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    real = (first + row < rows)[:, None]
    weight_ptr += first * columns
    codes_ptr += first * columns
    largest = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(0, columns, WIDTH):
        inner = row[:, None] * columns + (start + place)[None, :]
        values = widen(tl.load(weight_ptr + inner, mask=real & (start + place < columns)[None, :], other=0), HOW)
        size = tl.abs(values)
        largest = tl.maximum(largest, tl.where(size <= F16_MAX, size.to(tl.float16).to(tl.float32), float("inf")))
    scale = tl.max(largest, axis=1)
    tl.store(scale_ptr + first + row, scale, mask=first + row < rows)
    factor = (tl.math.div_rn(tl.full([ROWS], 1.0, tl.float32), scale) * 127.0)[:, None]
    for start in range(0, columns, WIDTH):
        inner = row[:, None] * columns + (start + place)[None, :]
        inside = real & (start + place < columns)[None, :]
        scaled = widen(tl.load(weight_ptr + inner, mask=inside, other=0), HOW).to(tl.float16).to(tl.float32) * factor
        near = (scaled + 12582912.0) - 12582912.0  # 1.5 * 2^23: what is left is an integer, ties to even
        near = tl.where(tl.abs(scaled) < 256.0, near, 0.0)  # not so: a row of zeros, or a matrix that is refused
        tl.store(codes_ptr + inner, near.to(tl.int32).to(tl.int8), mask=inside)


def quantise_nf4(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """As `reference.quantise_nf4`; bf16, fp16 or fp32, whatever of it the card has."""
    n, device = weight.numel(), weight.device
    codes = torch.empty(-(-n // 2), dtype=torch.uint8, device=device)
    absmax = torch.empty(-(-n // BLOCKSIZE), dtype=torch.float32, device=device)
    raw, how = stored(weight.view(-1))
    full, bounds = n // BLOCKSIZE, tables.nf4_bounds(device)
    with on(device):
        if full:
            _nf4[(triton.cdiv(full, BLOCKS),)](
                raw, bounds, codes, absmax, full * BLOCKSIZE, full,
                TINY, _LARGEST, RAGGED=False, HOW=how, BLOCKS=BLOCKS, num_warps=4, **EXACT,
            )  # fmt: skip
        if n % BLOCKSIZE:
            _nf4[(1,)](
                raw[full * BLOCKSIZE :], bounds, codes[full * BLOCKSIZE // 2 :], absmax[full:], n % BLOCKSIZE, 1,
                TINY, _LARGEST, RAGGED=True, HOW=how, BLOCKS=1, num_warps=1, **EXACT,
            )  # fmt: skip
    return (codes, absmax) if torch.isfinite(absmax).all() else None


def quantise_absmax(absmax: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """As `reference.quantise_absmax`."""
    count, device = len(absmax), absmax.device
    codes = torch.empty(count, dtype=torch.uint8, device=device)
    nested = torch.empty(-(-count // NESTED_BLOCKSIZE), dtype=torch.float32, device=device)
    with on(device):
        _absmax[(triton.cdiv(len(nested), NESTED_BLOCKS),)](
            absmax, tables.dynamic_lookup(device), codes, nested, offset, count, len(nested),
            BLOCKS=NESTED_BLOCKS, num_warps=4, **EXACT,
        )  # fmt: skip
    return codes, nested


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """As `reference.quantise_int8`; bf16, fp16 or fp32, whatever of it the card has."""
    rows, columns = weight.shape
    codes = torch.empty((rows, columns), dtype=torch.int8, device=weight.device)
    scale = torch.empty(rows, dtype=torch.float32, device=weight.device)
    raw, how = stored(weight)
    with on(weight.device):
        _int8[(triton.cdiv(rows, ROWS),)](
            raw, codes, scale, rows, columns, F16_MAX, HOW=how, ROWS=ROWS, WIDTH=WIDTH, num_warps=4, **EXACT
        )
    return (codes, scale) if torch.isfinite(scale).all() else None
