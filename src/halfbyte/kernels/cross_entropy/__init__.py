"""Cross-entropy of rows of logits, which are overwritten by their gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.kernels.cross_entropy import cpu, reference
from halfbyte.kernels.cross_entropy.reference import PLAIN, Ending
from halfbyte.kernels.fused import choose_parts, dtypes_of, native_isa

__all__ = ["PLAIN", "Ending", "cross_entropy"]


@torch.no_grad()
def cross_entropy(logits: Tensor, targets: Tensor, *, gradient: bool, ending: Ending = PLAIN) -> Tensor:
    """The cross-entropy in nats of each row, fp64 [N]; `logits` [N, V] of any floating type, `targets` int64 [N].

    The logits that count are those after the `ending`. With `gradient`, `logits` becomes the gradient by what is given
    of the sum of the losses, in its own type; it must then be nobody else's. Native on the CPU for contiguous bf16 and
    fp32, by Liger-Kernel on a card where the ending is plain; sums in fp32 and fp64. Raises
    ValueError for shapes that do not fit together and for targets outside 0 .. V - 1.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"logits {list(logits.shape)} and targets {targets.dtype} {list(targets.shape)} do not fit")
    if logits.device != targets.device:
        raise ValueError(f"logits are on {logits.device}, targets on {targets.device}")
    if not len(targets):
        return torch.zeros(0, dtype=torch.float64, device=logits.device)
    low, high = targets.aminmax()
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(f"targets from {int(low)} to {int(high)} for {logits.shape[1]} logits")
    isa = native_isa(logits) if logits.is_contiguous() else None
    if isa is not None:
        return cpu.cross_entropy(logits, targets.contiguous(), gradient, isa, ending)
    if ending == PLAIN and logits.is_contiguous() and not fault_on_card(logits.device, logits.dtype):
        from halfbyte.kernels.cross_entropy import gpu

        return gpu.cross_entropy(logits, targets.contiguous(), gradient)
    return reference.cross_entropy(logits, targets, gradient, ending)


def fault_on_card(device: torch.device, dtype: torch.dtype) -> str:
    """Why Liger-Kernel's kernel does not compute the loss of logits of `dtype` on `device`; empty if it does."""
    choice = choose_parts(device)
    if choice.name != "gpu":
        return choice.reason
    if dtype not in dtypes_of(choice):
        return f"Liger-Kernel does not take {dtype} here"
    from halfbyte.kernels.cross_entropy import gpu

    return gpu.fault(device, dtype)
