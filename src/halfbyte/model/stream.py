"""A base model that is larger than the card: its layers stay in the host's memory and come to the card ahead of use.

Method: all tensors of a decoder layer's linear weights stand behind each other in one buffer of the host, pinned so
that the card reads it by itself, and the card has two slots, each as large as the largest layer. Layer i comes into
slot i % 2. A `QuantLinear` asks for its layer before it multiplies (`need`), in the backward pass again; the first to
ask waits for the copy, and begins that of the layer that is next in the direction of travel, on a stream of its own,
as soon as all that was asked of the slot's old content is done. So a pass costs the longer of computing and copying a
layer, and two layers of the base are on the card at a time. The forward pass ends on the layer that the backward pass
begins with, and back: nothing is copied there.

The matrices of a layer are views in its slot, made once, so the same kernels run on the same bits as if all were there.
Embedding, head, norms, biases and the adapter stay on the card; so do weights of a layer that are no linear layers (a
mixture's fused experts).

Trade-off: of a number of layers that is odd, the first and the last share a slot, and a pass without a backward pass
waits for the first one.

Rejected: weights that the card reads from the host in place, because each product would read them again; moving modules
by hooks of their own, because a hook does not see the backward pass of a layer that is computed again.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte.config import RunConfig
from halfbyte.errors import ConfigError, DoesNotFit
from halfbyte.formats import Weights, aligned
from halfbyte.kernels.packed import Int8Weight
from halfbyte.kernels.product.reference import FrozenWeight
from halfbyte.model.linear import QuantLinear
from halfbyte.plan.devices import CONTEXT_BYTES, Device
from halfbyte.plan.inventory import take_inventory
from halfbyte.plan.ladder import plan_model
from halfbyte.plan.machine import this_machine
from halfbyte.plan.streaming import SLOTS, for_a_card, needs_streaming, no_card, no_layers


class Streamer:
    """The linear layers of each of a model's layers, of which two are on `device` at a time.

    Raises ConfigError where there are no layers, or where the host's memory can't be pinned.
    """

    def __init__(self, layers: Sequence[Sequence[QuantLinear]], device: torch.device) -> None:
        if not layers:
            raise no_layers()
        self.device = device
        cuda = device.type == "cuda"
        self.host: list[Tensor] = []
        self._copies = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        if cuda:
            weakref.finalize(self, _unpin, self.host, self._copies).atexit = False
        for layer in layers:
            self.host.append(_host_buffer(layer))
            if cuda:
                _pin(self.host)
        size = max(len(buffer) for buffer in self.host)
        self.slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(SLOTS)]
        self._arrived = [torch.cuda.Event() if cuda else None for _ in range(SLOTS)]  # type: ignore[no-untyped-call]
        self._held: list[int | None] = [None] * SLOTS  # the layer in each slot, or on its way there
        self._current: int | None = None  # the layer that was needed last; it stays in its slot until another is
        for index, layer in enumerate(layers):
            _settle(layer, self.host[index], self.slots[index % SLOTS], partial(self.need, index))

    @property
    def host_bytes(self) -> int:
        return sum(map(len, self.host))

    @property
    def device_bytes(self) -> int:
        return sum(map(len, self.slots))

    def need(self, index: int) -> None:
        """What is asked for from here on, in the current stream, finds layer `index` in its slot."""
        before, slot = self._current, index % SLOTS
        if index == before and self._held[slot] == index:
            return
        if self._held[slot] != index:
            self._bring(index)
        arrived = self._arrived[slot]
        if arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(arrived)
        self._current = index
        ahead = self._next(index, before)
        if ahead is not None and ahead % SLOTS != slot and self._held[ahead % SLOTS] != ahead:
            self._bring(ahead)

    def _next(self, index: int, before: int | None) -> int | None:
        """The layer that will be needed after `index`, which was needed after `before`."""
        last = len(self.host) - 1
        if index == last and not torch.is_grad_enabled():
            return 0
        if index == 0 or before is None or index > before:
            return min(index + 1, last)
        return index - 1

    def _bring(self, index: int) -> None:
        """Begin to copy layer `index` into its slot, once all that was asked of what lies there is done."""
        slot, source = index % SLOTS, self.host[index]
        target = self.slots[slot][: len(source)]
        self._held[slot] = None  # whoever interrupts what follows finds no layer that is not whole
        arrived = self._arrived[slot]
        if self._copies is None or arrived is None:
            target.copy_(source)
        else:
            self._copies.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._copies):
                target.copy_(source, non_blocking=True)
                arrived.record(self._copies)
        self._held[slot] = index


def require_card(config: RunConfig, device: torch.device) -> None:
    """Raises ConfigError for options of a run that ask for what only a card has, the host's memory beside its own."""
    option = for_a_card(config.stream, config.tune.offload_activations)
    if option is not None and device.type != "cuda":
        raise no_card(option, f"device {device}")


