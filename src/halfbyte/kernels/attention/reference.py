"""Attention in plain PyTorch: the specification of the native kernels, and what tests compare them with.

Legend: B batch, H query heads, G key/value heads (query head h reads key/value head h // (H / G)), Q queries, K keys,
D width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Form:
    """Which attention: a score is `scale` q·k, with `cap` then cap tanh(score / cap).

    Query i sees the keys up to i + `offset`, and with `window` only the last so many of them.
    """

    scale: float
    offset: int
    window: int = 0  # 0: none
    cap: float = 0.0  # 0: none

    def __post_init__(self) -> None:
        if not self.scale > 0 or self.window < 0 or self.cap < 0:
            raise ValueError(f"no attention has this form: {self}")


def seen(form: Form, queries: int, keys: int, visible: Tensor | None, device: torch.device) -> Tensor:
    """Bool [B or 1, 1, Q, K]: which query sees which key. `visible` [B, K] is 0 where padding is."""
    last = torch.arange(queries, device=device)[:, None] + form.offset
    key = torch.arange(keys, device=device)
    pairs = key <= last
    if form.window:
        pairs &= key > last - form.window
    return pairs[None, None] if visible is None else pairs & visible.bool()[:, None, None]


def _scores(q: Tensor, k: Tensor, form: Form, visible: Tensor | None) -> Tensor:
    """[B, G, H / G, Q, K], -inf where a key is not seen."""
    scores = torch.einsum("bghqd,bgkd->bghqk", q, k) * form.scale
    if form.cap:
        scores = form.cap * torch.tanh(scores / form.cap)
    mask = seen(form, q.shape[-2], k.shape[-2], visible, q.device)
    return scores.masked_fill(~mask[:, :, None], -torch.inf)


def _grouped(tensor: Tensor, k: Tensor) -> Tensor:
    """[B, H, ...] as [B, G, H / G, ...]."""
    return tensor.reshape(tensor.shape[0], k.shape[1], -1, *tensor.shape[2:])


def _wide(*tensors: Tensor) -> list[Tensor]:
    return [tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors]


def forward(q: Tensor, k: Tensor, v: Tensor, form: Form, visible: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention [B, H, Q, D] of q [B, H, Q, D] to k and v [B, G, K, D], and the log of the sum of exp(score) [B, H, Q].

    Computed in fp32 and rounded to q's type; `lse` is fp32. A query that sees no key gives zeros, with an lse of -inf.
    """
    wide_q, wide_k, wide_v = _wide(q, k, v)
    scores = _scores(_grouped(wide_q, k), wide_k, form, visible)
    lse = scores.logsumexp(-1)
    chances = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
    out = torch.einsum("bghqk,bgkd->bghqd", chances, wide_v)
    return out.flatten(1, 2).to(q.dtype), lse.flatten(1, 2)


def backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, form: Form, visible: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, given that of `out`; k's and v's are summed over the queries."""
    wide_d, wide_q, wide_k, wide_v, wide_out = _wide(d_out, q, k, v, out)
    wide_d, wide_q, wide_out = (_grouped(tensor, k) for tensor in (wide_d, wide_q, wide_out))
    scores = _scores(wide_q, wide_k, form, visible)
    lse = _grouped(lse.masked_fill(lse == -torch.inf, torch.inf), k)
    chances = (scores - lse[..., None]).exp()
    d_v = torch.einsum("bghqk,bghqd->bgkd", chances, wide_d)
    d_chances = torch.einsum("bghqd,bgkd->bghqk", wide_d, wide_v)
    delta = (wide_d * wide_out).sum(-1, keepdim=True)
    d_scores = chances * (d_chances - delta) * form.scale
    if form.cap:
        d_scores = d_scores * (1 - (scores.clamp(min=-form.cap) / form.cap).square())
    d_q = torch.einsum("bghqk,bgkd->bghqd", d_scores, wide_k).flatten(1, 2)
    d_k = torch.einsum("bghqk,bghqd->bgkd", d_scores, wide_q)
    return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)
