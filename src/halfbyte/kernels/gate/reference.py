"""act(gate) * up in plain PyTorch: the specification, and the fallback everywhere.

    "silu"       x / (1 + e^-x)                     Elfwing et al. 2017, arXiv:1702.03118
    "gelu"       x Phi(x)                           Hendrycks & Gimpel 2016, arXiv:1606.08415
    "gelu_tanh"  its approximation by tanh          ibid.

The gated layer: Shazeer 2020, arXiv:2002.05202.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Act = Literal["silu", "gelu", "gelu_tanh"]
ACTS: tuple[Act, ...] = ("silu", "gelu", "gelu_tanh")  # by the numbers of `enum Act` in cpu.cpp


def activation(x: Tensor, act: Act) -> Tensor:
    if act == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if act == "gelu_tanh" else "none")


def gated(gate: Tensor, up: Tensor, act: Act) -> Tensor:
    """`gate` and `up` [..., I] of one floating type; the result, too. In 16 bits it rounds twice, native code once."""
    return activation(gate, act) * up
