"""Activations on the host: the same bits, two layers' on the card, and nothing reused before it was copied.

No card is needed: on the CPU the same steps run one after the other, and streams and events are simulated.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte.config import AdapterConfig
from halfbyte.model.build import Model, load_model
from halfbyte.model.loss import next_token_loss
from halfbyte.model.offload import LEAST, Group, Offloader, View, offloaded
from halfbyte.model.recompute import once, recomputed
from halfbyte.plan.activations import recomputed_bytes_per_token, saved_bytes_per_token, shape_info
from halfbyte.plan.native import of_model

from ..tiny import FAMILIES, tiny_checkpoint
from .streams import Stream, advance, ever, simulate, without_waits

CPU = torch.device("cpu")
IDS = torch.randint(100, (2, 24), generator=torch.Generator().manual_seed(0))


def opened(source: Path, dropout: float = 0.0) -> Model:
    model = load_model(str(source), adapter=AdapterConfig(rank=4, dropout=dropout))
    for parameter in model.parameters_to_train().values():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model: Model, layers: int, offload: Offloader | None) -> list[Tensor]:
    """The loss and its gradients, twice from one graph, and from another."""
    model.recompute(layers, offload=offload)
    model.net.train()
    parameters, found = list(model.parameters_to_train().values()), []
    for again in (True, False):
        torch.manual_seed(7)
        loss = next_token_loss(model.hidden(IDS), IDS, model.logits)
        found += [loss.detach(), *torch.autograd.grad(loss, parameters, retain_graph=again)]
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_bit_of_the_gradients_is_the_same(family: str, dropout: float, tmp_path: Path) -> None:
    model = opened(tiny_checkpoint(family, tmp_path / "model", num_hidden_layers=3, layer_types=None), dropout)
    for layers in (0, 1, 3):
        wanted = gradients(model, layers, None)
        found = gradients(model, layers, Offloader(CPU, least=0))
        assert len(found) == len(wanted) and all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("layers", [0, 6])
def test_what_leaves_and_what_stays(layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(tiny_checkpoint("llama", tmp_path / "model", num_hidden_layers=6))
    groups: list[Group] = []
    made = Offloader.group
    monkeypatch.setattr(Offloader, "group", lambda self, a: (groups.append(made(self, a)), groups[-1])[1])
    model.recompute(layers, offload=Offloader(CPU, model.net, least=0))
    model.net.train()
    loss = next_token_loss(model.hidden(IDS), IDS, model.logits)
    there = [any(away.there is not None for away in group._away.values()) for group in groups]
    assert there == [False] * 5 + [True]
    kept = sum(away.host.nbytes for group in groups[1:] for away in group._away.values())
    assert model.attention is not None
    native, b = of_model(model.replaced, model.attention.name, products=False, reason=""), model.dtype.itemsize
    info = shape_info(model.net.config.to_dict(), rank=4, native=native)
    saved = saved_bytes_per_token(info, IDS.shape[1], padded=False, dtype_bytes=b)
    assert kept == 5 * IDS.numel() * (recomputed_bytes_per_token(info, b) if layers else saved)
    peak = 0
    bring = Group.bring

    def watched(self: Group) -> None:
        nonlocal peak
        bring(self)
        peak = max(peak, sum(any(away.there is not None for away in g._away.values()) for g in groups))

    monkeypatch.setattr(Group, "bring", watched)
    loss.backward()  # type: ignore[no-untyped-call]
    assert peak == 2
    assert not any(away.there is not None for group in groups for away in group._away.values())


def test_a_tensor_that_several_keep_goes_once_and_what_is_shared_stays() -> None:
    x, shared = torch.ones(50, requires_grad=True), torch.full((50,), 3.0)
    away: list[Any] = []

    def layer(x: Tensor, shared: Tensor) -> Tensor:
        y = x * 1.0
        return (y * y * shared).exp()

    put = Group.put
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Group, "put", lambda self, t: (away.append(put(self, t)), away[-1])[1])
        out = offloaded(layer, x, shared, offload=Offloader(CPU, least=0))
    gone = [one.memory for one in away if isinstance(one, View)]
    assert (
        len(gone) == 3
        and len(set(map(id, gone))) == 2
        and any(isinstance(one, Tensor) and one.data_ptr() == shared.data_ptr() for one in away)
    )
    out.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, 2 * 3 * torch.exp(torch.tensor(3.0)) * torch.ones(50))


def test_small_tensors_stay() -> None:
    x = torch.ones(LEAST // 4 - 1, requires_grad=True)
    group = Offloader(CPU).group([])
    stays = group.put(x)
    assert (
        isinstance(stays, Tensor)
        and stays.data_ptr() == x.data_ptr()
        and isinstance(group.put(torch.ones(LEAST // 4)), View)
    )


def alive() -> int:
    return sum(isinstance(thing, Group) for thing in gc.get_objects())


@pytest.mark.parametrize("least", [0, LEAST])
@pytest.mark.parametrize("layers", [0, 3])
def test_what_lies_on_the_host_goes_with_the_graph(layers: int, least: int, tmp_path: Path) -> None:
    """At once, with a backward pass and without: pinned memory does not wait for a collection of garbage."""
    model = opened(tiny_checkpoint("llama", tmp_path / "model", num_hidden_layers=3))
    model.recompute(layers, offload=Offloader(CPU, model.net, least))
    model.net.train()
    gc.collect()
    gc.disable()
    try:
        for backward in (True, False, True):
            loss = next_token_loss(model.hidden(IDS), IDS, model.logits)
            assert alive() >= 3
            if backward:
                loss.backward()  # type: ignore[no-untyped-call]
            del loss
            assert alive() == 0
    finally:
        gc.enable()


def test_small_inputs_keep_their_gradients(tmp_path: Path) -> None:
    model = opened(tiny_checkpoint("llama", tmp_path / "model", num_hidden_layers=3))
    assert all(map(torch.equal, gradients(model, 3, Offloader(CPU)), gradients(model, 3, None)))


def test_the_weights_of_experts_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(tiny_checkpoint("mixtral", tmp_path / "model"))
    sent: list[int] = []
    to_host = Offloader.to_host
    monkeypatch.setattr(Offloader, "to_host", lambda self, m: (sent.append(m.data_ptr()), to_host(self, m))[1])
    model.recompute(0, offload=Offloader(CPU, model.net, least=0))
    model.net.train()
    loss = next_token_loss(model.hidden(IDS), IDS, model.logits)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.net.parameters()}
    assert sent and not weights & set(sent)
    del loss


def test_a_result_that_the_layer_writes_over_is_not_sent() -> None:
    made: list[Tensor] = []

    def layer(x: Tensor) -> Tensor:
        (y,) = once(lambda: (x.detach() * 3,))
        made.append(y)
        y.mul_(2)
        return (x * y).exp()

    x = torch.full((4,), 0.1, requires_grad=True)
    for offload in (None, Offloader(CPU, least=0)):
        made.clear()
        x.grad = None
        recomputed(layer, x * 1, offload=offload).sum().backward()
        assert x.grad is not None and torch.allclose(x.grad, 0.6 * torch.exp(torch.tensor(0.06)))
        assert len(made) == 2 and torch.equal(made[0], made[1])  # it was made anew


def test_a_call_within_another_leaves_what_that_one_keeps() -> None:
    offload = Offloader(CPU, least=0)

    def outer(x: Tensor) -> Tensor:
        y = (x * 2).exp()
        y = offloaded(lambda z: (z * 0.5).sin(), y, offload=offload)
        return (y * y).exp()

    found = []
    for function in (lambda x: offloaded(outer, x, offload=offload), outer):
        x = torch.linspace(0, 1, 8).requires_grad_()
        function(x).sum().backward()
        found.append(x.grad)
    assert torch.equal(found[0], found[1])  # type: ignore[arg-type]


# ---- streams and events, simulated -----------------------------------------------------------------------------------


def _simulated(count: int, monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    """Two steps of `count` layers with two tensors each; a place on the card is known by the tensor that took it."""
    compute, copies, empty = simulate(monkeypatch), Stream(), torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **named: empty(*a, **named))
    offloader = Offloader(CPU, least=0)
    offloader._copies = copies  # type: ignore[assignment]
    to_host, to_device, leave = offloader.to_host, offloader.to_device, Group.leave

    def out(tensor: Tensor) -> Tensor:
        host = to_host(tensor)
        copies.work.append(("out", int(host[0]), None))
        return host

    def back(host: Tensor) -> Tensor:
        there = to_device(host)
        copies.work.append(("in", int(host[0]), None))
        return there

    def left(self: Group) -> None:
        leave(self)
        compute.work.extend(("reuse", int(away.host[0]), None) for away in self._away.values())

    monkeypatch.setattr(offloader, "to_host", out)
    monkeypatch.setattr(offloader, "to_device", back)
    monkeypatch.setattr(Group, "leave", left)
    for step in range(2):
        kept = []
        for layer in range(count):
            group = offloader.group([])
            for number in (2 * layer, 2 * layer + 1):
                name = 100 * step + number
                compute.work.append(("make", name, None))
                kept.append(group.put(torch.tensor([name], dtype=torch.uint8)))
            group.close()
        for away in reversed(kept):
            assert isinstance(away, View)
            value = away.take()
            compute.work.append(("use", int(value[0]), None))
        del kept, away, group
    return [compute, copies]


def _raced(streams: list[Stream], seed: int) -> bool:
    """Whether something is copied before it is made, given up before it is copied, or used before it is back."""
    there: set[int] = set()
    away: set[int] = set()
    wrong: list[int] = []

    def act(kind: str, name: int, _: None) -> None:
        if kind in ("make", "in"):
            wrong.extend([name] if kind == "in" and name not in away else [])
            there.add(name)
        elif kind == "out":
            wrong.extend([] if name in there else [name])
            away.add(name)
        elif kind == "reuse":
            wrong.extend([] if name in away else [name])
            there.discard(name)
        elif kind == "use" and name not in there:
            wrong.append(name)

    advance(streams, seed, act)
    return bool(wrong)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_nothing_is_reused_or_used_too_early(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = _simulated(count, monkeypatch)
    assert not ever(_raced, streams)


@pytest.mark.parametrize("which", [0, 1])
def test_the_simulation_finds_what_is_not_waited_for(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = _simulated(5, monkeypatch)
    without_waits(streams[which])
    assert ever(_raced, streams)
