"""The native attention against its specification, and the specification against autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte.kernels import native
from halfbyte.kernels.attention import cpu, reference
from halfbyte.kernels.attention.reference import Form

ISAS = pytest.mark.parametrize("isa", native.isas())


@dataclass(frozen=True)
class Case:
    batch: int
    q_heads: int
    heads: int
    queries: int
    keys: int
    width: int
    window: int = 0
    cap: float = 0.0
    padded: bool = False
    offset: int | None = None

    def form(self) -> Form:
        return Form(
            self.width**-0.5, self.keys - self.queries if self.offset is None else self.offset, self.window, self.cap
        )

    def visible(self) -> Tensor | None:
        """Left padding, right padding, a hole, and (from the fourth on) nothing but padding."""
        if not self.padded:
            return None
        mask = torch.ones(self.batch, self.keys, dtype=torch.bool)
        mask[0, : self.keys // 3] = False
        for b, hidden in ((1, slice(-5, None)), (2, slice(7, 9)), (3, slice(None))):
            if b < self.batch:
                mask[b, hidden] = False
        return mask

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v and the gradient of the result; views of [B, T, H, D], as models have them, and one that is not."""
        make = torch.Generator().manual_seed(3)
        shapes = [(self.queries, self.q_heads), (self.keys, self.heads), (self.keys, self.heads)]
        q, k, v = (torch.randn(self.batch, *s, self.width, generator=make).to(dtype).transpose(1, 2) for s in shapes)
        return q, k, v.contiguous(), torch.randn(q.shape, generator=make).to(dtype)


CASES = {
    "more than one strip and block": Case(1, 4, 2, 133, 133, 64),
    "one key": Case(2, 2, 2, 1, 1, 16),
    "one query of a cache": Case(4, 8, 2, 1, 77, 48, padded=True),
    "some queries of a cache": Case(2, 6, 2, 5, 71, 32),
    "padding, and a row without a key": Case(4, 2, 1, 70, 70, 22, padded=True),
    "window": Case(2, 4, 4, 90, 90, 16, window=9),
    "window and cache": Case(1, 4, 1, 3, 150, 128, window=70),
    "soft cap, window and padding": Case(2, 4, 2, 67, 67, 10, window=30, cap=5.0, padded=True),
    "width of 1, odd keys": Case(1, 1, 1, 9, 9, 1),
    "keys beyond the last query": Case(1, 2, 1, 20, 64, 16, offset=0),
    "queries before the first key": Case(1, 2, 1, 20, 10, 16),
    "more queries than keys": Case(1, 2, 1, 40, 10, 16, offset=0),
    "queries after the last key, window": Case(1, 2, 1, 14, 12, 16, window=5, offset=8),
    "width of 256": Case(1, 2, 1, 40, 40, 256),
    "several strips and blocks": Case(1, 2, 2, 300, 300, 80),
    "window over several blocks": Case(2, 4, 2, 200, 260, 96, window=75, padded=True),
    "window within one strip": Case(1, 2, 2, 250, 250, 32, window=20),
    "soft cap over several blocks": Case(1, 6, 2, 90, 210, 33, cap=3.0),
    "one query of a long cache": Case(1, 4, 2, 1, 1500, 80, padded=True),
    "a few queries of a long cache": Case(2, 8, 2, 3, 1100, 64, window=600, cap=5.0, padded=True),
    "16 rows of a head": Case(1, 16, 1, 1, 130, 256),
    "17 rows of a head": Case(1, 17, 1, 1, 130, 128),
}  # fmt: skip
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def run(case: Case, isa: str, tensors: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Tensor]:
    q, k, v, d_out = tensors
    out, lse = cpu.forward(q, k, v, case.form(), case.visible(), isa=isa)
    return [out, lse, *cpu.backward(d_out, q, k, v, out, lse, case.form(), case.visible(), isa=isa)]


