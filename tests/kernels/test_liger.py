"""Liger-Kernel's kernels behind our ops: values and gradients at most twice as far off as PyTorch's.

Without a card they run in Triton's interpreter, mended where it falls short (`interpreted.py`), and not in bf16.
`TRITON_INTERPRET=0 pytest tests/kernels/test_liger.py` compiles them.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from halfbyte.kernels import fused
from halfbyte.kernels.choice import VARIABLE
from halfbyte.kernels.cross_entropy import cross_entropy, fault_on_card
from halfbyte.kernels.cross_entropy import reference as plain_loss
from halfbyte.kernels.fused import choose_parts, dtypes_of, on_card
from halfbyte.kernels.gate import ACTS, Act, gated, gated_halves
from halfbyte.kernels.gate import reference as plain_gate
from halfbyte.kernels.norm import STYLES, Style, rms_norm
from halfbyte.kernels.norm import reference as plain_norm
from halfbyte.kernels.rotary import reference as plain_rotary
from halfbyte.kernels.rotary import rotary

from .bounds import assert_no_worse, assert_op_no_worse
from .interpreted import INTERPRETED, WHY_NOT, mend

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
DTYPES = [torch.float16, torch.float32] + ([] if INTERPRETED else [torch.bfloat16])
pytestmark = [
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="there is no card to compile for"),
]


@pytest.fixture(autouse=True)
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "gpu")
    assert choose_parts(DEVICE).name == "gpu" and "Liger-Kernel" in choose_parts(DEVICE).reason
    mend(monkeypatch)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ops of Liger-Kernel that ran, so that no test passes by the reference."""
    from halfbyte.kernels.cross_entropy import gpu as loss
    from halfbyte.kernels.gate import gpu as gate
    from halfbyte.kernels.norm import gpu as norm
    from halfbyte.kernels.rotary import gpu as turn

    ran: list[str] = []
    for module, name in ((norm, "rms_norm"), (gate, "gated"), (gate, "gated_halves"), (turn, "rotate"),
                         (loss, "cross_entropy")):  # fmt: skip

        def noted(*arguments: object, of: object = getattr(module, name), name: str = name) -> object:
            ran.append(name)
            return of(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(module, name, noted)
    return ran


def random(*shape: int, dtype: torch.dtype, scale: float = 1.0, seed: int = 3) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(DEVICE, dtype)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7, 64), (2, 5, 13), (1, 1), (3, 1000)], ids=str)
def test_norms_in_each_style(shape: tuple[int, ...], dtype: torch.dtype, style: Style, calls: list[str]) -> None:
    x, weight, grad = (random(*size, dtype=dtype, seed=seed) for seed, size in enumerate((shape, shape[-1:], shape)))
    x = x * torch.logspace(-1, 1, len(x), device=DEVICE).view(-1, *[1] * (x.ndim - 1)).to(dtype)
    ours, theirs = (lambda x, op=op: op(x, weight.to(x.dtype), 1e-5, style) for op in (rms_norm, plain_norm.rms_norm))
    assert_op_no_worse(ours, theirs, (x,), grad, by_row=True)
    assert calls == ["rms_norm"]


def test_a_norm_leaves_the_gradient_that_it_is_given_as_it_is() -> None:
    x, weight, grad = (random(*size, dtype=torch.float32) for size in ((4, 16), (16,), (4, 16)))
    kept = grad.clone()
    leaf = x.requires_grad_()
    (rms_norm(leaf, weight, 1e-5, "narrow") + leaf).backward(grad)
    assert torch.equal(grad, kept)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gates_of_two_layers(dtype: torch.dtype, act: Act, calls: list[str]) -> None:
    gate, up, grad = (random(2, 5, 33, dtype=dtype, scale=scale, seed=seed) for seed, scale in enumerate((3, 1, 1)))
    ours, theirs = (partial(_of_outputs, op=op, act=act) for op in (gated, plain_gate.gated))
    assert_op_no_worse(ours, theirs, (gate, up), grad, floor=0.1)
    assert calls == ([] if act == "gelu" else ["gated"])


def _of_outputs(gate: Tensor, up: Tensor, op: object, act: Act) -> Tensor:
    """The gate of what a layer made: leaves are the caller's, and would be written over."""
    return op(gate * 1, up * 1, act)  # type: ignore[no-any-return, operator]


