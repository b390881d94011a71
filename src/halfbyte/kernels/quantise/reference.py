"""Quantisation in plain PyTorch: the specification of cpu.cpp, and what runs wherever there is no native kernel.

Equal to the CPU backend of bitsandbytes to the bit, its peculiarities included:

- NF4: a full block is multiplied by the reciprocal of its absmax, a ragged last block is divided by it; the divisor is
  at least 1e-38, and a ragged block stores it so. An odd last nibble holds the code of zero.
- Double quantisation looks codes up among 65536 equidistant points (`tables.dynamic_lookup`); a block of zeros has
  code 0, not the code of zero, which makes no difference because its absmax is zero.
- int8 rounds to fp16 first and multiplies by 127 times the reciprocal of the row's absmax.

Everything runs in chunks of whole blocks, so that temporaries stay at some MB however large the matrix is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from halfbyte.formats import BLOCKSIZE, NESTED_BLOCKSIZE
from halfbyte.kernels import tables

TINY = 1e-38
F16_MAX = 65504.0


def chunk(device: torch.device) -> int:
    """Weights that are worked on at once: a multiple of 64 * 256."""
    return 2**18 if device.type == "cpu" else 2**22


def quantise_nf4(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """weight [out, in], contiguous -> codes uint8 [ceil(n / 2)], absmax fp32 [ceil(n / 64)]; None if not finite."""
    flat, n, device = weight.view(-1), weight.numel(), weight.device
    codes = torch.empty(-(-n // 2), dtype=torch.uint8, device=device)
    absmax = torch.empty(-(-n // BLOCKSIZE), dtype=torch.float32, device=device)
    bounds = tables.nf4_bounds(device)
    full = n - n % BLOCKSIZE
    for start in range(0, full, chunk(device)):
        stop = min(start + chunk(device), full)
        values = flat[start:stop].float().view(-1, BLOCKSIZE)
        largest = values.abs().amax(dim=1, keepdim=True)
        if not torch.isfinite(largest).all():
            return None
        absmax[start // BLOCKSIZE : stop // BLOCKSIZE] = largest.view(-1)
        codes[start // 2 : stop // 2] = _codes(values * (1.0 / largest.clamp(min=TINY)), bounds)
    if full < n:
        values = flat[full:].float()
        largest = values.abs().amax().clamp(min=TINY)
        if not torch.isfinite(largest):
            return None
        absmax[-1] = largest
        codes[full // 2 :] = _codes(F.pad(values / largest, (0, n % 2)), bounds)
    return codes, absmax


def _codes(scaled: Tensor, bounds: Tensor) -> Tensor:
    """An even number of scaled weights as bytes."""
    code = torch.bucketize(scaled.view(-1), bounds, out_int32=True).to(torch.uint8)
    return code[::2] << 4 | code[1::2]


def quantise_absmax(absmax: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """absmax fp32 [blocks] -> codes uint8 [blocks] of absmax - offset, nested_absmax fp32 [ceil(blocks / 256)]."""
    codes = torch.empty(absmax.shape, dtype=torch.uint8, device=absmax.device)
    nested = torch.empty(-(-len(absmax) // NESTED_BLOCKSIZE), dtype=torch.float32, device=absmax.device)
    lookup = tables.dynamic_lookup(absmax.device)
    step = chunk(absmax.device)
    for start in range(0, len(absmax), step):
        values = absmax[start : start + step] - offset
        padded = F.pad(values, (0, -len(values) % NESTED_BLOCKSIZE)).view(-1, NESTED_BLOCKSIZE)
        largest = padded.abs().amax(dim=1, keepdim=True)
        nested[start // NESTED_BLOCKSIZE :][: len(largest)] = largest.view(-1)
        share = ((padded * (1.0 / largest)).clamp(-1, 1) + 1.0) * 0.5
        # bitsandbytes fuses this multiply-add; tried for every share there is, the index is the same
        position = (share * 65535.0 + 0.5).nan_to_num(0.0)  # NaN: 0 / 0, or an infinite reciprocal
        codes[start : start + step] = lookup[position.int()].view(-1)[: len(values)]
    return codes, nested


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """weight [out, in] -> codes int8 [out, in], scale fp32 [out]; None if not finite or out of fp16's range."""
    rows, columns = weight.shape
    codes = torch.empty((rows, columns), dtype=torch.int8, device=weight.device)
    scale = torch.empty(rows, dtype=torch.float32, device=weight.device)
    step = max(1, chunk(weight.device) // columns)
    for start in range(0, rows, step):
        part = weight[start : start + step]
        if not (part.abs().amax() <= F16_MAX):  # so written, NaN is refused too
            return None
        values = part.half().float()
        largest = values.abs().amax(dim=1)
        scaled = torch.round(values * (127.0 / largest[:, None]))
        codes[start : start + step] = scaled.nan_to_num(0.0).to(torch.int8)  # a row of zeros: 0 * infinity
        scale[start : start + step] = largest
    return codes, scale