def specified(case: Case, tensors: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Tensor]:
    q, k, v, d_out = (tensor.double() for tensor in tensors)
    out, lse = reference.forward(q, k, v, case.form(), case.visible())
    return [out, lse, *reference.backward(d_out, q, k, v, out, lse, case.form(), case.visible())]


def error(made: Tensor, wanted: Tensor) -> float:
    return float((made.detach().double() - wanted).abs().max() / wanted.abs().max().clamp(min=0.1))


@each_case
def test_the_specified_gradients_are_those_of_autograd(case: Case) -> None:
    q, k, v, d_out = (tensor.double().requires_grad_() for tensor in case.tensors())
    out, lse = reference.forward(q, k, v, case.form(), case.visible())
    blind = lse == -torch.inf
    assert torch.equal(out[blind], torch.zeros_like(out[blind]))
    # autograd makes NaN of a row without keys, so such rows are left out there
    group = case.q_heads // case.heads
    scores = (q @ k.repeat_interleave(group, 1).mT) * case.form().scale
    if case.cap:
        scores = case.cap * torch.tanh(scores / case.cap)
    seen = reference.seen(case.form(), case.queries, case.keys, case.visible(), q.device)
    chances = scores.masked_fill(~seen, -1e9).softmax(-1) * ~blind[..., None]
    plain = chances @ v.repeat_interleave(group, 1)
    torch.testing.assert_close(out, plain)
    wanted = torch.autograd.grad(plain, (q, k, v), d_out)
    made = reference.backward(d_out, q, k, v, out, lse, case.form(), case.visible())
    for one, other in zip(made, wanted, strict=True):
        torch.testing.assert_close(one, other)


@ISAS
@each_case
def test_fp32_is_exact_to_its_rounding(case: Case, isa: str, threads: int) -> None:
    tensors = case.tensors()
    for made, wanted in zip(run(case, isa, tensors), specified(case, tensors), strict=True):
        finite = wanted.isfinite()
        assert torch.equal(made.isfinite(), finite)  # only lse has -inf: rows without a key
        assert error(made[finite], wanted[finite]) < 3e-6 if finite.any() else True


