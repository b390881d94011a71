"""A layer whose activations are computed again in the backward pass (Chen et al. 2016, arXiv:1604.06174).

Method: while the layer runs, every tensor that autograd wants to keep is replaced by an empty place. When the backward
pass asks for the first of them, the layer runs once more on its inputs, and the tensors are put in their places, each
until it has been used. The second run ends as soon as the last of them is there; a `QuantLinear` asks before its
product whether it is (`ends_with`), so the last product of a layer, a quarter of its work in most families, is not
done twice. Nor is attention, whose result is small for what it costs, with the product that follows it: these
results are kept from the first run (`once`). With an `Offloader` they and the layer's inputs lie on the host meanwhile.

Rejected: torch.utils.checkpoint, which ends the second run after that product, and asks nothing before it.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from halfbyte.errors import TrainingError
from halfbyte.model.offload import Group, Offloader, View, back


class _Enough(Exception):
    """All that was to be kept is there."""


class _Active(threading.local):
    """The second run that this thread is in."""

    run: _Recomputed | None = None
    first: _Recomputed | None = None  # or the first one


_active = _Active()


def ends_with(saved: int) -> bool:
    """Whether the layer that is being computed again needs no more than the next `saved` tensors that are kept."""
    run = _active.run
    return run is not None and run.wanted - run.collected <= saved


def once(work: Callable[[], tuple[Tensor, ...]], *, leads: bool = False) -> tuple[Tensor, ...]:
    """What `work` returns, which a layer that is computed again keeps from its first run until its second.

    `leads`: a product of the first of these tensors, if it comes next, shall be kept, too (`follows`).
    """
    run = _active.run
    made = run.kept_before() if run is not None else ()
    if not made:
        made = work()  # nothing is kept, or the layer has written over it
    if _active.first is not None:
        run = _active.first
        run.keep(made)
    if run is not None:
        run.leading = made[0].detach() if leads else None
    return made


def follows(tensor: Tensor) -> bool:
    """Whether `tensor` is, in whatever shape, the last result of `once` that leads."""
    run = _active.first or _active.run
    leading = None if run is None else run.leading
    return leading is not None and tensor.untyped_storage().data_ptr() == leading.untyped_storage().data_ptr()


class _Place:
    """Stands in autograd's graph for a tensor, which it holds from the second run until it is used."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self) -> None:
        self.tensor: Tensor | None = None


