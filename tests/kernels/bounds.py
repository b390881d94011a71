"""The bound on a kernel's error: at most twice that of PyTorch in the same precision, both against fp64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def assert_no_worse(ours: Tensor, theirs: Tensor, exact: Tensor, floor: float = 0.0) -> None:
    """Three tensors of one shape, `exact` in fp64. Half an fp32 ulp of the largest value (or of `floor`) is free."""
    assert ours.shape == theirs.shape == exact.shape
    free = torch.finfo(torch.float32).eps * max(float(exact.abs().max()), floor) / 2
    mine, yours = ((made.double() - exact).abs().max() for made in (ours, theirs))
    assert mine <= 2 * yours + free, f"error {mine:.3e}, PyTorch's {yours:.3e}"


def results(op: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """op of `inputs` in `dtype`, and the gradients of `inputs`, given that of the result."""
    leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in inputs]
    y = op(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))]


def assert_op_no_worse(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor,
    *, by_row: bool = False, floor: float = 0.0,
) -> None:  # fmt: skip
    """`assert_no_worse` of two ops' values and gradients, in the type of `inputs`; `by_row`: rows differ in scale."""
    dtype = grad.dtype
    exacts = results(theirs, inputs, grad, torch.float64)
    for mine, other, exact in zip(results(ours, inputs, grad, dtype), results(theirs, inputs, grad, dtype), exacts,
                                  strict=True):  # fmt: skip
        assert mine.dtype == other.dtype == dtype and mine.shape == exact.shape
        if exact.numel():
            scale = exact.abs().amax(dim=-1, keepdim=True) if by_row else 1.0
            assert_no_worse(mine.double() / scale, other.double() / scale, exact / scale, floor)
