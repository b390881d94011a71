"""The native rotary embedding by ctypes. What may be called is checked in `rotary.rotary`."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from halfbyte.kernels import native
from halfbyte.kernels.pool import pool


class _Call(ctypes.Structure):
    """`struct Rotary` of cpu.cpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "out", "cos", "sin")),
        *((name, c_int64 * 3) for name in ("x_by", "out_by")),
        *((name, c_int64) for name in ("angles_by", "batch", "heads", "tokens", "width", "rotary", "back")),
    )


def rotate(x_BHTD: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, isa: str) -> Tensor:
    """As the reference, with autograd for `x_BHTD`; the result lies as x does. Angles are fp32, or of x's type."""
    cos, sin = cos_BTR.contiguous(), sin_BTR.contiguous()
    if not (x_BHTD.requires_grad and torch.is_grad_enabled()):
        return _turned(x_BHTD, cos, sin, False, isa)
    return _Rotary.apply(x_BHTD, cos, sin, isa)  # type: ignore[no-any-return, no-untyped-call]


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, isa: str) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.isa = isa
        return _turned(x, cos, sin, False, isa)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, True, ctx.isa), None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, back: bool, isa: str) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = pool.empty_like(x)
    batch, heads, tokens, width = x.shape
    call = _Call(
        x=x.data_ptr(), out=out.data_ptr(), cos=cos.data_ptr(), sin=sin.data_ptr(), x_by=x.stride()[:3],
        out_by=out.stride()[:3], angles_by=cos.stride(0) if len(cos) > 1 else 0, batch=batch, heads=heads,
        tokens=tokens, width=width, rotary=cos.shape[-1], back=back,
    )  # fmt: skip
    native.library().halfbyte_rotary(
        ctypes.byref(call), native.DTYPES[x.dtype], cos.dtype == torch.float32, torch.get_num_threads(),
        native.ISAS.index(isa),
    )  # fmt: skip
    return out
