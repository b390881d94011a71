"""Cross-entropy without the logits: tokens x vocabulary is never materialised.

Method: the hidden states go through the model's head a chunk of tokens at a time. A chunk's logits give its loss and
are overwritten by their gradient, which gives the gradient of the chunk's hidden states; the backward pass only scales
what was kept. As in Cut Cross-Entropy (Wijmans et al. 2024, arXiv:2411.09009) and Liger-Kernel. A head that is a
product with the output embedding, with a scale or a soft cap behind it where native code computes these, goes without
autograd, and its logits lie in a buffer that is kept. Any other is the model's own, by autograd.

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
from halfbyte.kernels.cross_entropy import PLAIN, Ending, cross_entropy
from halfbyte.kernels.fused import native_isa
from halfbyte.kernels.product.reference import Scratch

CHUNK = 256  # tokens whose logits are there at once
IGNORED = -100  # label of a token that is not learned

Head = Callable[[Tensor], Tensor]
_logits = Scratch()


@dataclass(frozen=True)
class LinearHead:
    """A head that is one product and its `ending`: logits [N, V] = ending(hidden states [N, H] times `weight` [V, H],
    transposed)."""

    weight: Tensor
    ending: Ending = PLAIN

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        return self.ending(kernels.linear(hidden_NH, self.weight))

    def product(self, hidden_NH: Tensor) -> Tensor:
        """Logits before the ending, in a buffer that the next call overwrites."""
        out = _logits.take((len(hidden_NH), len(self.weight)), hidden_NH.dtype, hidden_NH.device)
        return kernels.linear(hidden_NH, self.weight, out=out)

    def backward(self, grad_NV: Tensor) -> Tensor:
        """The gradient of hidden states by that of their product."""
        return kernels.linear_transposed(grad_NV, self.weight)


@torch.no_grad()
def linear_head(embedding: Any, head: Head, config: Any, dtype: torch.dtype) -> LinearHead | None:
    """The LinearHead that gives what `head` gives, with the output embedding and what `config` says of its end; None
    where there is none, or no native code for its end. It is tried once, on hidden states of a length that would bring
    every soft cap and scale to light."""
    if not isinstance(embedding, torch.nn.Linear) or embedding.bias is not None:
        return None
    hidden_NH = 50 * torch.randn(2, embedding.in_features, generator=torch.Generator().manual_seed(0))
    hidden_NH = hidden_NH.to(embedding.weight.device, dtype)
    plain, wanted_NV = LinearHead(embedding.weight), head(hidden_NH)
    logits_NV = plain(hidden_NH)
    if torch.equal(logits_NV, wanted_NV):
        return plain
    ended = LinearHead(embedding.weight, _ending_of(config))
    if ended.ending == PLAIN or native_isa(logits_NV) is None:
        return None
    error = max(2 * torch.finfo(logits_NV.dtype).eps, 1e-5)  # it rounds after each of its steps
    return ended if torch.allclose(ended.ending(logits_NV.float()), wanted_NV.float(), rtol=error) else None


def _ending_of(config: Any) -> Ending:
    """By the names that transformers' families have for it: Gemma 2's soft cap, Granite's and Cohere's scales."""
    cap, divisor, scale = (getattr(config, name, None) for name in
                           ("final_logit_softcapping", "logits_scaling", "logit_scale"))  # fmt: skip
    try:
        return Ending((scale or 1.0) / (divisor or 1.0), cap or None)
    except (TypeError, ValueError):  # MPT's scale may be a word
        return PLAIN


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
        if kept.device.type == "cpu":  # times a number, which is computed in fp32 and rounded once, without copies
            return kept * gradients[0].item(), None, None, None
        return (kept.float() * gradients[0]).to(kept.dtype), None, None, None


def _by_product(head: Any, hidden_CH: Tensor, targets_C: Tensor, grad_CH: Tensor | None) -> Tensor:
    """The sum of a chunk's losses (fp64); `grad_CH`, if given, receives the gradient of its hidden states."""
    logits_CV = head.product(hidden_CH)
    losses_C = cross_entropy(logits_CV, targets_C, gradient=grad_CH is not None, ending=head.ending)
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
