"""Cross-entropy without the logits: tokens x vocabulary is never materialised.

Method: the hidden states go through the model's own head a chunk of tokens at a time. While a chunk's logits are
there, its loss and the gradient with respect to its hidden states are taken, and the logits are dropped; the backward
pass only scales what was kept. As in Cut Cross-Entropy (Wijmans et al. 2024, arXiv:2411.09009) and Liger-Kernel, with
the difference that the head is the model's (soft caps and scales included) and not a formula of ours.

For 512 tokens of a vocabulary of 128,256 the logits and their gradient would take 0.5 GB in fp32; a chunk takes a
quarter of that, and a sequence of 8,192 tokens takes no more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 128  # tokens whose logits are there at once
IGNORED = -100  # label of a token that is not learned

Head = Callable[[Tensor], Tensor]


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, labels_N: Tensor, head: Head, wants_gradient: bool) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        gradient = torch.empty_like(hidden_NH) if wants_gradient else None
        for start in range(0, len(hidden_NH), CHUNK):
            chunk = slice(start, start + CHUNK)
            with torch.set_grad_enabled(wants_gradient):
                leaf = hidden_NH[chunk].detach().requires_grad_(wants_gradient)
                loss = F.cross_entropy(head(leaf).float(), labels_N[chunk], reduction="sum")
            if gradient is not None:
                (gradient[chunk],) = torch.autograd.grad(loss, leaf)
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return (kept.float() * gradients[0]).to(kept.dtype), None, None, None


def next_token_loss(hidden_BTH: Tensor, labels_BT: Tensor, head: Head) -> Tensor:
    """Sum of the cross-entropy in nats over the learned tokens (a scalar, fp32).

    `hidden_BTH` are the last hidden states, `labels_BT` the token at each position or -100 where it is not learned;
    position t predicts the token at t + 1. `head` maps hidden states [N, H] to logits [N, V].
    """
    targets = labels_BT[:, 1:].reshape(-1)
    learned = (targets != IGNORED).nonzero().squeeze(1)
    if not len(learned):
        return hidden_BTH.sum() * 0.0
    hidden_NH = hidden_BTH[:, :-1].reshape(-1, hidden_BTH.shape[-1])[learned]
    wants_gradient = hidden_NH.requires_grad and torch.is_grad_enabled()
    arguments = (hidden_NH, targets[learned], head, wants_gradient)
    return _ChunkedCrossEntropy.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]
