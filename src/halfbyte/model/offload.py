"""What layers keep for the backward pass, in the host's memory instead of the card's (`tune.offload_activations`).

Method: each tensor that a layer keeps (of one that is computed again its input and what attention left) is copied to
pinned memory of the host as soon as it is kept, on a stream of its own, beside the products, and leaves the card when
the layer after it is done. In the backward pass the first tensor that is asked for brings all of its layer, unless they
are there or on their way, and then begins to bring those of the layer before. So two layers' are on the card at a time,
and a pass costs the longer of computing and copying a layer; those of the last one never leave.

What goes is the memory of a tensor, once, however many operations keep it or views of it. What all layers share
(positions' angles, a mask) stays, and so do tensors below `LEAST` bytes, for which a copy costs more than it saves.

Memory is safe without the allocator's help: all of it on the card belongs to the stream that computes; it is let go
only once that stream waits for the copy, and copies wait for all that was asked for before them.

Rejected: torch.autograd.graph.save_on_cpu, which waits for each copy, and takes a tensor that three products share to
the host three times; `record_stream`, with which a host that runs ahead of the card gets none of the memory back.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

LEAST = 1 << 16  # bytes


class Offloader:
    """Takes tensors from `device` to the host and back, but what `net` holds anyway (a mixture's experts). On the CPU
    (in tests) the same steps run one by one."""

    def __init__(self, device: torch.device, net: nn.Module | None = None, least: int | None = None) -> None:
        self.device, self.least = device, LEAST if least is None else least
        self.held = set() if net is None else {_place(tensor) for tensor in (*net.parameters(), *net.buffers())}
        cuda = device.type == "cuda"
        self._copies = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._last: Callable[[], Group | None] = lambda: None

    def group(self, arguments: Iterable[Any]) -> Group:
        """For the tensors that a call with `arguments` keeps; it comes after the group that was asked for last."""
        made = Group(self, self._last(), arguments)
        self._last = weakref.ref(made)
        return made

    def to_host(self, memory: Tensor) -> Tensor:
        """A copy of `memory`, uint8 [bytes], on the host that is being made."""
        host = torch.empty(len(memory), dtype=torch.uint8, pin_memory=self._copies is not None)
        with self.beside():
            return host.copy_(memory, non_blocking=True)

    def to_device(self, host: Tensor) -> Tensor:
        """A copy of `host` on the device that is being made."""
        there = torch.empty(len(host), dtype=torch.uint8, device=self.device)
        with self.beside():
            return there.copy_(host, non_blocking=True)

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """What is asked for in here comes after all that was asked for so far, and nothing waits for it."""
        if self._copies is None:
            yield
            return
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            yield

    def mark(self) -> Any:
        """All copies so far, for `wait`."""
        return None if self._copies is None else self._copies.record_event()

    def wait(self, mark: Any) -> None:
        """Let what is asked for from here on, in the current stream, come after the copies before `mark`."""
        if mark is not None:
            torch.cuda.current_stream(self.device).wait_event(mark)


class Group:
    """The tensors that one call of a layer keeps, in the order in which it keeps them."""

    def __init__(self, offloader: Offloader, before: Group | None, arguments: Iterable[Any]) -> None:
        self.offloader = offloader
        self._before: Callable[[], Group | None] = (lambda: None) if before is None else weakref.ref(before)
        self._away: dict[int, Away] = {}  # by where it lay on the device
        self._stays = {_place(tensor) for tensor in _tensors(arguments) if not tensor.requires_grad} | offloader.held
        self._mark: Any = None  # of the last copies, in either direction
        self._open = True

    def __del__(self) -> None:
        """A graph that goes before its backward pass gives memory back into which a copy may be on its way."""
        with contextlib.suppress(Exception):  # at the program's end
            self.offloader.wait(self._mark)

    def put(self, tensor: Tensor) -> Tensor | View:
        """What is kept instead of `tensor`: itself where it stays. What is kept is not written over by anybody."""
        storage, place = tensor.untyped_storage(), _place(tensor)
        if place in self._stays or storage.nbytes() < self.offloader.least:
            return tensor.detach()  # an operation that keeps its own result, as it is, would hold itself for ever
        if place not in self._away:  # it is there until the call is over, so nothing else comes to lie in its place
            memory = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            self._away[place] = Away(memory, self.offloader.to_host(memory))
        self._away[place].uses += 1
        return View(self, self._away[place], tensor.dtype, int(tensor.storage_offset()), tensor.shape, tensor.stride())

    def close(self) -> None:
        """The call is over: nothing more is kept, and what the one before keeps leaves."""
        self._mark, self._open = self.offloader.mark(), False
        before = self._before()
        if before is not None and not before._open:  # else this call is part of it
            before.leave()

    def leave(self) -> None:
        self.offloader.wait(self._mark)
        for away in self._away.values():
            away.there = None

    def bring(self) -> None:
        """Begin to copy to the device what will be used and is not there."""
        missing = [away for away in self._away.values() if away.there is None and away.left]
        for away in missing:
            away.there = self.offloader.to_device(away.host)
        if missing:
            self._mark = self.offloader.mark()

    def need(self) -> None:
        """What is asked for from here on finds all of them on the device; those of the call before follow."""
        self.bring()
        self.offloader.wait(self._mark)
        before = self._before()
        if before is not None:
            before.bring()


class Away:
    """Memory (uint8 [bytes]) that lies on the host, and for a while on the device, where `uses` tensors are in it."""

    def __init__(self, there: Tensor, host: Tensor) -> None:
        self.there: Tensor | None = there
        self.host = host
        self.uses = self._taken = 0

    @property
    def left(self) -> int:
        """How many of them will still be asked for."""
        return self.uses - self._taken

    def take(self, group: Group) -> Tensor:
        """The memory on the device, for work in the current stream; it is one of `group`."""
        if not self.left:  # the graph is gone through once more
            self._taken = 0
        group.need()
        memory = self.there
        assert memory is not None
        self._taken += 1
        if not self.left:
            self.there = None
        return memory


class View(NamedTuple):
    """A tensor in memory that is away. Views hold the group, and nothing else does, so it goes with the graph."""

    group: Group
    memory: Away
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    def take(self) -> Tensor:
        """The tensor on the device, for work in the current stream."""
        memory = self.memory.take(self.group)
        empty = torch.empty(0, dtype=self.dtype, device=memory.device)
        return empty.set_(memory.untyped_storage(), self.offset, self.shape, self.stride)


def offloaded(function: Callable[..., Any], *arguments: Any, offload: Offloader, **named: Any) -> Any:
    """`function(*arguments, **named)`; what autograd keeps of it lies on the host until the backward pass."""
    if not torch.is_grad_enabled():
        return function(*arguments, **named)
    group = offload.group([function, *arguments, *named.values()])
    try:
        with torch.autograd.graph.saved_tensors_hooks(group.put, back):
            return function(*arguments, **named)
    finally:
        group.close()


def back(kept: Tensor | View) -> Tensor:
    """The tensor that `Group.put` was given."""
    return kept.take() if isinstance(kept, View) else kept


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors in `arguments`, those of tuples and of partial functions, too."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (tuple, list)):
            yield from _tensors(argument)
        elif isinstance(argument, functools.partial):
            yield from _tensors([*argument.args, *argument.keywords.values()])


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
