"""Cross-entropy of logits against PyTorch: losses, gradients, the ends of the range, threads."""

from __future__ import annotations

import pytest
import torch

from halfbyte.kernels import native
from halfbyte.kernels.choice import VARIABLE
from halfbyte.kernels.cross_entropy import PLAIN, Ending, cross_entropy, reference

from .bounds import assert_no_worse

SHAPES = [(5, 50), (3, 10007), (1, 1), (130, 320), (2, 128256)]
DTYPES = [torch.bfloat16, torch.float32, torch.float16]


def inputs(shape: tuple[int, int], dtype: torch.dtype, scale: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(5)
    logits = torch.randn(shape, generator=make) * scale + 3
    return logits.to(dtype), torch.randint(shape[1], shape[:1], generator=make)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [0.1, 4.0, 60.0])
def test_losses_and_gradients(
    implementation: str, threads: int, shape: tuple[int, int], dtype: torch.dtype, scale: float
) -> None:
    logits, targets = inputs(shape, dtype, scale)
    exact_grad = logits.double()
    exact = reference.cross_entropy(exact_grad, targets, True)
    theirs_grad, ours_grad = logits.clone(), logits.clone()
    theirs = reference.cross_entropy(theirs_grad, targets, True)
    ours = cross_entropy(ours_grad, targets, gradient=True)
    assert ours.dtype == torch.float64
    assert_no_worse(ours, theirs, exact)
    assert_no_worse(ours_grad, theirs_grad, exact_grad)
    again = logits.clone()
    assert torch.equal(cross_entropy(again, targets, gradient=False), ours) and torch.equal(again, logits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ending", [Ending(0.125), Ending(cap=30.0), Ending(3.0, 2.0)], ids=str)
def test_a_scale_and_a_soft_cap(implementation: str, dtype: torch.dtype, ending: Ending) -> None:
    """Against autograd in fp64. The native tanh is off by up to 1e-7, which the cap multiplies."""
    logits, targets = inputs((9, 5003), dtype, 20.0)
    leaf = logits.double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(ending(leaf), targets, reduction="none")
    wanted.sum().backward()
    assert leaf.grad is not None
    ours = logits.clone()
    losses = cross_entropy(ours, targets, gradient=True, ending=ending)
    torch.testing.assert_close(losses, wanted.detach(), rtol=1e-6, atol=1e-6 * (ending.cap or 1.0))
    error = max(torch.finfo(dtype).eps, 1e-6)
    least = float(leaf.grad.abs().max()) * 1e-6 + torch.finfo(dtype).tiny  # fp16 loses what is smaller
    torch.testing.assert_close(ours.double(), leaf.grad, rtol=error, atol=least)
    again = logits.clone()
    assert torch.equal(cross_entropy(again, targets, gradient=False, ending=ending), losses)
    assert torch.equal(again, logits)


@pytest.mark.parametrize(("scale", "cap"), [(0.0, None), (-1.0, None), (1.0, 0.0), (1.0, -3.0), (float("nan"), None)])
def test_an_ending_that_does_not_rise_is_refused(scale: float, cap: float | None) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Ending(scale, cap)


def test_it_is_what_autograd_makes_of_pytorchs_own(implementation: str) -> None:
    logits, targets = inputs((9, 77), torch.float32)
    leaf = logits.clone().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(leaf, targets, reduction="sum")
    wanted.backward()
    losses = cross_entropy(logits, targets, gradient=True)
    torch.testing.assert_close(losses.sum().float(), wanted.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits, leaf.grad, rtol=1e-6, atol=1e-7)


def test_logits_that_are_impossible_or_not_numbers(implementation: str) -> None:
    logits = torch.zeros(4, 130)
    logits[0, 3:] = -float("inf")  # three that are possible
    logits[1, 100] = float("nan")
    logits[2, 7] = 3e38
    losses = cross_entropy(logits, torch.tensor([1, 0, 7, 129]), gradient=True)
    torch.testing.assert_close(losses[0], torch.tensor(3.0).double().log())
    assert logits[0, 3:].count_nonzero() == 0 and losses[1].isnan() and losses[2] == 0
    torch.testing.assert_close(losses[3], torch.tensor(130.0).double().log())


def test_what_does_not_fit_never_reaches_a_pointer(implementation: str) -> None:
    logits = torch.zeros(3, 8)
    for targets in (torch.tensor([0, 1]), torch.tensor([0, 1, 2]).int()):
        with pytest.raises(ValueError, match="do not fit"):
            cross_entropy(logits, targets, gradient=True)
    for targets in (torch.tensor([0, 1, 8]), torch.tensor([0, -1, 2])):
        with pytest.raises(ValueError, match="8 logits"):
            cross_entropy(logits, targets, gradient=True)
    assert not logits.any()
    assert cross_entropy(logits[:0], torch.zeros(0, dtype=torch.int64), gradient=True).shape == (0,)


def test_logits_that_are_not_contiguous(implementation: str) -> None:
    logits, targets = inputs((6, 40), torch.float32)
    turned = logits.T.contiguous().T
    plain = logits.clone()
    torch.testing.assert_close(
        cross_entropy(turned, targets, gradient=True), cross_entropy(plain, targets, gradient=True)
    )
    torch.testing.assert_close(turned, plain)


@pytest.mark.parametrize("ending", [PLAIN, Ending(cap=30.0)], ids=str)
def test_threads_change_no_bit_and_vectors_agree(ending: Ending, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = inputs((40, 5003), torch.bfloat16)
    before = torch.get_num_threads()
    made: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for isa in native.isas():
        monkeypatch.setenv(VARIABLE, f"cpu-{isa}")
        for count in (1, 2):
            torch.set_num_threads(count)
            grad = logits.clone()
            losses = cross_entropy(grad, targets, gradient=True, ending=ending)
            made.setdefault("portable" if isa == "portable" else "vectors", []).append((losses, grad))
    torch.set_num_threads(before)
    for results in made.values():
        assert all(torch.equal(a, b) for pair in results for a, b in zip(pair, results[0], strict=True))
