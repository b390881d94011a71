"""RMSNorm against PyTorch: values, gradients, types that are not covered, threads."""

from __future__ import annotations

import pytest
import torch

from halfbyte.kernels import native
from halfbyte.kernels.choice import VARIABLE
from halfbyte.kernels.norm import STYLES, Style, reference, rms_norm

from .bounds import assert_op_no_worse

EPS = 1e-5
SHAPES = [(7, 64), (300, 1000), (2, 5, 13), (1, 1), (3, 4099), (0, 8)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x of rows that differ in scale, weight, and a gradient of the result."""
    make = torch.Generator().manual_seed(3)
    rows = 10 ** torch.empty(*shape[:-1], 1).uniform_(-3, 3, generator=make)
    x = torch.randn(shape, generator=make) * rows
    weight, grad = torch.randn(shape[-1], generator=make), torch.randn(shape, generator=make)
    return x.to(dtype), weight.to(dtype), grad.to(dtype)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(
    implementation: str, threads: int, shape: tuple[int, ...], dtype: torch.dtype, style: Style
) -> None:
    x, weight, grad = inputs(shape, dtype)
    ours, theirs = (lambda x, op=op: op(x, weight.to(x.dtype), EPS, style) for op in (rms_norm, reference.rms_norm))
    assert_op_no_worse(ours, theirs, (x,), grad, by_row=True)


def test_without_gradients_it_gives_the_same_bits(implementation: str) -> None:
    x, weight, _ = inputs((33, 100), torch.bfloat16)
    wanted = rms_norm(x.clone().requires_grad_(), weight, EPS, "narrow").detach()
    with torch.no_grad():
        assert torch.equal(rms_norm(x.clone().requires_grad_(), weight, EPS, "narrow"), wanted)
    with torch.inference_mode():
        assert torch.equal(rms_norm(x, weight, EPS, "narrow"), wanted)


def test_strided_rows_and_unaligned_weights(implementation: str) -> None:
    x, weight, _ = inputs((6, 4, 64), torch.bfloat16)
    turned = x.transpose(0, 1)
    assert torch.equal(rms_norm(turned, weight, EPS, "wide"), rms_norm(x, weight, EPS, "wide").transpose(0, 1))
    room = torch.zeros(weight.nbytes + 1, dtype=torch.uint8)
    room[1:] = weight.view(torch.uint8)
    odd = torch.frombuffer(room.numpy(), dtype=torch.bfloat16, offset=1, count=64)
    assert torch.equal(rms_norm(x, odd, EPS, "narrow"), rms_norm(x, weight, EPS, "narrow"))


def test_a_weight_that_is_trained_gets_its_gradient(implementation: str) -> None:
    x, weight, grad = inputs((5, 16), torch.float32)
    weight.requires_grad_()
    rms_norm(x, weight, EPS, "narrow").backward(grad)
    assert weight.grad is not None and weight.grad.abs().min() > 0


def test_mixed_types_give_what_pytorch_gives(implementation: str) -> None:
    x, weight, _ = inputs((5, 16), torch.bfloat16)
    for style in STYLES:
        wanted = reference.rms_norm(x, weight.float(), EPS, style)
        made = rms_norm(x, weight.float(), EPS, style)
        assert made.dtype == wanted.dtype and torch.equal(made, wanted)


def test_nan_and_infinity_stay_visible(implementation: str) -> None:
    x = torch.ones(3, 70, dtype=torch.bfloat16)
    x[0, 5], x[1, 6] = float("nan"), float("inf")
    y = rms_norm(x, torch.ones(70, dtype=torch.bfloat16), EPS, "narrow")
    assert y[0].isnan().all() and y[1, 6].isnan() and y[2].isfinite().all()


def test_widths_that_differ_are_refused(implementation: str) -> None:
    with pytest.raises(ValueError, match="rows of 8"):
        rms_norm(torch.ones(2, 8), torch.ones(9), EPS, "narrow")


def test_threads_and_instruction_sets_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, grad = inputs((700, 333), torch.bfloat16)
    made = []
    before = torch.get_num_threads()
    for isa in native.isas():
        for count in (1, 2):
            monkeypatch.setenv(VARIABLE, f"cpu-{isa}")
            torch.set_num_threads(count)
            leaf = x.clone().requires_grad_()
            y = rms_norm(leaf, weight, EPS, "narrow")
            y.backward(grad)
            made.append((y.detach(), leaf.grad))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for pair in made for a, b in zip(pair, made[0], strict=True))
