"""The middle of a gated MLP, act(gate) * up, forward and backward: one pass over each, nothing kept but gate and up."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from halfbyte.kernels.fused import native_isa, on_card
from halfbyte.kernels.gate import cpu, reference
from halfbyte.kernels.gate.reference import ACTS, Act
from halfbyte.kernels.pool import pool

__all__ = ["ACTS", "Act", "gated", "gated_halves"]


def gated(gate: Tensor, up: Tensor, act: Act) -> Tensor:
    """act(gate) * up; all three [..., I] of one floating type. Native on the CPU for bf16 and fp32, by Liger-Kernel on
    a card, where a graph then has one backward pass.

    Raises ValueError when shapes or types differ.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(f"gate is {gate.dtype} {list(gate.shape)}, up {up.dtype} {list(up.shape)}")
    isa = native_isa(gate)
    if isa is None:
        if not on_card(gate) or not _card().covers(act):
            return reference.gated(gate, up, act)
        return _card().gated(gate, up, act)  # type: ignore[no-any-return]
    gate_TI, up_TI = (part.reshape(-1, part.shape[-1]).contiguous() for part in (gate, up))
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        out_TI = _Gated.apply(gate_TI, up_TI, act, isa)  # type: ignore[no-untyped-call]
    else:
        out_TI = cpu.gated(gate_TI, up_TI, act, isa)
    return out_TI.view(gate.shape)  # type: ignore[no-any-return]


def gated_halves(both: Tensor, act: Act, *, gate_first: bool = True) -> Tensor:
    """`gated` of the halves of a fused projection's output: `both` [..., 2 I] -> [..., I], without a copy of either."""
    if both.shape[-1] % 2:
        raise ValueError(f"{both.shape[-1]} columns have no halves")
    isa = native_isa(both)
    fused = isa is not None or (on_card(both) and _card().covers(act, fused=True, gate_first=gate_first))
    if not fused:
        return reference.gated(*_halves(both, gate_first), act)
    both_TC = both.reshape(-1, both.shape[-1]).contiguous()
    if isa is None:
        return _card().gated_halves(both_TC).view(*both.shape[:-1], -1)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and both.requires_grad:
        out_TI = _GatedHalves.apply(both_TC, act, gate_first, isa)  # type: ignore[no-untyped-call]
    else:
        out_TI = cpu.gated(*_halves(both_TC, gate_first), act, isa)
    return out_TI.view(*both.shape[:-1], both.shape[-1] // 2)  # type: ignore[no-any-return]


def _card() -> ModuleType:
    from halfbyte.kernels.gate import gpu

    return gpu


def _halves(both: Tensor, gate_first: bool) -> tuple[Tensor, Tensor]:
    """Gate and up, as views."""
    first, second = both.chunk(2, dim=-1)
    return (first, second) if gate_first else (second, first)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Act, isa: str) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act, ctx.isa = act, isa
        return cpu.gated(gate, up, act, isa)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        grad_gate, grad_up = pool.empty_like(gate), pool.empty_like(up)
        cpu.gated_backward(grad.contiguous(), gate, up, grad_gate, grad_up, ctx.act, ctx.isa)
        return grad_gate, grad_up, None, None


class _GatedHalves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor, act: Act, gate_first: bool, isa: str) -> Tensor:
        ctx.save_for_backward(both)
        ctx.act, ctx.gate_first, ctx.isa = act, gate_first, isa
        return cpu.gated(*_halves(both, gate_first), act, isa)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (both,) = ctx.saved_tensors
        grad_both = pool.empty_like(both)
        parts = (*_halves(both, ctx.gate_first), *_halves(grad_both, ctx.gate_first))
        cpu.gated_backward(grad.contiguous(), *parts, ctx.act, ctx.isa)
        return grad_both, None, None, None