@ISAS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_case
def test_16_bits_err_at_most_twice_as_much_as_torch_does(case: Case, isa: str, dtype: torch.dtype) -> None:
    q, k, v, d_out = case.tensors(dtype)
    wanted = specified(case, (q, k, v, d_out))
    made = run(case, isa, (q, k, v, d_out))
    if case.cap:  # torch has none: its plain operators, in the same type
        leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
        scores = leaves[0] @ leaves[1].repeat_interleave(case.q_heads // case.heads, 1).mT * case.form().scale
        seen = reference.seen(case.form(), case.queries, case.keys, case.visible(), q.device)
        scores = (case.cap * torch.tanh(scores / case.cap)).masked_fill(~seen, -1e4)
        chances = scores.softmax(-1) * (wanted[1] > -torch.inf)[..., None].to(dtype)
        theirs = chances @ leaves[2].repeat_interleave(case.q_heads // case.heads, 1)
    else:
        leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
        seen = reference.seen(case.form(), case.queries, case.keys, case.visible(), q.device)
        theirs = torch.nn.functional.scaled_dot_product_attention(
            *leaves, attn_mask=seen, scale=case.form().scale, enable_gqa=True
        ).nan_to_num(0.0)
    grads = torch.autograd.grad(theirs, leaves, d_out)
    floor = 2 * torch.finfo(dtype).eps  # a result that is right to the last bit leaves no room to be twice as good
    for ours, other, right in zip((made[0], *made[2:]), (theirs, *grads), (wanted[0], *wanted[2:]), strict=True):
        other = other.nan_to_num(0.0)
        assert error(ours, right) <= max(2 * error(other, right), floor)


@ISAS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_threads_and_repetitions_change_no_bit(isa: str, dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    try:
        few = Case(1, 4, 2, 2, 1500, 32)
        for case in (Case(1, 4, 1, 200, 200, 32), Case(3, 8, 4, 150, 150, 16, padded=True), few):
            results = []
            for count in (1, 2, 2, 5):
                torch.set_num_threads(count)
                results.append(run(case, isa, case.tensors(dtype)))
            assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


@ISAS
def test_not_a_number_is_not_swallowed(isa: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, d_out = CASES["some queries of a cache"].tensors(dtype)
        k[0, 0, 3, 2] = torch.nan
        out, lse, d_q, *_ = run(CASES["some queries of a cache"], isa, (q, k, v, d_out))
        assert out[0, :3].isnan().all() and lse[0, :3].isnan().all() and d_q[0, :3].isnan().all()
        assert out[0, 3:].isfinite().all() and out[1].isfinite().all()


@ISAS
@pytest.mark.parametrize("queries", [2, 40])
def test_keys_that_nobody_sees_may_hold_anything(isa: str, queries: int) -> None:
    case = Case(1, 2, 1, queries, 90, 40, offset=30 - queries)
    q, k, v, d_out = case.tensors(torch.bfloat16)
    wanted = run(case, isa, (q, k, v, d_out))
    k[:, :, 30:], v[:, :, 30:] = torch.nan, torch.inf
    assert all(torch.equal(a, b) for a, b in zip(run(case, isa, (q, k, v, d_out)), wanted, strict=True))


@ISAS
def test_large_scores_do_not_overflow(isa: str) -> None:
    q, k, v, _ = Case(1, 1, 1, 40, 40, 16).tensors()
    out, lse = cpu.forward(q * 1e3, k * 1e3, v, Form(1.0, 0), isa=isa)
    wanted, lse_wanted = reference.forward(q.double() * 1e3, k.double() * 1e3, v.double(), Form(1.0, 0))
    torch.testing.assert_close(lse.double(), lse_wanted, rtol=1e-5, atol=0)
    assert error(out, wanted) < 1e-2  # scores of 1e7 are known to 1


def test_what_does_not_fit_together_is_refused() -> None:
    q, k, v, _ = Case(1, 4, 2, 8, 8, 16).tensors()
    wrong: list[tuple[Any, ...]] = [(q, k, v[:, :1]), (q[:, :3], k, v), (q.bfloat16(), k, v), (q, k[..., :8], v)]
    for tensors in wrong:
        with pytest.raises(ValueError, match="fit together"):
            cpu.forward(*tensors, Form(1.0, 0), isa="portable")
    with pytest.raises(ValueError, match="mask"):
        cpu.forward(q, k, v, Form(1.0, 0), torch.ones(1, 9, dtype=torch.bool), isa="portable")
    with pytest.raises(ValueError, match="form"):
        Form(0.0, 0)
    with pytest.raises(ValueError, match="positions"):
        cpu.forward(q, k, v, Form(1.0, 2**31), isa="portable")
    out, lse = cpu.forward(q, k, v, Form(1.0, 0), isa="portable")
    back: list[tuple[Any, ...]] = [(out[:, :3], q, out, lse), (out, q, out, lse[..., :4]), (out, q, out, lse.double()),
                                   (out, q, out[..., :8], lse), (out.bfloat16(), q, out, lse)]  # fmt: skip
    for d_out, q_, out_, lse_ in back:
        with pytest.raises(ValueError, match="fit together"):
            cpu.backward(d_out, q_, k, v, out_, lse_, Form(1.0, 0), isa="portable")


@ISAS
def test_a_window_wider_than_32_bits_is_none(isa: str) -> None:
    q, k, v, _ = Case(1, 4, 2, 40, 40, 16).tensors()
    expected = cpu.forward(q, k, v, Form(0.25, 0), isa=isa)[0]
    for window in (2**31, 2**32 + 1, 10**18):
        assert torch.equal(cpu.forward(q, k, v, Form(0.25, 0, window), isa=isa)[0], expected)
