"""Rotary embedding of queries and keys, forward and backward."""

from __future__ import annotations

from torch import Tensor

from halfbyte.kernels.fused import on_card
from halfbyte.kernels.rotary import reference

__all__ = ["rotary"]


def rotary(q_BHTD: Tensor, k_BGTD: Tensor, cos_BTR: Tensor, sin_BTR: Tensor) -> tuple[Tensor, Tensor]:
    """`q_BHTD` and `k_BGTD` turned by the angles of cos and sin [B or 1, T, R], R <= D, which are there twice, a half
    each; computed in the type of cos and sin. By Liger-Kernel on a card; elsewhere by plain PyTorch.

    Raises ValueError for shapes that do not fit together.
    """
    batch, _, tokens, width = q_BHTD.shape
    fits = cos_BTR.ndim == 3 and cos_BTR.shape == sin_BTR.shape and cos_BTR.shape[0] in (1, batch)
    fits = fits and cos_BTR.shape[1] == tokens and cos_BTR.shape[2] <= width and cos_BTR.shape[2] % 2 == 0
    if not fits or (k_BGTD.shape[0], *k_BGTD.shape[2:]) != (batch, tokens, width):
        raise ValueError(f"q {list(q_BHTD.shape)}, k {list(k_BGTD.shape)}, cos {list(cos_BTR.shape)} and sin "
                         f"{list(sin_BTR.shape)} do not fit")  # fmt: skip
    alike = q_BHTD.dtype == k_BGTD.dtype and cos_BTR.dtype == sin_BTR.dtype
    if alike and on_card(q_BHTD) and not (cos_BTR.requires_grad or sin_BTR.requires_grad):
        from halfbyte.kernels.rotary import gpu

        return gpu.rotate(q_BHTD, k_BGTD, cos_BTR, sin_BTR)
    return reference.rotate(q_BHTD, cos_BTR, sin_BTR), reference.rotate(k_BGTD, cos_BTR, sin_BTR)
