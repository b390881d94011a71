"""act(gate) * up against PyTorch: values, gradients, fused projections, the ends of the range, threads."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from halfbyte.kernels import native
from halfbyte.kernels.choice import VARIABLE
from halfbyte.kernels.gate import ACTS, Act, gated, gated_halves, reference

from .bounds import assert_op_no_worse

SHAPES = [(7, 64), (300, 1000), (2, 5, 13), (1, 1), (0, 8)]
DTYPES = [torch.bfloat16, torch.float32, torch.float16]


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(3)
    gate, up, grad = (torch.randn(shape, generator=make) * scale for scale in (3, 1, 1))
    return gate.to(dtype), up.to(dtype), grad.to(dtype)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(
    implementation: str, threads: int, shape: tuple[int, ...], dtype: torch.dtype, act: Act
) -> None:
    gate, up, grad = inputs(shape, dtype)
    ours, theirs = (partial(op, act=act) for op in (gated, reference.gated))
    assert_op_no_worse(ours, theirs, (gate, up), grad, floor=0.1)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("isa", native.isas())
def test_the_whole_range_of_the_activation(isa: str, act: Act, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing overflows on the way; the fixed bound is what PyTorch's own fp32 breaks in its GELU."""
    monkeypatch.setenv(VARIABLE, f"cpu-{isa}")
    x = torch.cat([torch.linspace(-100, 100, 20001), torch.tensor([0.0, -0.0, 3e38, -3e38, 1e-30, 1e-42])])
    leaf, exact_leaf = x.clone().requires_grad_(), x.double().requires_grad_()
    y, exact = gated(leaf, torch.ones_like(x), act), reference.gated(exact_leaf, torch.ones_like(x).double(), act)
    y.sum().backward()
    exact.sum().backward()
    assert leaf.grad is not None and exact_leaf.grad is not None
    inside = x.abs() < 1e4
    for ours, wanted in ((y.detach(), exact.detach()), (leaf.grad, exact_leaf.grad)):
        assert ours.isfinite()[inside].all()
        torch.testing.assert_close(ours[inside].double(), wanted[inside], rtol=1e-6, atol=5e-7)
    assert y[-4] == x[-4] and y[-3] == 0


@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_halves_of_a_fused_projection(implementation: str, gate_first: bool, dtype: torch.dtype) -> None:
    gate, up, grad = inputs((3, 9, 22), dtype)
    both = torch.cat([gate, up] if gate_first else [up, gate], dim=-1).requires_grad_()
    y = gated_halves(both, "silu", gate_first=gate_first)
    y.backward(grad)
    leaves = [part.clone().requires_grad_() for part in (gate, up)]
    wanted = gated(*leaves, "silu")
    wanted.backward(grad)
    parts = [leaf.grad for leaf in leaves]
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(both.grad, torch.cat(parts if gate_first else parts[::-1], dim=-1))


def test_nothing_is_kept_but_gate_and_up() -> None:
    gate, up, _ = inputs((8, 32), torch.bfloat16)
    leaves = [part.clone().requires_grad_() for part in (gate, up)]
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gated(*leaves, "silu")
    assert sorted(t.data_ptr() for t in kept) == sorted(leaf.data_ptr() for leaf in leaves)


def test_strided_inputs_and_modes_give_the_same_bits(implementation: str) -> None:
    gate, up, _ = inputs((6, 4, 10), torch.bfloat16)
    wanted = gated(gate.clone().requires_grad_(), up, "gelu_tanh").detach()
    assert torch.equal(gated(gate.transpose(0, 1), up.transpose(0, 1), "gelu_tanh"), wanted.transpose(0, 1))
    with torch.inference_mode():
        assert torch.equal(gated(gate, up, "gelu_tanh"), wanted)


def test_what_does_not_fit_is_refused(implementation: str) -> None:
    for up in (torch.ones(2, 9), torch.ones(2, 8, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="gate is"):
            gated(torch.ones(2, 8), up, "silu")
    with pytest.raises(ValueError, match="halves"):
        gated_halves(torch.ones(2, 7), "silu")


def test_threads_change_no_bit_and_vectors_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, up, _ = inputs((900, 333), torch.float32)
    before = torch.get_num_threads()
    made: dict[str, list[torch.Tensor]] = {}
    for isa in native.isas():
        monkeypatch.setenv(VARIABLE, f"cpu-{isa}")
        for count in (1, 2):
            torch.set_num_threads(count)
            made.setdefault("portable" if isa == "portable" else "vectors", []).append(gated(gate, up, "gelu"))
    torch.set_num_threads(before)
    for results in made.values():
        assert all(torch.equal(result, results[0]) for result in results)
