"""Layers that are streamed: the same bits as if all were there, two layers on the card, and no copy that races a read.

No card is needed: on the CPU the same steps run one after the other, and streams and events are simulated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte.config import AdapterConfig
from halfbyte.errors import ConfigError, DoesNotFit
from halfbyte.formats import WEIGHTS, Weights
from halfbyte.model import build, stream
from halfbyte.model.adapter import quant_linears
from halfbyte.model.assemble import decoder_layers
from halfbyte.model.build import Model, load_model
from halfbyte.model.embedding import FrozenEmbedding
from halfbyte.model.held import held_bytes
from halfbyte.model.linear import QuantLinear
from halfbyte.model.loss import next_token_loss
from halfbyte.model.stream import Streamer, stream_layers
from halfbyte.plan.inventory import take_inventory
from halfbyte.plan.machine import this_machine
from halfbyte.plan.streaming import SLOTS, streaming

from ..tiny import FAMILIES, tiny_checkpoint
from .streams import Event, Stream, advance, ever, simulate, without_waits

CPU = torch.device("cpu")
IDS = torch.randint(100, (2, 24), generator=torch.Generator().manual_seed(0))


def opened(
    source: Path, monkeypatch: pytest.MonkeyPatch, *, stream: bool, weights: str = "nf4", dropout: float = 0.0
) -> Model:
    monkeypatch.setattr(build, "settle_stream", lambda *_: (stream, "as the test asks"))
    adapter = AdapterConfig(rank=4, dropout=dropout)
    model = load_model(str(source), weights=weights, adapter=adapter)  # type: ignore[arg-type]
    make = torch.Generator().manual_seed(1)
    for layer in quant_linears(model.net).values():
        assert layer.lora_B is not None
        layer.lora_B.data.normal_(std=0.05, generator=make)
    assert (model.streamer is not None) == stream
    return model


def gradients(model: Model, layers: int) -> list[Tensor]:
    """The loss and its gradients, twice: the second forward pass begins where the first backward pass ended."""
    model.recompute(layers)
    model.net.train()
    found: list[Tensor] = []
    for _ in range(2):
        torch.manual_seed(7)
        loss = next_token_loss(model.hidden(IDS), IDS, model.logits)
        found += [loss.detach(), *torch.autograd.grad(loss, list(model.parameters_to_train().values()))]
    return found


@torch.no_grad()
def answers(model: Model) -> list[Tensor]:
    """Logits of a prompt and of a token after it, twice."""
    model.net.eval()
    found = []
    for _ in range(2):
        cache = model.new_cache()
        found += [model.logits(model.hidden(IDS, cache=cache)), model.logits(model.hidden(IDS[:, :1], cache=cache))]
    return found


def same(made: list[Tensor], wanted: list[Tensor]) -> bool:
    return len(made) == len(wanted) and all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))


@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
def test_every_bit_is_that_of_the_resident_model(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_checkpoint(family, tmp_path / "model", num_hidden_layers=3, layer_types=None)
    whole = opened(source, monkeypatch, stream=False)
    model = opened(source, monkeypatch, stream=True)
    for layers in (0, 1, 3):
        assert same(gradients(model, layers), gradients(whole, layers))
    assert same(answers(model), answers(whole))


@pytest.mark.parametrize("count", [1, 2, 4, 5])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_in_every_format_and_for_even_and_odd_numbers_of_layers(
    count: int, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_checkpoint("llama", tmp_path / "model", num_hidden_layers=count)
    whole = opened(source, monkeypatch, stream=False, weights=weights, dropout=0.2)
    model = opened(source, monkeypatch, stream=True, weights=weights, dropout=0.2)
    for layers in (0, count):
        assert same(gradients(model, layers), gradients(whole, layers))
    assert same(answers(model), answers(whole))
    for (name, one), other in zip(quant_linears(model.net).items(), quant_linears(whole.net).values(), strict=True):
        assert torch.equal(one.fuse(torch.float32).weight, other.fuse(torch.float32).weight), name


def test_two_layers_are_there_and_the_host_holds_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_checkpoint("llama", tmp_path / "model", num_hidden_layers=5)
    whole = opened(source, monkeypatch, stream=False)
    model = opened(source, monkeypatch, stream=True)
    streamer = model.streamer
    assert streamer is not None and len(streamer.host) == 5
    slots = {slot.untyped_storage().data_ptr() for slot in streamer.slots}
    homes = {buffer.untyped_storage().data_ptr() for buffer in streamer.host}
    for layer in quant_linears(model.net).values():
        for tensor in (layer.frozen.codes, layer.frozen.absmax):  # type: ignore[union-attr]
            assert tensor.untyped_storage().data_ptr() in slots
        assert layer.home.codes.untyped_storage().data_ptr() in homes  # type: ignore[union-attr]
    assert streamer.device_bytes == SLOTS * max(map(len, streamer.host))
    assert held_bytes(model.net) == held_bytes(whole.net)


@pytest.mark.parametrize("family", [*FAMILIES, "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_plan_knows_the_bytes(family: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_checkpoint(family, tmp_path / "model")
    planned = streaming(take_inventory(str(source)), weights)  # type: ignore[arg-type]
    monkeypatch.setattr(build, "settle_stream", lambda *_: (True, "as the test asks"))
    model = load_model(str(source), weights=weights)  # type: ignore[arg-type]
    streamer, embedding = model.streamer, model.net.get_input_embeddings()
    assert streamer is not None and planned is not None
    away = held_bytes(torch.nn.ModuleList(quant_linears(model.net).values()))
    tied = embedding.weight is model.net.get_output_embeddings().weight
    assert isinstance(embedding, FrozenEmbedding) == (not tied) or embedding.weight.dtype != model.dtype
    biases = sum(layer.bias.nbytes for layer in quant_linears(model.net).values() if layer.bias is not None)
    assert planned.away_bytes == sum(away.values()) - biases + (not tied) * embedding.weight.nbytes
    assert (planned.layers, planned.host_bytes, planned.slot_bytes) == (
        len(streamer.host), streamer.host_bytes, streamer.device_bytes,
    )  # fmt: skip


def test_a_step_copies_each_layer_once_forward_and_once_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_checkpoint("llama", tmp_path / "model", num_hidden_layers=6)
    model = opened(source, monkeypatch, stream=True)
    copied: list[int] = []
    bring = Streamer._bring
    monkeypatch.setattr(Streamer, "_bring", lambda self, index: (copied.append(index), bring(self, index))[1])
    gradients(model, 6)
    assert copied == [0, 1, 2, 3, 4, 5, 3, 2, 1, 0, 2, 3, 4, 5, 3, 2, 1, 0]  # ends and turns stay where they are
    copied.clear()
    answers(model)
    assert copied == [2, 3, 4, 5, 0] + [1, 2, 3, 4, 5, 0] * 3  # the next token's first layer comes ahead, too


def test_a_model_without_linear_layers_is_not_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_checkpoint("gpt2", tmp_path / "model")
    assert streaming(take_inventory(str(source)), "bf16") is None
    monkeypatch.setattr(build, "settle_stream", lambda *_: (True, "as the test asks"))
    with pytest.raises(ConfigError, match="can't be streamed"):
        load_model(str(source), weights="bf16")


def test_there_must_be_a_card_and_layers(tmp_path: Path) -> None:
    source = tiny_checkpoint("llama", tmp_path / "model")
    with pytest.raises(ConfigError, match="this is for a card"):
        load_model(str(source), device="cpu", stream="on")
    assert load_model(str(source), device="cpu", stream="auto").streamer is None
    with pytest.raises(ConfigError, match="can't be streamed"):
        stream_layers(torch.nn.Sequential(torch.nn.Linear(2, 2)), [], CPU)


def test_a_layer_outside_of_the_others_goes_to_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(tiny_checkpoint("llama", tmp_path / "model"), monkeypatch, stream=False)
    apart = QuantLinear(torch.ones(3, 2))
    model.net.add_module("apart", apart)
    stream_layers(model.net, decoder_layers(model.net), CPU)
    assert apart.frozen is apart.home


def test_a_host_without_room_is_told_before_anything_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(tiny_checkpoint("llama", tmp_path / "model"), monkeypatch, stream=False)
    machine = dataclasses.replace(this_machine(cuda=False), available_bytes=10_000)
    monkeypatch.setattr(stream, "this_machine", lambda cuda: machine)
    monkeypatch.setattr(stream, "_host_buffer", lambda _: pytest.fail("it was allocated"))
    with pytest.raises(DoesNotFit, match="no room for the layers"):
        stream_layers(model.net, model.layers(), CPU)


@pytest.mark.parametrize(("family", "free", "on", "why"), [
    ("llama", 10**9, False, "the card holds the weights"),
    ("llama", 10**5, True, "with all weights on the card"),
    ("gpt2", 10**5, False, "no linear layers"),
    ("qwen3_moe", 10**9, False, "what else it must hold is not known"),
    ("qwen3_moe", 10**5, True, "with all weights on the card"),
])  # fmt: skip
def test_auto_looks_at_what_is_free_on_the_card(
    family: str, free: int, on: bool, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_checkpoint(family, tmp_path / "model", num_hidden_layers=8, n_layer=8)
    for name, value in (
        ("mem_get_info", (free - 60_000, 0)),
        ("memory_reserved", 90_000),
        ("memory_allocated", 30_000),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    weights: Weights = "bf16" if family == "gpt2" else "nf4"
    found = stream.settle_stream("auto", torch.device("cuda", 0), source, weights, "bf16")
    assert found[0] is on and why in found[1]


def test_an_interrupted_copy_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_checkpoint("llama", tmp_path / "model", num_hidden_layers=4)
    model, whole = (opened(source, monkeypatch, stream=on) for on in (True, False))
    copy = Tensor.copy_

    def interrupted(self: Tensor, *arguments: Any, **named: Any) -> Tensor:
        if self.dtype == torch.uint8:
            raise KeyboardInterrupt
        return copy(self, *arguments, **named)

    with torch.no_grad():
        model.hidden(IDS)
        for layer in (0, 1, 2):
            streamer = model.streamer
            assert streamer is not None
            with monkeypatch.context() as patch:
                patch.setattr(Tensor, "copy_", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    streamer.need(layer)
                    streamer.need(3 - layer)
            assert torch.equal(model.hidden(IDS), whole.hidden(IDS))


# ---- streams and events, simulated -----------------------------------------------------------------------------------


class _Arrived(Event):
    """Writes down the copy that it is recorded behind."""

    def __init__(self, slot: int, streamer: Streamer) -> None:
        self.slot, self.streamer = slot, streamer

    def record(self, stream: Stream) -> None:
        stream.work.append(("copy", self.slot, self.streamer.coming))  # type: ignore[attr-defined]
        super().record(stream)


def _asked(count: int, passes: int) -> Iterator[tuple[int, bool]]:
    """The layers that some steps of training and then of decoding ask for, and whether gradients will be."""
    for _ in range(passes):
        yield from ((index, True) for index in range(count))
        yield from ((index, True) for index in reversed(range(count)))
    for _ in range(passes):
        yield from ((index, False) for index in range(count))


def _simulated(count: int, monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    """The work that a model of `count` layers asks of the stream that computes and of the one that copies."""
    compute, copies = simulate(monkeypatch), Stream()
    layers = [[QuantLinear(torch.full((2, 2), float(index)))] for index in range(count)]
    streamer = Streamer(layers, CPU)
    bring = streamer._bring

    def noted(index: int) -> None:
        streamer.coming = index  # type: ignore[attr-defined]
        bring(index)

    streamer._bring = noted  # type: ignore[method-assign]
    streamer._copies = copies  # type: ignore[assignment]
    streamer._arrived = [_Arrived(slot, streamer) for slot in range(SLOTS)]  # type: ignore[misc]
    for index, training in _asked(count, 3):
        with torch.set_grad_enabled(training):
            (layer,) = layers[index]
            for _ in range(2):  # the second product of a layer asks for nothing
                assert float(layer.frozen[0, 0]) == index  # type: ignore[index]
                compute.work.append(("read", index % SLOTS, index))
    return [compute, copies]


def _raced(streams: list[Stream], seed: int) -> bool:
    """Whether a read finds another layer than its own."""
    slots: list[int | None] = [None] * SLOTS
    wrong = []

    def act(kind: str, slot: int, layer: int) -> None:
        if kind == "copy":
            slots[slot] = layer
        elif kind == "read" and slots[slot] != layer:
            wrong.append(layer)

    advance(streams, seed, act)
    return bool(wrong)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_no_copy_races_a_read_in_whatever_order_the_streams_advance(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = _simulated(count, monkeypatch)
    assert not ever(_raced, streams)


@pytest.mark.parametrize("which", [0, 1])
def test_the_simulation_finds_what_is_not_waited_for(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = _simulated(4, monkeypatch)
    without_waits(streams[which])
    assert ever(_raced, streams)


def test_copies_run_ahead_of_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy waits for the products of the layer whose slot it takes, never for those of the layer before its own."""
    compute, copies = _simulated(4, monkeypatch)
    waited, copied = 0, 0
    for kind, what, value in copies.work:
        if kind == "wait":
            waited = value
            continue
        last = next((layer for kind, _, layer in reversed(compute.work[:waited]) if kind == "read"), None)
        assert last is None or last % SLOTS == what
        copied += 1
    assert copied > 20