@pytest.mark.parametrize(("act", "gate_first"), [("silu", True), ("silu", False), ("gelu_tanh", True)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gates_of_a_fused_projection(dtype: torch.dtype, act: Act, gate_first: bool, calls: list[str]) -> None:
    gate, up, grad = (random(2, 5, 33, dtype=dtype, scale=scale, seed=seed) for seed, scale in enumerate((3, 1, 1)))

    def ours(gate: Tensor, up: Tensor) -> Tensor:
        return gated_halves(torch.cat([gate, up] if gate_first else [up, gate], -1), act, gate_first=gate_first)

    assert_op_no_worse(ours, partial(plain_gate.gated, act=act), (gate, up), grad, floor=0.1)
    assert calls == (["gated_halves"] if (act, gate_first) == ("silu", True) else [])


@pytest.mark.parametrize("width", [12, 8], ids=["whole heads", "a part of each head"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by_tokens", [True, False])
def test_rotary_embeddings(dtype: torch.dtype, width: int, by_tokens: bool, calls: list[str]) -> None:
    """Heads are no power of two, and the batch has angles of its own; nothing that is handed over is written to."""
    shapes = ((2, 5, 3, 12), (2, 5, 1, 12))
    q, k = (random(*shape, dtype=dtype, seed=seed).transpose(1, 2) for seed, shape in enumerate(shapes))
    if not by_tokens:
        q, k = q.contiguous(), k.contiguous()
    angles = torch.rand(2, 5, width // 2, generator=torch.Generator().manual_seed(1)).to(DEVICE) * 7
    cos, sin = (torch.cat((half, half), -1).to(dtype) for half in (angles.cos(), angles.sin()))
    before, grad = (q.clone(), k.clone()), torch.cat([random(*shape, dtype=dtype).flatten() for shape in shapes])

    def both(op: object, q: Tensor, k: Tensor) -> Tensor:
        made = op(q, k, cos.to(q.dtype), sin.to(q.dtype))  # type: ignore[operator]
        return torch.cat([x.transpose(1, 2).reshape(-1) for x in made])

    def plain(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return plain_rotary.rotate(q, cos, sin), plain_rotary.rotate(k, cos, sin)

    assert_op_no_worse(partial(both, rotary), partial(both, plain), (q, k), grad)
    assert calls == ["rotate"]
    leaves = [x.requires_grad_() for x in (q, k)]
    made, grads = rotary(*leaves, cos, sin), [torch.ones_like(x) for x in (q, k)]
    torch.autograd.backward(made, grads)
    assert all(torch.equal(x, y) for x, y in zip((q, k), before, strict=True))
    assert all(bool((x == 1).all()) for x in grads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.1, 4.0, 60.0])
@pytest.mark.parametrize("shape", [(5, 50), (1, 1), (3, 40_000)], ids=str)
def test_cross_entropy_and_its_gradient(
    shape: tuple[int, int], scale: float, dtype: torch.dtype, calls: list[str]
) -> None:
    logits = random(*shape, dtype=dtype, scale=scale) + 3
    targets = torch.randint(shape[1], shape[:1], generator=torch.Generator().manual_seed(1)).to(DEVICE)
    exact, theirs, ours = logits.double(), logits.clone(), logits.clone()
    losses = [plain_loss.cross_entropy(x, targets, True) for x in (exact, theirs)]
    mine = cross_entropy(ours, targets, gradient=True)
    assert "cross_entropy" in calls and mine.dtype == torch.float64
    assert_no_worse(mine, losses[1], losses[0])
    assert_no_worse(ours, theirs, exact)
    again = logits.clone()
    assert torch.equal(cross_entropy(again, targets, gradient=False), mine) and torch.equal(again, logits)


def test_what_is_not_theirs_goes_to_the_reference(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    wide, none = torch.ones(1, fused.WIDEST + 1, device=DEVICE), torch.ones(0, 8, device=DEVICE)
    assert not on_card(wide) and not on_card(none) and not on_card(torch.ones(2, 2).double())
    assert rms_norm(none, torch.ones(8, device=DEVICE), 1e-5, "wide").shape == (0, 8)
    assert torch.bfloat16 not in dtypes_of(choose_parts(DEVICE)) or not INTERPRETED
    trained = torch.ones(8, device=DEVICE, requires_grad=True)
    rms_norm(torch.ones(2, 8, device=DEVICE), trained, 1e-5, "wide").sum().backward()
    assert calls == [] and trained.grad is not None


def test_a_kernel_that_has_changed_is_found_out_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from halfbyte.kernels.cross_entropy import gpu

    assert fault_on_card(DEVICE, torch.float32) == ""
    for broken, said in ((lambda *_: torch.zeros(5).double(), "something else"), (_refused, "TypeError")):
        gpu.fault.cache_clear()
        monkeypatch.setattr(gpu, "cross_entropy", broken)
        assert said in fault_on_card(DEVICE, torch.float32)
        logits, targets = torch.randn(4, 9, device=DEVICE), torch.arange(4, device=DEVICE)
        wanted = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        torch.testing.assert_close(cross_entropy(logits, targets, gradient=True), wanted.double())
    gpu.fault.cache_clear()


def _refused(*_: object) -> Tensor:
    raise TypeError("unexpected keyword argument")


def test_without_liger_the_reference_runs_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "liger", lambda: ("", "liger-kernel is not installed: pip install it"))
    found = choose_parts(DEVICE)
    assert found.name == "reference" and "not installed" in found.reason and not on_card(torch.ones(2, 2))
    assert "not installed" in fault_on_card(DEVICE, torch.float32)
