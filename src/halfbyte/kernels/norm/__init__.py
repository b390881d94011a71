"""RMSNorm, forward and backward. Its weight is frozen: the native way has no gradient for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from halfbyte.kernels.fused import native_isa, on_card
from halfbyte.kernels.norm import cpu, reference
from halfbyte.kernels.norm.reference import STYLES, Style
from halfbyte.kernels.pool import pool

__all__ = ["STYLES", "Style", "rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, eps: float, style: Style) -> Tensor:
    """`x` [..., H] normed over H and scaled by `weight` [H]; see `reference` for the styles.

    Native where both are bf16 or fp32 of the same type, on the CPU, and `weight` wants no gradient; its backward pass
    keeps x as it is and an fp32 number a row, as Liger-Kernel's on a card does. Raises ValueError when the widths
    differ.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"a weight {list(weight.shape)} for rows of {x.shape[-1]}")
    alike = x.dtype == weight.dtype and x.device == weight.device
    frozen = alike and not weight.requires_grad
    isa = native_isa(x) if frozen else None
    if isa is None and frozen and on_card(x):
        from halfbyte.kernels.norm import gpu

        return gpu.rms_norm(x, weight, eps, style)
    if isa is None:
        return reference.rms_norm(x, weight, eps, style)
    x, weight = x.contiguous(), weight.contiguous()
    if not (x.requires_grad and torch.is_grad_enabled()):
        return cpu.rms_norm(x, weight, eps, style, isa)[0]
    return _RMSNorm.apply(x, weight, eps, style, isa)  # type: ignore[no-any-return, no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, style: Style, isa: str) -> Tensor:
        y, rstd = cpu.rms_norm(x, weight, eps, style, isa)
        ctx.save_for_backward(pool.keep(x), weight, rstd)
        ctx.style, ctx.isa = style, isa
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        return cpu.rms_norm_backward(grad.contiguous(), x, weight, rstd, ctx.style, ctx.isa), None, None, None, None
