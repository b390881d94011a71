"""RMSNorm in plain PyTorch (Zhang & Sennrich 2019, arXiv:1910.07467): the specification, and the fallback everywhere.

    n = x / sqrt(mean(x^2) + eps)        in fp32, whatever the type of x (fp64 stays fp64)

Families differ in where n is rounded to the type of x, and in what scales it; in fp32 only "shifted" differs:

    "narrow"   weight * round(n)         Llama, Mistral, Qwen, Phi-3, Granite, SmolLM3
    "wide"     round(weight * n)         OLMo 2
    "shifted"  round((1 + weight) * n)   Gemma
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Style = Literal["narrow", "wide", "shifted"]
STYLES: tuple[Style, ...] = ("narrow", "wide", "shifted")


def rms_norm(x: Tensor, weight: Tensor, eps: float, style: Style) -> Tensor:
    """`x` [..., H] of any floating type, `weight` [H]; the type of the result is that of x, in "narrow" of both."""
    wide = x if x.dtype == torch.float64 else x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if style == "narrow":
        return weight * normed.to(x.dtype)
    scale = weight.to(normed.dtype) + (1.0 if style == "shifted" else 0.0)
    return (scale * normed).to(x.dtype)
