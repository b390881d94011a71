"""Products in int8 in plain PyTorch: the specification. The integers are exact; only the order of fp32 sums is open.

Rows x [T, K] become integers in -127..127 with one scale for each 64 steps of the contraction (the largest magnitude
over 127). W becomes integers, too:

- int8: its codes as they are. A code times its row's scale over 127 is the weight.
- NF4, y = x W^T: each of the 16 levels times LEVELS, rounded. LEVELS is the factor under 127.5 for which the levels
  come closest to integers (0.47 % of a normal weight's magnitude, root mean square; 0.59 % at 127). Blocks are NF4's.
- dx = g W: the contraction runs over W's rows. Each row is divided by its largest scale, which g is multiplied with
  before it is quantised. For int8 that leaves the codes. For NF4 a tile of 64 rows and 64 columns (a block of each row)
  gets one scale, the largest that is left in it, and every weight is rounded to 1/127 of that.

W's in-features are a multiple of 64, so that NF4's blocks don't straddle rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from halfbyte.formats import BLOCKSIZE
from halfbyte.kernels import tables
from halfbyte.kernels.dequantise.reference import absmax
from halfbyte.kernels.packed import Int8Weight, NF4Weight, PackedWeight
from halfbyte.kernels.product.reference import Pair

LEVELS = 124.11
MOST = 127.0
_TINY = 2.0**-100  # blocks of x with smaller magnitudes count as zero


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None, pair: Pair | None = None) -> Tensor:
    """As `kernels.linear`, of bf16 x."""
    codes_OBK, scales_OB = _by_rows(weight)
    y = _multiply(*_quantise(x.float()), codes_OBK.transpose(0, 1), scales_OB.T)
    if bias is not None:
        y += bias.float()
    return (y if pair is None else y + pair[0].float() @ pair[1].float().T).to(x.dtype)


def linear_transposed(g: Tensor, weight: PackedWeight, pair: Pair | None = None) -> Tensor:
    """As `kernels.linear_transposed`, of bf16 g."""
    largest_O, codes_BIK, scales_BI = _by_columns(weight)
    dx = _multiply(*_quantise(g.float() * largest_O), codes_BIK, scales_BI)
    return (dx if pair is None else dx + pair[0].float() @ pair[1].float()).to(g.dtype)


def _quantise(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Integers [T, B, 64] (as fp32) and scales [T, B]; the last block is filled up with zeros."""
    x_TBK = F.pad(x_TK, (0, -x_TK.shape[1] % BLOCKSIZE)).reshape(len(x_TK), -1, BLOCKSIZE)
    largest_TB = x_TBK.abs().amax(2)
    up_TB = torch.where(largest_TB < _TINY, 0.0, _most_over(largest_TB))
    return (x_TBK * up_TB.unsqueeze(2)).round(), largest_TB * (1 / MOST)


def _most_over(values: Tensor) -> Tensor:
    """MOST / values, rounded once (a number divided by a tensor is rounded twice)."""
    return torch.full_like(values, MOST) / values


def _multiply(x_TBK: Tensor, x_scales_TB: Tensor, w_BNK: Tensor, w_scales_BN: Tensor) -> Tensor:
    """The scaled sum over the blocks: [T, N] in fp32. A block's own sum is an integer below 2^24, which fp32 holds."""
    y = x_TBK.new_zeros(len(x_TBK), w_BNK.shape[1])
    for block, (w_NK, w_scale_N) in enumerate(zip(w_BNK, w_scales_BN, strict=True)):
        y += (x_TBK[:, block] @ w_NK.T) * w_scale_N * x_scales_TB[:, block, None]
    return y


def _by_rows(weight: PackedWeight) -> tuple[Tensor, Tensor]:
    """Integers [O, B, 64] and scales [O, B], blocks along the rows."""
    blocks = weight.shape[1] // BLOCKSIZE
    if isinstance(weight, Int8Weight):
        codes = weight.codes.float().view(-1, blocks, BLOCKSIZE)
        return codes, (weight.scale * (1 / MOST)).unsqueeze(1).expand(-1, blocks)
    levels = (tables.nf4_levels(weight.device) * LEVELS).round()
    return levels[_indices(weight)], _scales(weight) * (1 / LEVELS)


def _by_columns(weight: PackedWeight) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's largest scale [O]; of what is left integers [B, I, 64] and scales [B, I], blocks along the columns."""
    if isinstance(weight, Int8Weight):
        largest_O, codes_OI = weight.scale, weight.codes.float()
        scales_BJ = torch.full((-(-weight.shape[0] // BLOCKSIZE), weight.shape[1] // BLOCKSIZE), 1 / MOST)
    else:
        scales_OJ = _scales(weight)
        largest_O = scales_OJ.abs().amax(1)
        inverse_O = torch.where(largest_O >= 2.0**-126, 1 / largest_O, 0.0)  # a smaller one would overflow
        left_OJ = scales_OJ * inverse_O.unsqueeze(1)
        tiles_BKJ = F.pad(left_OJ, (0, 0, 0, -len(left_OJ) % BLOCKSIZE)).reshape(-1, BLOCKSIZE, left_OJ.shape[1])
        most_BJ = tiles_BKJ.abs().amax(1)
        up_BJ = torch.where(most_BJ > 0, _most_over(most_BJ), 0.0)
        factors_OJ = left_OJ * up_BJ.repeat_interleave(BLOCKSIZE, 0)[: len(left_OJ)]
        levels = tables.nf4_levels(weight.device)
        codes_OI = (levels[_indices(weight)] * factors_OJ.unsqueeze(2)).round().flatten(1)
        scales_BJ = most_BJ * (1 / MOST)
    padded = F.pad(codes_OI, (0, 0, 0, -len(codes_OI) % BLOCKSIZE))
    codes_BIK = padded.view(-1, BLOCKSIZE, padded.shape[1]).transpose(1, 2)
    return largest_O, codes_BIK, scales_BJ.repeat_interleave(BLOCKSIZE, 1)


def _indices(weight: NF4Weight) -> Tensor:
    """Codes 0..15, [O, B, 64]."""
    pairs = torch.stack((weight.codes >> 4, weight.codes & 15), 1)
    return pairs.view(weight.shape[0], -1, BLOCKSIZE).int()


def _scales(weight: NF4Weight) -> Tensor:
    """Absmax of each block in fp32, [O, B]."""
    return absmax(weight, 0, len(weight.absmax)).view(weight.shape[0], -1)
