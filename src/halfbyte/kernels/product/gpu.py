"""Products of 1 to 16 rows with a packed matrix in Triton, for decoding: the weight is read once, packed, and nothing
decoded leaves the processor. More rows take the reference's way: `dequantise` (Triton's) into a reused buffer, and
torch's product (cuBLAS).

A program makes a few of the outputs, of all rows. In a step it reads some hundred weights of each of its rows of W. The
two neighbours in a byte meet the even and the odd columns of x, so that weights are never interleaved. The next step's
codes are asked for before this step's are used, by hand (`num_stages=1`): Triton's own pipelining would also carry
every level that is looked up through shared memory, 4 bytes a weight.

- Up to 4 rows of x: multiply-adds in fp32 on the decoded weights, unrounded. Each thread keeps its own sums; they are
  added once, at the end.
- 5 to 16 rows: tensor cores (`tl.dot`), on weights rounded to x's type as the reference rounds them, with sums in fp32.
  fp32 rows, and cards before compute capability 8.0, whose tensor cores Triton does not use, take the way of many rows.

The LoRA pair's h B^T and the bias are added to the fp32 sum, which is rounded once.

Rejected: parts of one row of W to several programs. It would fill a large card better where W has few rows, but adds
with atomics in any order (or takes a second kernel), and one input would not always give one output.

Rows of W begin with a block only where in-features are a multiple of 64, as in nearly every model; NF4 of other widths
takes the way of many rows.

Legend: M rows of x, padded to a power of two; O outputs; K columns of W, or bytes of codes, in a step.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from halfbyte.formats import BLOCKSIZE
from halfbyte.kernels import tables
from halfbyte.kernels.gpu import bf16_bits, block_scales, narrow, on, stored, widen
from halfbyte.kernels.packed import NF4Weight, PackedWeight
from halfbyte.kernels.product.reference import Pair

FEW = 16  # rows
BY_SUMS = 4  # rows up to which multiply-adds are used
# (outputs of a program, weights of each of its rows in a step, warps), by reasoning and not by measurement: with 8
# outputs a matrix of 4096 rows gives 512 programs, four for each processor of an H100, and 512 weights of 8 rows are a
# load of 16 bytes for each of 128 threads. Tensor cores take at least 16 outputs; 32 halve the reading of x.
TILES = {"sums": (8, 512, 4), "dot": (32, 256, 4)}


@triton.jit
def _operand(value, like: tl.constexpr, HOW: tl.constexpr):
    """fp32 `value` rounded to x's type, for `tl.dot`. Where bf16 is made by integer arithmetic, operands are fp32."""
    if HOW == 0:
        return value.to(like)
    elif HOW == 1:
        return value.to(tl.bfloat16)
    else:
        return (bf16_bits(value) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _add(sums_MO, x_MK, w_OK, like: tl.constexpr, HOW: tl.constexpr, DOT: tl.constexpr):
    """sums [M, O] + x W^T by tensor cores, or sums [M, O, K] + x * W."""
    if DOT:
        a, b = _operand(x_MK, like, HOW), tl.trans(_operand(w_OK, like, HOW))
        return tl.dot(a, b, sums_MO, input_precision="ieee")
    else:
        return sums_MO + x_MK[:, None, :] * w_OK[None, :, :]


@triton.jit
def _finish(
    sums_MO, bias_ptr, h_ptr, b_ptr, y_ptr, out, rows, outputs, rank,
    BIAS: tl.constexpr, HOW: tl.constexpr, M: tl.constexpr, OUTS: tl.constexpr,
):  # fmt: skip
    """y [rows, outputs] = sums + h B^T + bias, rounded once; `out` is the first output of this program."""
    m, o = tl.arange(0, M), tl.arange(0, OUTS)
    for first in range(0, rank, 16):
        r = first + tl.arange(0, 16)
        h = tl.load(h_ptr + m[:, None] * rank + r[None, :], mask=(m < rows)[:, None] & (r < rank)[None, :], other=0)
        kept = (out + o < outputs)[:, None] & (r < rank)[None, :]
        b = tl.load(b_ptr + out * rank + (o[:, None] * rank + r[None, :]), mask=kept, other=0)
        sums_MO += tl.sum(widen(h, HOW)[:, None, :] * widen(b, HOW)[None, :, :], axis=2)
    if BIAS:
        sums_MO += widen(tl.load(bias_ptr + out + o, mask=out + o < outputs, other=0), HOW)[None, :]
    made = narrow(sums_MO, y_ptr.dtype.element_ty, HOW)
    kept = (m < rows)[:, None] & (out + o < outputs)[None, :]
    tl.store(y_ptr + out + (m[:, None].to(tl.int64) * outputs + o[None, :]), made, mask=kept)


@triton.jit
def _step_nf4(
    codes_ptr, absmax_ptr, nested_ptr, dynamic_ptr, offset, before, first, blocks, real,
    NESTED: tl.constexpr, OUTS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Codes [O, BLOCKS, 32] and scales [O, BLOCKS] of the blocks from `first` on of each row; `before`: blocks in W
    before the first row."""
    o, k = tl.arange(0, OUTS), first + tl.arange(0, BLOCKS)
    kept = real[:, None] & (k < blocks)[None, :]
    place = o[:, None] * blocks + k[None, :]
    where = codes_ptr + before * 32 + (place[:, :, None] * 32 + tl.arange(0, 32)[None, None, :])
    codes = tl.load(where, mask=kept[:, :, None], other=0)
    return codes, block_scales(absmax_ptr, nested_ptr, dynamic_ptr, offset, before, place, kept, NESTED)


@triton.jit
def _nf4(
    x_ptr, codes_ptr, absmax_ptr, nested_ptr, levels_ptr, dynamic_ptr, bias_ptr, h_ptr, b_ptr, y_ptr,
    offset, rows, outputs, blocks, rank,
    NESTED: tl.constexpr, BIAS: tl.constexpr, HOW: tl.constexpr, DOT: tl.constexpr, M: tl.constexpr,
    OUTS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """W [outputs, 64 * blocks]; BLOCKS of each row in a step."""
    out = tl.program_id(0).to(tl.int64) * OUTS
    real = out + tl.arange(0, OUTS) < outputs
    m, column = tl.arange(0, M), tl.arange(0, BLOCKS * 64)
    sums = tl.zeros([M, OUTS] if DOT else [M, OUTS, BLOCKS * 32], tl.float32)
    next_codes, next_scale = _step_nf4(codes_ptr, absmax_ptr, nested_ptr, dynamic_ptr, offset, out * blocks, 0, blocks,
                                       real, NESTED, OUTS, BLOCKS)  # fmt: skip
    for first in range(0, blocks, BLOCKS):
        codes, scale = next_codes.to(tl.int32), next_scale[:, :, None]
        next_codes, next_scale = _step_nf4(codes_ptr, absmax_ptr, nested_ptr, dynamic_ptr, offset, out * blocks,
                                           first + BLOCKS, blocks, real, NESTED, OUTS, BLOCKS)  # fmt: skip
        inside = (m < rows)[:, None] & (column < (blocks - first) * 64)[None, :]
        raw = tl.load(x_ptr + first * 64 + (m[:, None] * (blocks * 64) + column[None, :]), mask=inside, other=0)
        even, odd = tl.split(tl.reshape(widen(raw, HOW), [M, BLOCKS * 32, 2]))
        high = tl.reshape(tl.load(levels_ptr + (codes >> 4)) * scale, [OUTS, BLOCKS * 32])
        low = tl.reshape(tl.load(levels_ptr + (codes & 15)) * scale, [OUTS, BLOCKS * 32])
        sums = _add(sums, even, high, x_ptr.dtype.element_ty, HOW, DOT)
        sums = _add(sums, odd, low, x_ptr.dtype.element_ty, HOW, DOT)
    made = sums if DOT else tl.sum(sums, axis=2)
    _finish(made, bias_ptr, h_ptr, b_ptr, y_ptr, out, rows, outputs, rank, BIAS, HOW, M, OUTS)


@triton.jit
def _int8(
    x_ptr, codes_ptr, scale_ptr, bias_ptr, h_ptr, b_ptr, y_ptr, rows, outputs, columns, rank,
    BIAS: tl.constexpr, HOW: tl.constexpr, DOT: tl.constexpr, M: tl.constexpr, OUTS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """W [outputs, columns], STEP of each row in a step; the row's scale is applied to the sum."""
    out = tl.program_id(0).to(tl.int64) * OUTS
    m, o, k = tl.arange(0, M), tl.arange(0, OUTS), tl.arange(0, STEP)
    codes_ptr += out * columns
    real = (out + o < outputs)[:, None]
    sums = tl.zeros([M, OUTS] if DOT else [M, OUTS, STEP], tl.float32)
    following = tl.load(codes_ptr + (o[:, None] * columns + k[None, :]), mask=real & (k < columns)[None, :], other=0)
    for first in range(0, columns, STEP):
        codes, after = following, first + STEP + k
        following = tl.load(codes_ptr + (o[:, None] * columns + after[None, :]), mask=real & (after < columns)[None, :],
                            other=0)  # fmt: skip
        inside = (m < rows)[:, None] & (first + k < columns)[None, :]
        raw = tl.load(x_ptr + (m[:, None] * columns + (first + k)[None, :]), mask=inside, other=0)
        sums = _add(sums, widen(raw, HOW), codes.to(tl.float32), x_ptr.dtype.element_ty, HOW, DOT)
    made = sums if DOT else tl.sum(sums, axis=2)
    made *= (tl.load(scale_ptr + out + o, mask=out + o < outputs, other=0.0) * (1.0 / 127.0))[None, :]
    _finish(made, bias_ptr, h_ptr, b_ptr, y_ptr, out, rows, outputs, rank, BIAS, HOW, M, OUTS)


def few(
    x: Tensor, weight: PackedWeight, bias: Tensor | None, pair: Pair | None, out: Tensor | None,
    tile: tuple[int, int, int] | None = None,
) -> Tensor:  # fmt: skip
    """y [T, O] = x [T, I] W^T + bias + h [T, R] B^T, T at most FEW (fp32: BY_SUMS), bf16, fp16 or fp32; all contiguous,
    and I a multiple of 64 for NF4.

    `tile` replaces that of `TILES`, for measurements.
    """
    (rows, columns), outputs, device = x.shape, weight.shape[0], weight.device
    y = x.new_empty(rows, outputs) if out is None else out
    dot = rows > BY_SUMS
    outs, step, warps = tile or TILES["dot" if dot else "sums"]
    raw, how = stored(x)
    h, b = (x, x) if pair is None else pair
    rank = 0 if pair is None else h.shape[1]
    after = (x if bias is None else bias, h, b, y)
    arguments = [stored(tensor)[0] for tensor in after]
    constants = {
        "BIAS": bias is not None, "HOW": how, "DOT": dot, "M": FEW if dot else triton.next_power_of_2(rows),
        "OUTS": outs, "num_warps": warps, "num_stages": 1,
    }  # fmt: skip
    grid = (triton.cdiv(outputs, outs),)
    with on(device):
        if isinstance(weight, NF4Weight):
            nested = weight.absmax if weight.nested_absmax is None else weight.nested_absmax
            _nf4[grid](
                raw, weight.codes, weight.absmax, nested, tables.nf4_levels(device), tables.dynamic_levels(device),
                *arguments, weight.offset or 0.0, rows, outputs, columns // BLOCKSIZE, rank,
                NESTED=weight.nested_absmax is not None, BLOCKS=step // BLOCKSIZE, **constants,
            )  # fmt: skip
        else:
            _int8[grid](raw, weight.codes, weight.scale, *arguments, rows, outputs, columns, rank, STEP=step,
                        **constants)  # fmt: skip
    return y
