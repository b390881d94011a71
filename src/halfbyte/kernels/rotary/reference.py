"""Rotary embedding (Su et al. 2021, arXiv:2104.09864) of halves in plain PyTorch: the specification.

    [a, b] -> [a cos - b sin, b cos + a sin]     for the halves a and b of the first R numbers of each head

The rest of a head, if it is wider than R, stays as it is. Families that pair neighbours instead compute something else.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x_BHTD: Tensor, cos_BTR: Tensor, sin_BTR: Tensor) -> Tensor:
    """`x_BHTD` turned by angles whose cosines and sines are there twice, a half each; rounded to the type of x."""
    width = cos_BTR.shape[-1]
    turned, rest = x_BHTD[..., :width], x_BHTD[..., width:]
    first, second = turned.chunk(2, dim=-1)
    cos, sin = cos_BTR.unsqueeze(1), sin_BTR.unsqueeze(1)
    made = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((made.to(x_BHTD.dtype), rest), dim=-1)
