"""Rotary embedding by Liger-Kernel's Triton kernel, queries and keys at once. Importing this imports Liger-Kernel.

The kernel writes over what it is given, if that lies as it wants it, and so over the output of a layer that autograd
may have kept, or over a gradient that somebody else has, too. Here it gets a copy, which still is one pass over queries
and keys where plain PyTorch takes some eight.
"""

from __future__ import annotations

from typing import Any

import torch
from liger_kernel.ops.rope import rope_backward, rope_forward
from torch import Tensor

from halfbyte.kernels.gpu import on


def rotate(q_BHTD: Tensor, k_BGTD: Tensor, cos_BTR: Tensor, sin_BTR: Tensor) -> tuple[Tensor, Tensor]:
    """As the reference, of both, with autograd for both. `cos_BTR` and `sin_BTR` have no gradient."""
    return _Rotary.apply(q_BHTD, k_BGTD, cos_BTR, sin_BTR)


def _own(x_BHTD: Tensor) -> Tensor:
    """A copy that lies by tokens, as the kernel wants it."""
    return x_BHTD.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        with on(q.device):
            made = rope_forward(_own(q), _own(k), cos, sin)
        return made[0], made[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
        with on(grad_q.device):
            made = rope_backward(_own(grad_q), _own(grad_k), *ctx.saved_tensors)
        return made[0], made[1], None, None
