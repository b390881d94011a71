"""RMSNorm by Liger-Kernel's Triton kernel, forward and backward. Importing this imports Liger-Kernel.

Its casting modes round where our styles do: "llama" before the weight, "gemma" after it. Its option to write the
gradient into that of the result is off: autograd may have handed the same tensor to the residual sum.
"""

from __future__ import annotations

from liger_kernel.ops.rms_norm import LigerRMSNormFunction
from torch import Tensor

from halfbyte.kernels.norm.reference import Style

FORMS: dict[Style, tuple[str, float]] = {"narrow": ("llama", 0.0), "wide": ("gemma", 0.0), "shifted": ("gemma", 1.0)}


def rms_norm(x: Tensor, weight: Tensor, eps: float, style: Style) -> Tensor:
    """As the reference, for `x` and `weight` of one type, with autograd."""
    casting_mode, offset = FORMS[style]
    return LigerRMSNormFunction.apply(x, weight, eps, offset, casting_mode, False)
