"""What the Triton implementations (`*/gpu.py`) share. Importing this imports triton: ask `choice.choose` first.

Three rules hold in all of them:

- Same bits as the reference. Fusing of multiply and add is switched off (`EXACT`), divisions round to nearest, and what
  sums in another order than the reference (the mean of the absmax values) is left to torch.
- bf16 travels as its bits (int16). Widening is a shift, on every card; narrowing is the card's own instruction where it
  has bf16, else integer arithmetic. Triton's interpreter truncates where a card rounds, so it takes the latter, too.
- An offset into a weight that may pass 2^31 is made of a 64-bit base a program and a 32-bit place in its tile.

Tiles are constants, chosen by reasoning (each op's `gpu.py` says which) and not tuned while a model runs: a tuner picks
by timing, so that two runs could add in two orders, and it would wait for the card in the middle of a step.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1: every kernel runs in numpy, on any device
EXACT = {"enable_fp_fusion": False}  # launch option: a * b + c is rounded twice, as torch does

PLAIN, BF16, BF16_BITS = 0, 1, 2  # how numbers are stored: as they are; bf16 by the card; bf16 by integer arithmetic


@triton.jit
def widen(raw, HOW: tl.constexpr):
    """What was loaded, as fp32."""
    if HOW == 0:
        return raw.to(tl.float32)
    else:
        return (raw.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def bf16_bits(value):
    """The bits of fp32 `value` rounded to bf16 (nearest, ties to even), as int32 whose upper half says nothing."""
    bits = value.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(value != value, 0x7FC0, rounded)


@triton.jit
def narrow(value, like: tl.constexpr, HOW: tl.constexpr):
    """fp32 `value`, rounded once, as what a pointer to `like` stores."""
    if HOW == 0:
        return value.to(like)
    elif HOW == 1:
        return value.to(tl.bfloat16).to(tl.int16, bitcast=True)
    else:
        return bf16_bits(value).to(tl.int16)


@triton.jit
def block_scales(absmax_ptr, nested_ptr, dynamic_ptr, offset, first, place, mask, NESTED: tl.constexpr):
    """fp32 absmax of the blocks `first` (64-bit) + `place` (32-bit, any shape). `NESTED`: decoded from 8 bits."""
    stored = tl.load(absmax_ptr + first + place, mask=mask, other=0)
    if NESTED:
        level = tl.load(dynamic_ptr + stored.to(tl.int32))
        nested = tl.load(nested_ptr + (first + place) // 256, mask=mask, other=0.0)
        return level * nested + tl.cast(offset, tl.float32)  # the interpreter hands a Python number through
    else:
        return stored


def stored(tensor: Tensor) -> tuple[Tensor, int]:
    """`tensor` as kernels take it, and how its numbers are stored."""
    tensor = tensor.detach()
    if tensor.dtype != torch.bfloat16:
        return tensor, PLAIN
    return tensor.view(torch.int16), BF16 if _has_bf16(tensor.device) else BF16_BITS


def _has_bf16(device: torch.device) -> bool:
    return not INTERPRETED and torch.cuda.get_device_capability(device) >= (8, 0)


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, in torch's current stream of it."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
