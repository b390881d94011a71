"""Layers that are computed again: same gradients, nothing kept, and no last product."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte import kernels
from halfbyte.config import AdapterConfig
from halfbyte.errors import TrainingError
from halfbyte.kernels.attention import cpu
from halfbyte.model.build import load_model
from halfbyte.model.linear import QuantLinear
from halfbyte.model.loss import next_token_loss
from halfbyte.model.recompute import once, recomputed

from ..tiny import FAMILIES, tiny_checkpoint


def gradients(model: Any, ids: Tensor, layers: int) -> tuple[Tensor, list[Tensor]]:
    model.recompute(layers)
    model.net.train()
    torch.manual_seed(7)
    loss = next_token_loss(model.hidden(ids), ids, model.logits)
    parameters = list(model.parameters_to_train().values())
    return loss.detach(), list(torch.autograd.grad(loss, parameters))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_bit_of_the_gradients_is_the_same(family: str, dropout: float, tmp_path: Path) -> None:
    model = load_model(str(tiny_checkpoint(family, tmp_path / family)), adapter=AdapterConfig(rank=4, dropout=dropout))
    for parameter in model.parameters_to_train().values():
        torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.randint(100, (2, 24), generator=torch.Generator().manual_seed(0))
    loss, wanted = gradients(model, ids, 0)
    for layers in (1, len(model.layers())):
        again, found = gradients(model, ids, layers)
        assert torch.equal(again, loss)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_neither_the_last_product_of_a_layer_nor_that_of_attention_is_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(str(tiny_checkpoint("llama", tmp_path / "llama")), adapter=AdapterConfig(rank=4))
    ids = torch.randint(100, (1, 24), generator=torch.Generator().manual_seed(0))
    products, linear = [], kernels.linear

    def counted(*arguments: Any, **options: Any) -> Tensor:
        if not isinstance(arguments[1], Tensor):  # not LoRA's
            products.append(arguments[1].shape)
        return linear(*arguments, **options)

    monkeypatch.setattr(kernels, "linear", counted)
    counts = []
    for layers in (0, len(model.layers())):
        products.clear()
        gradients(model, ids, layers)
        counts.append(len(products))
    assert counts[1] - counts[0] == 5 * len(model.layers())  # of q, k, v, o, gate, up and down all but o and down


def test_attention_is_not_done_twice_unless_the_graph_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(str(tiny_checkpoint("llama", tmp_path / "llama")), adapter=AdapterConfig(rank=4))
    if model.attention is None or model.attention.isa is None:
        pytest.skip("no native attention here")
    calls, forward = [], cpu.forward

    def counted(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return forward(*arguments, **named)

    monkeypatch.setattr(cpu, "forward", counted)
    layers = len(model.layers())
    model.recompute(layers)
    model.net.train()
    ids = torch.randint(100, (1, 24), generator=torch.Generator().manual_seed(0))
    parameters = list(model.parameters_to_train().values())
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=0.1)
    loss = next_token_loss(model.hidden(ids), ids, model.logits)
    once = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert len(calls) == layers
    again = torch.autograd.grad(loss, parameters)  # what was kept is gone by now
    assert len(calls) == 2 * layers
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


class _Kept(torch.autograd.Function):
    """sin, whose result a layer that is computed again keeps; nothing is saved where `saves` is False."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, saves: bool) -> Tensor:
        (y,) = once(lambda: (x.sin(),))
        if saves:
            ctx.save_for_backward(x)
        ctx.saves = saves
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.saved_tensors[0].cos() if ctx.saves else gradients[0], None


def test_what_a_second_run_leaves_is_not_taken_for_another_run() -> None:
    x = torch.linspace(0.1, 1, 8, requires_grad=True)
    y = recomputed(lambda x: _Kept.apply(_Kept.apply(x, True).exp(), False), x)  # type: ignore[no-untyped-call]
    found = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(3)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_result_that_the_layer_writes_over_is_made_again() -> None:
    def layer(x: Tensor) -> Tensor:
        y = _Kept.apply(x, True)  # type: ignore[no-untyped-call]
        y += 1
        return y.square()  # type: ignore[no-any-return]

    x = torch.linspace(0.1, 1, 8, requires_grad=True)
    wanted = torch.autograd.grad(layer(x).sum(), x)[0]
    assert torch.equal(torch.autograd.grad(recomputed(layer, x).sum(), x)[0], wanted)


def test_nothing_is_left_behind() -> None:
    kept: list[weakref.ref[Tensor]] = []

    def layer(x: Tensor) -> Tensor:
        for _ in range(3):
            x = x.sigmoid()  # which keeps its output
            kept.append(weakref.ref(x))
        return x

    x = torch.randn(5, requires_grad=True)
    gc.disable()
    try:
        y = recomputed(layer, x)
        assert [ref() is None for ref in kept] == [True, True, False]
        y.sum().backward()
        del y
        assert all(ref() is None for ref in kept) and len(kept) == 5  # the second run ended within the last
    finally:
        gc.enable()
    once = x.detach().clone().requires_grad_()
    layer(once).sum().backward()
    assert x.grad is not None and once.grad is not None and torch.equal(x.grad, once.grad)


@pytest.mark.parametrize("trained", [True, False])
def test_a_layer_within_a_layer_and_a_frozen_pair(trained: bool) -> None:
    torch.manual_seed(0)
    linear = QuantLinear(kernels.quantise(torch.randn(64, 64), "nf4"))
    linear.add_adapter(AdapterConfig(rank=4))
    assert linear.lora_A is not None and linear.lora_B is not None
    torch.nn.init.normal_(linear.lora_B)
    linear.requires_grad_(trained)
    scale = torch.ones(64, requires_grad=True)
    x = torch.randn(3, 64, requires_grad=trained)

    def block(x: Tensor) -> Tensor:
        return (linear(x) * scale).tanh()

    def gradient(outer: Any, inner: Any) -> Tensor:
        return torch.autograd.grad(outer(lambda x: inner(block, inner(block, x)), x).sum(), scale)[0]

    wanted = gradient(lambda f, x: f(x), lambda f, x: f(x))
    for outer, inner in [(recomputed, recomputed), (recomputed, lambda f, x: f(x)), (lambda f, x: f(x), recomputed)]:
        assert torch.equal(gradient(outer, inner), wanted)


def test_without_gradients_it_is_the_layer_itself() -> None:
    with torch.no_grad():
        assert recomputed(lambda x, *, y: x + y, torch.ones(2), y=1).tolist() == [2, 2]


def test_a_layer_that_computes_something_else_the_second_time_is_named() -> None:
    runs: list[int] = []

    def layer(x: Tensor) -> Tensor:
        runs.append(1)
        return x.sin().exp() if len(runs) == 1 else x * 2

    with pytest.raises(TrainingError, match="not deterministic"):
        recomputed(layer, torch.randn(4, requires_grad=True)).sum().backward()
