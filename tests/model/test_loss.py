"""Chunked cross-entropy against the plain one."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from halfbyte import kernels
from halfbyte.kernels.product.reference import decode
from halfbyte.model.loss import CHUNK, IGNORED, LinearHead, next_token_loss

HIDDEN, VOCABULARY = 16, 50


def test_loss_and_gradient_equal_the_plain_cross_entropy() -> None:
    torch.manual_seed(0)
    length = 2 * CHUNK + 5
    weight = torch.randn(VOCABULARY, HIDDEN)
    hidden = torch.randn(2, length, HIDDEN, requires_grad=True)
    labels = torch.randint(VOCABULARY, (2, length))
    labels[:, : length // 3] = IGNORED
    loss = next_token_loss(hidden, labels, lambda h: torch.tanh(h @ weight.T) * 3)
    (loss / 7).backward()

    plain = hidden.detach().clone().requires_grad_()
    logits = torch.tanh(plain @ weight.T) * 3
    wanted = F.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1), reduction="sum")
    (wanted / 7).backward()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(hidden.grad, plain.grad)


def test_the_head_never_sees_more_than_a_chunk() -> None:
    seen: list[int] = []

    def head(h: torch.Tensor) -> torch.Tensor:
        seen.append(len(h))
        return h

    next_token_loss(torch.randn(1, 5 * CHUNK, HIDDEN), torch.randint(HIDDEN, (1, 5 * CHUNK)), head)
    assert max(seen) == CHUNK and sum(seen) == 5 * CHUNK - 1


def test_nothing_learned_is_a_zero_that_can_be_differentiated() -> None:
    hidden = torch.randn(1, 4, HIDDEN, requires_grad=True)
    loss = next_token_loss(hidden, torch.full((1, 4), IGNORED), lambda h: h)
    loss.backward()
    assert loss.item() == 0 and hidden.grad is not None and not hidden.grad.any()


def test_a_head_that_is_one_product_goes_without_autograd_and_gives_the_same() -> None:
    torch.manual_seed(0)
    weight, length = torch.randn(VOCABULARY, HIDDEN), 2 * CHUNK + 5
    labels = torch.randint(VOCABULARY, (2, length))
    results = []
    for head in (LinearHead(weight), lambda h: h @ weight.T):
        hidden = torch.randn(2, length, HIDDEN, generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = next_token_loss(hidden, labels, head)
        loss.backward()
        with torch.inference_mode():
            torch.testing.assert_close(next_token_loss(hidden, labels, head), loss.detach())
        results.append((loss.detach(), hidden.grad))
    for linear, plain in zip(*results, strict=True):
        torch.testing.assert_close(linear, plain, rtol=1e-5, atol=1e-5)


def test_a_head_whose_output_its_backward_needs_is_not_spoiled() -> None:
    hidden = torch.randn(1, 9, HIDDEN, requires_grad=True)
    labels = torch.randint(HIDDEN, (1, 9))
    next_token_loss(hidden, labels, torch.tanh).backward()
    plain = hidden.detach().clone().requires_grad_()
    F.cross_entropy(torch.tanh(plain)[0, :-1], labels[0, 1:], reduction="sum").backward()
    torch.testing.assert_close(hidden.grad, plain.grad)


def test_decoding_a_weight_leaves_the_logits_alone() -> None:
    hidden, weight = torch.randn(7, HIDDEN), torch.randn(VOCABULARY, HIDDEN)
    logits = LinearHead(weight).product(hidden)
    decode(kernels.quantise(weight, "nf4", name="head"), torch.float32)
    torch.testing.assert_close(logits, hidden @ weight.T)
