"""Rotary embedding of queries and keys, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.kernels.fused import native_isa, on_card
from halfbyte.kernels.rotary import cpu, reference

__all__ = ["rotary"]


def rotary(q_BHTD: Tensor, k_BGTD: Tensor, cos_BTR: Tensor, sin_BTR: Tensor) -> tuple[Tensor, Tensor]:
    """`q_BHTD` and `k_BGTD` turned by the angles of cos and sin [B or 1, T, R], R <= D, which are there twice, a half
    each; computed in the type of cos and sin. Native on the CPU for bf16 and fp32, by Liger-Kernel on a card.

    Raises ValueError for shapes that do not fit together.
    """
    batch, _, tokens, width = q_BHTD.shape
    fits = cos_BTR.ndim == 3 and cos_BTR.shape == sin_BTR.shape and cos_BTR.shape[0] in (1, batch)
    fits = fits and cos_BTR.shape[1] == tokens and cos_BTR.shape[2] <= width and cos_BTR.shape[2] % 2 == 0
    if not fits or (k_BGTD.shape[0], *k_BGTD.shape[2:]) != (batch, tokens, width):
        raise ValueError(f"q {list(q_BHTD.shape)}, k {list(k_BGTD.shape)}, cos {list(cos_BTR.shape)} and sin "
                         f"{list(sin_BTR.shape)} do not fit")  # fmt: skip
    alike = q_BHTD.dtype == k_BGTD.dtype and cos_BTR.dtype == sin_BTR.dtype
    fixed = alike and not (cos_BTR.requires_grad or sin_BTR.requires_grad)
    isa = native_isa(q_BHTD) if fixed and cos_BTR.dtype in (q_BHTD.dtype, torch.float32) else None
    if isa is not None:
        return cpu.rotate(q_BHTD, cos_BTR, sin_BTR, isa), cpu.rotate(k_BGTD, cos_BTR, sin_BTR, isa)
    if fixed and on_card(q_BHTD):
        from halfbyte.kernels.rotary import gpu

        return gpu.rotate(q_BHTD, k_BGTD, cos_BTR, sin_BTR)
    return reference.rotate(q_BHTD, cos_BTR, sin_BTR), reference.rotate(k_BGTD, cos_BTR, sin_BTR)