def settle_stream(asked: str, device: torch.device, path: Path, weights: Weights, compute: str) -> tuple[bool, str]:
    """Whether the model in `path` is streamed to `device`, and why. `auto`: where what is planned for it and for
    answers to some prompts is more than what is free there. Raises ConfigError where there is no card."""
    if device.type != "cuda":
        if asked == "on":
            raise no_card("stream", f"device {device}")
        return False, ""
    if asked != "auto":
        return asked == "on", "as asked"
    inventory = take_inventory(str(path))
    if not inventory.linears:
        return False, "the model has no linear layers that could be streamed"
    free = int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    free -= torch.cuda.memory_allocated(device)  # what torch holds and does not use is free, too
    card = Device("cuda", str(device), free + CONTEXT_BYTES, compute == "bf16", "")  # the context is there by now
    phases = plan_model(str(path), weights=weights, compute=compute, device=card, stream="off").phases
    return needs_streaming(inventory, weights, phases["evaluate"], phases["open"], card.memory_bytes or 0)


def _host_has_room(layers: Sequence[Sequence[QuantLinear]]) -> None:
    """Raises DoesNotFit where the host could not hold them: it would end this process when their pages are written."""
    need = sum(aligned(part.nbytes) for layer in layers for linear in layer for part in _parts(linear.home).values())
    free = this_machine(cuda=False).available_bytes
    if free is not None and need > free:
        raise DoesNotFit("the host has no room for the layers that are streamed to the card", where="stream",
                         found=f"{need / 1e9:.2f} GB to pin, {free / 1e9:.2f} GB free",
                         do="close other programs, or take a smaller model or format")  # fmt: skip


def stream_layers(net: nn.Module, layers: Iterable[nn.Module], device: torch.device) -> Streamer:
    """Let the linear layers within each of `layers` (modules of `net`), whose weights lie on the host, be streamed to
    `device`; those that stand in none of them go there. Raises ConfigError, and DoesNotFit (nothing is allocated)."""
    taken: set[QuantLinear] = set()
    found: list[list[QuantLinear]] = []
    for layer in layers:
        own = [module for module in layer.modules() if isinstance(module, QuantLinear) and module not in taken]
        taken.update(own)
        found += [own] if own else []
    for module in net.modules():
        if isinstance(module, QuantLinear) and module not in taken:
            module.settle(module.home.to(device))
    _host_has_room(found)
    return Streamer(found, device)


def _parts(weight: FrozenWeight) -> dict[str, Tensor]:
    """The tensors of a weight by their names."""
    if isinstance(weight, Tensor):
        return {"dense": weight}
    if isinstance(weight, Int8Weight):
        return {"codes": weight.codes, "scale": weight.scale}
    nested = {} if weight.nested_absmax is None else {"nested_absmax": weight.nested_absmax}
    return {"codes": weight.codes, "absmax": weight.absmax, **nested}


def _host_buffer(layer: Sequence[QuantLinear]) -> Tensor:
    """The weights of a layer behind each other, as uint8, in pages that hold nothing else: a page is pinned once."""
    tensors = [tensor for linear in layer for tensor in _parts(linear.home).values()]
    size = sum(aligned(tensor.nbytes) for tensor in tensors)
    room = torch.empty(mmap.PAGESIZE * (-(-size // mmap.PAGESIZE) + 1), dtype=torch.uint8)
    before = -room.data_ptr() % mmap.PAGESIZE
    buffer = room[before : before + size]
    first = 0
    for tensor in tensors:
        _view(buffer, first, tensor).copy_(tensor)
        first += aligned(tensor.nbytes)
    return buffer


def _settle(layer: Sequence[QuantLinear], host: Tensor, slot: Tensor, bring: Callable[[], None]) -> None:
    """Let the weights of a layer be views in `host`, where they are at home, and in `slot`, where they are used."""
    first = 0
    for linear in layer:
        at_home, in_use = {}, {}
        for name, tensor in _parts(linear.home).items():
            at_home[name], in_use[name] = _view(host, first, tensor), _view(slot, first, tensor)
            first += aligned(tensor.nbytes)
        linear.settle(_with(linear.home, at_home), _with(linear.home, in_use), bring)


def _view(buffer: Tensor, first: int, like: Tensor) -> Tensor:
    return buffer[first : first + like.nbytes].view(like.dtype).view(like.shape)


def _with(weight: FrozenWeight, parts: dict[str, Tensor]) -> FrozenWeight:
    """`weight` made of other tensors."""
    if isinstance(weight, Tensor):
        return parts["dense"]
    changed: dict[str, Any] = dict(parts)
    return replace(weight, **changed)


def _pin(buffers: list[Tensor]) -> None:
    """Pin the memory of the last of `buffers`; where that fails it is taken out of them.

    By registering it: what torch allocates as pinned memory is as large as the next power of two.
    """
    runtime, buffer = torch.cuda.cudart(), buffers[-1]  # type: ignore[no-untyped-call]
    fault = int(runtime.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0))
    if fault:
        buffers.pop()
        raise ConfigError("the host's memory can't be pinned for the card", where="stream",
                          found=f"CUDA's error {fault} for {buffer.nbytes:,} bytes",
                          do="free memory of the host, raise its limit of locked memory, or stream: off")  # fmt: skip


def _unpin(buffers: Sequence[Tensor], copies: Any) -> None:
    """Give the pages of `buffers` free, and before that the slots, into which the last copy may be on its way."""
    copies.synchronize()
    for buffer in buffers:
        torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr())  # type: ignore[no-untyped-call]
