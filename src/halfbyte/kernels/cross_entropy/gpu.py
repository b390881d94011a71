"""Cross-entropy and its gradient by Liger-Kernel's Triton kernel. Importing this imports Liger-Kernel.

Only the kernel: it reads logits in 16 bits twice and writes their gradient over them, where the reference makes a copy
in fp32 (131 MB for 256 tokens of a vocabulary of 128,256). Not the function around it, which keeps losses in the type
of the logits, and not the one that is fused with the head: what that saves, `model/loss.py` saves already.
"""

from __future__ import annotations

import functools

import torch
import triton
from liger_kernel.ops.cross_entropy import liger_cross_entropy_kernel
from liger_kernel.ops.utils import is_hip
from torch import Tensor

from halfbyte.kernels.cross_entropy import reference
from halfbyte.kernels.gpu import on

_WIDEST = 32_768  # numbers of a row at once, as Liger-Kernel has it
_ERRORS = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2e-6}


def cross_entropy(logits: Tensor, targets: Tensor, gradient: bool) -> Tensor:
    """As the reference, for contiguous `logits`; sums in fp32."""
    rows, columns = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    with on(logits.device):
        liger_cross_entropy_kernel[(rows,)](
            X_ptr=logits, X_stride=columns, Y_ptr=targets, Y_stride=1, weight_ptr=None, loss_ptr=losses,
            z_loss_ptr=None, loss_stride=1, token_accuracy_ptr=None, token_accuracy_stride=0,
            predicted_tokens_ptr=None, predicted_tokens_stride=0, n_cols=columns, n_non_ignore=rows,
            sum_non_ignore_weight=rows, weight_sum=0.0, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0,
            reduction="sum", softcap=None, RETURN_Z_LOSS=False, RETURN_TOKEN_ACCURACY=False,
            RETURN_PREDICTED_TOKENS=False, HAS_WEIGHT=False, HAS_SOFTCAPPING=False, HAS_GRADIENTS=gradient,
            BLOCK_SIZE=min(_WIDEST, triton.next_power_of_2(columns)), num_warps=16 if is_hip() else 32,
        )  # fmt: skip
    return losses.double()


@functools.cache
def fault(device: torch.device, dtype: torch.dtype) -> str:
    """Why the kernel is not used for logits of `dtype`; empty if it computes what the reference does, which is tried:
    its arguments are Liger-Kernel's own affair."""
    make = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(5, 77, generator=make)).to(device, dtype)
    targets = torch.randint(77, (5,), generator=make).to(device)
    theirs, ours = logits.clone(), logits.clone()
    wanted = reference.cross_entropy(theirs, targets, True)
    try:
        made = cross_entropy(ours, targets, True)
    except Exception as error:  # of another version: no such argument; of a card: whatever its compiler says
        return f"Liger-Kernel's kernel does not run ({type(error).__name__})"
    near = torch.allclose(ours.float(), theirs.float(), rtol=_ERRORS[dtype], atol=1e-6)
    if not near or not torch.allclose(made, wanted, rtol=2e-6, atol=1e-6):
        return "Liger-Kernel's kernel computes something else"
    return ""
