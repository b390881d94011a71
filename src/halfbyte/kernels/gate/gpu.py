"""The gate by Liger-Kernel's Triton kernels, forward and backward. Importing this imports Liger-Kernel.

Its backward passes write the gradients over what was kept: the outputs of gate and up, which nobody else keeps, so that
a graph has one backward pass.
"""

from __future__ import annotations

from liger_kernel.ops.geglu import LigerGELUMulFunction
from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction, LigerSiLUMulFunction
from torch import Tensor

from halfbyte.kernels.gate.reference import Act


def covers(act: Act, *, fused: bool = False, gate_first: bool = True) -> bool:
    """Whether there is a kernel: none for GELU without tanh; of a fused projection for SiLU with the gate first."""
    return act == "silu" and gate_first if fused else act != "gelu"


def gated(gate_TI: Tensor, up_TI: Tensor, act: Act) -> Tensor:
    """As the reference, with autograd; `act` is one that is covered."""
    return (LigerSiLUMulFunction if act == "silu" else LigerGELUMulFunction).apply(gate_TI, up_TI)


def gated_halves(both_TC: Tensor) -> Tensor:
    """silu(gate) * up of the halves of `both_TC`, gate first. Two dimensions: the gradient of others has a wrong shape
    in Liger-Kernel 0.8.5."""
    return LigerFusedGateUpSiLUMulFunction.apply(both_TC, True)
