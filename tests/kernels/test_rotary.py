"""The native rotary embedding against PyTorch: the same bits, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from halfbyte.kernels.pool import pool
from halfbyte.kernels.rotary import reference, rotary

DTYPES = (torch.bfloat16, torch.float32)


def inputs(
    dtype: torch.dtype, angles: torch.dtype, *, batch: int = 2, tokens: int = 5, width: int = 12, turned: int = 12,
    of_batch: int = 2,
) -> list[Tensor]:  # fmt: skip
    """q, k (as views of what a projection returns), cos and sin, whose halves differ."""
    make = torch.Generator().manual_seed(tokens)
    q, k = (torch.randn(batch, tokens, heads, width, generator=make).to(dtype).transpose(1, 2) for heads in (6, 2))
    return [q, k, *(torch.randn(of_batch, tokens, turned, generator=make).to(angles) for _ in range(2))]


def passed(op: str, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
    """Results and gradients of q and k."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k)]
    made = rotary(*leaves, cos, sin) if op == "ours" else [reference.rotate(x, cos, sin) for x in leaves]
    make = torch.Generator().manual_seed(1)
    grads = [torch.randn(x.shape, generator=make).to(x.dtype) for x in made]
    return [*(x.detach() for x in made), *torch.autograd.grad(list(made), leaves, grads)]


@pytest.mark.parametrize("shape", [
    {}, {"turned": 8}, {"turned": 0}, {"of_batch": 1}, {"width": 130, "turned": 34}, {"tokens": 700, "width": 64},
    {"tokens": 0}, {"batch": 1, "tokens": 1},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wide", [False, True])
def test_it_gives_torchs_bits(implementation: str, dtype: torch.dtype, wide: bool, shape: dict[str, int]) -> None:
    shape = {"of_batch": shape.get("batch", 2), **shape}
    if shape.get("turned", 12) > shape.get("width", 12):
        shape["turned"] = shape["width"]
    case = inputs(dtype, torch.float32 if wide else dtype, **shape)
    ours, theirs = passed("ours", *case), passed("theirs", *case)
    assert all(got.dtype == wanted.dtype == dtype for got, wanted in zip(ours, theirs, strict=True))
    assert all(torch.equal(got, wanted) for got, wanted in zip(ours[:2], theirs[:2], strict=True))
    for got, wanted in zip(ours[2:], theirs[2:], strict=True):
        if wide and dtype == torch.bfloat16:  # of which autograd rounds both products, too
            assert float((got - wanted).float().norm()) <= 2**-8 * float(wanted.float().norm())
        else:
            assert torch.equal(got, wanted)


def test_threads_change_no_bit(threads: int) -> None:
    case = inputs(torch.bfloat16, torch.bfloat16, tokens=900, width=64, turned=64)
    for got, wanted in zip(passed("ours", *case), passed("theirs", *case), strict=True):
        assert torch.equal(got, wanted)


def test_the_result_lies_as_its_input_does() -> None:
    q, k, cos, sin = inputs(torch.float32, torch.float32, tokens=4096, width=16, turned=16)
    for x in (q, q.contiguous(), q[..., ::2]):
        turned, _ = rotary(x, k[..., : x.shape[-1]], cos[..., : x.shape[-1]], sin[..., : x.shape[-1]])
        assert torch.equal(turned, reference.rotate(x, cos[..., : x.shape[-1]], sin[..., : x.shape[-1]]))
        assert x.stride(-1) != 1 or turned.stride() == x.stride()


def test_what_lies_in_a_block_is_kept_without_a_copy() -> None:
    q, k, cos, sin = inputs(torch.float32, torch.float32, tokens=900, width=16, turned=16)
    copied = pool.keep(rotary(q, k, cos, sin)[0].clone())
    assert 1 << 18 <= copied.nbytes < 1 << 20
    assert copied.untyped_storage().data_ptr() in pool._places and pool.keep(copied) is copied


def test_angles_that_learn_and_other_types_are_left_to_torch() -> None:
    q, k, cos, sin = inputs(torch.float16, torch.float16)
    assert torch.equal(rotary(q, k, cos, sin)[0], reference.rotate(q, cos, sin))
    q, k, cos, sin = inputs(torch.float32, torch.float32)
    cos.requires_grad_()
    rotary(q, k, cos, sin)[0].sum().backward()
    assert cos.grad is not None and bool(cos.grad.abs().sum() > 0)
