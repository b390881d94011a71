"""Cross-entropy without the logits: tokens x vocabulary is never materialised.

Method: the hidden states go through the model's head a chunk of tokens at a time. A chunk's logits give its loss and
are overwritten by their gradient, which gives the gradient of the chunk's hidden states; the backward pass only scales
what was kept. As in Cut Cross-Entropy (Wijmans et al. 2024, arXiv:2411.09009) and Liger-Kernel, with the difference
that the head is the model's own (soft caps and scales included), by autograd. A head that is a product with the output
embedding and nothing else, as most are, goes without autograd, and its logits lie in a buffer that is kept.

On a card a chunk's cross-entropy is Liger-Kernel's kernel, but not its product with the head: that one is cut into
chunks just as large (256 tokens of 8,192 for Llama 3.1 8B), wants the head in the type of the hidden states, and its
gain, a gradient of the head that is added up on the way, is one that a frozen head has no use for.

For 512 tokens of a vocabulary of 128,256 the logits and their gradient would take 0.5 GB in fp32; a chunk takes 66 MB
in bf16, and a sequence of 8,192 tokens takes no more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from halfbyte import kernels
from halfbyte.kernels.cross_entropy import cross_entropy
from halfbyte.kernels.product.reference import Scratch

CHUNK = 256  # tokens whose logits are there at once
IGNORED = -100  # label of a token that is not learned

Head = Callable[[Tensor], Tensor]
_logits = Scratch()


@dataclass(frozen=True)
class LinearHead:
    """A head that is one product: logits [N, V] = hidden states [N, H] times `weight` [V, H], transposed."""

    weight: Tensor

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        return kernels.linear(hidden_NH, self.weight)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits in a buffer that the next call overwrites."""
        out = _logits.take((len(hidden_NH), len(self.weight)), hidden_NH.dtype, hidden_NH.device)
        return kernels.linear(hidden_NH, self.weight, out=out)

    def backward(self, grad_NV: Tensor) -> Tensor:
        return kernels.linear_transposed(grad_NV, self.weight)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, targets_N: Tensor, head: Head, wants_gradient: bool) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=hidden_NH.device)
        kept_NH = torch.empty_like(hidden_NH) if wants_gradient else None
        step = _by_product if isinstance(head, LinearHead) else _by_autograd
        for start in range(0, len(hidden_NH), CHUNK):
            chunk = slice(start, start + CHUNK)
            grad = kept_NH[chunk] if kept_NH is not None else None
            total += step(head, hidden_NH[chunk].detach(), targets_N[chunk], grad)
        ctx.save_for_backward(kept_NH)
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return (kept.float() * gradients[0]).to(kept.dtype), None, None, None


def _by_product(head: Any, hidden_CH: Tensor, targets_C: Tensor, grad_CH: Tensor | None) -> Tensor:
    """The sum of a chunk's losses (fp64); `grad_CH`, if given, receives the gradient of its hidden states."""
    logits_CV = head.logits(hidden_CH)
    losses_C = cross_entropy(logits_CV, targets_C, gradient=grad_CH is not None)
    if grad_CH is not None:
        grad_CH.copy_(head.backward(logits_CV))
    return losses_C.sum()


def _by_autograd(head: Head, hidden_CH: Tensor, targets_C: Tensor, grad_CH: Tensor | None) -> Tensor:
    """As `_by_product`, for any head."""
    if grad_CH is None:
        return cross_entropy(head(hidden_CH), targets_C, gradient=False).sum()
    with torch.enable_grad():
        leaf = hidden_CH.requires_grad_()
        logits_CV = head(leaf)
    grad_CV = logits_CV.detach().clone()  # the head's backward may need its output
    losses_C = cross_entropy(grad_CV, targets_C, gradient=True)
    grad_CH.copy_(torch.autograd.grad(logits_CV, leaf, grad_CV)[0])
    return losses_C.sum()


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