class _Recomputed:
    """One call of a layer: what it needs to be done again, and the places of the tensors that come out of that."""

    def __init__(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any], group: Group | None
    ) -> None:
        self.function, self.arguments, self.named, self.group = function, arguments, named, group
        self.places: list[weakref.ref[_Place]] = []
        self.collected = 0
        self.kept: deque[tuple[tuple[Tensor | View, ...], tuple[int, ...]]] = deque()
        self.leading: Tensor | None = None
        self.devices = sorted({a.get_device() for a in self._tensors() if a.is_cuda})
        self.random = torch.get_rng_state()
        self.random_of = [torch.cuda.get_rng_state(device) for device in self.devices]
        self.inputs = {id(a) for a in self._tensors()}
        if group is not None:
            self.inputs -= {id(a) for a in self._tensors() if a.requires_grad}
            self.arguments = tuple(_put(group, a) for a in arguments)
            self.named = {key: _put(group, a) for key, a in named.items()}

    def _tensors(self) -> list[Tensor]:
        return [a for a in (*self.arguments, *self.named.values()) if isinstance(a, Tensor)]

    def keep(self, made: tuple[Tensor, ...]) -> None:
        """Keep results of the first run for the second."""
        held = tuple(tensor.detach() for tensor in made)  # as they are, they hold the graph, which holds this
        versions = tuple(tensor._version for tensor in held)
        self.kept.append((held, versions))

    def send(self) -> None:
        """The first run is over: what was kept goes to the host, unless the layer has written over it."""
        if self.group is None:
            return
        for _ in range(len(self.kept)):
            sent = tuple(map(self.group.put, self.kept_before()))
            self.kept.append((sent, tuple(one._version if isinstance(one, Tensor) else 0 for one in sent)))
        self.group.close()

    def kept_before(self) -> tuple[Tensor, ...]:
        """The results that were kept next; () where there are none, or the layer has written over them."""
        kept, versions = self.kept.popleft() if self.kept else ((), ())
        for one, version in zip(kept, versions, strict=True):
            if isinstance(one, Tensor) and one._version != version:
                return ()
        return tuple(map(back, kept))

    @property
    def wanted(self) -> int:
        return len(self.places)

    def pack(self, tensor: Tensor) -> Tensor | _Place:
        place = _Place()
        self.places.append(weakref.ref(place))
        return tensor if self._is_there_anyway(tensor) else place

    def unpack(self, packed: Tensor | _Place) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        if packed.tensor is None:
            self._run_again()
        tensor, packed.tensor = packed.tensor, None
        if tensor is None:
            raise TrainingError("a layer kept fewer tensors when it was computed again: it is not deterministic",
                                do="keep all activations: tune.recompute=0")  # fmt: skip
        return tensor

    def _is_there_anyway(self, tensor: Tensor) -> bool:
        return id(tensor) in self.inputs or isinstance(tensor, torch.nn.Parameter)

    def _collect(self, tensor: Tensor) -> None:  # handing the tensor back would tie outputs to their own graph for ever
        place = self.places[self.collected]()
        if place is not None:
            place.tensor = tensor.detach()
        self.collected += 1
        if self.collected == self.wanted:
            raise _Enough

    def _run_again(self) -> None:
        self.collected = 0
        outer = _active.run, _active.first
        _active.run, _active.first = self, None
        arguments, named = [_apart(a) for a in self.arguments], {k: _apart(a) for k, a in self.named.items()}
        hooks = torch.autograd.graph.saved_tensors_hooks(self._collect, _never_asked)
        try:
            with torch.random.fork_rng(self.devices), torch.enable_grad(), hooks:
                torch.set_rng_state(self.random)
                for device, state in zip(self.devices, self.random_of, strict=True):
                    torch.cuda.set_rng_state(state, device)
                self.function(*arguments, **named)
        except _Enough:
            pass
        finally:
            _active.run, _active.first = outer
            self.leading = None
            self.kept.clear()  # what was not asked for would be taken for the first of another run


def recomputed(function: Callable[..., Any], *arguments: Any, offload: Offloader | None = None, **named: Any) -> Any:
    """`function(*arguments, **named)`, with its activations computed again in the backward pass; with `offload`, what
    that takes lies on the host meanwhile.

    The function must be deterministic but for torch's random numbers, whose states are set back.
    """
    if not torch.is_grad_enabled():
        return function(*arguments, **named)
    group = None if offload is None else offload.group([function, *arguments, *named.values()])
    run = _Recomputed(function, arguments, named, group)
    outer = _active.run, _active.first
    _active.run, _active.first = None, run  # what is kept from here on goes to this run, not to the one around it
    try:
        with torch.autograd.graph.saved_tensors_hooks(run.pack, run.unpack):
            return function(*arguments, **named)
    finally:
        run.send()
        _active.run, _active.first = outer


def _put(group: Group, argument: Any) -> Any:
    """What stands for an argument until the second run."""
    sent = group.put(argument) if isinstance(argument, Tensor) and argument.requires_grad else None
    return sent if isinstance(sent, View) else argument


def _never_asked(packed: None) -> Tensor:
    raise AssertionError("the graph of the second run has no backward pass")


def _apart(argument: Any) -> Any:
    """A tensor cut from the graph that it came from; anything else as it is."""
    if isinstance(argument, View):
        return argument.take().requires_grad_()
    return argument.detach().requires_grad_(argument.requires_grad) if isinstance(argument, Tensor) else argument
