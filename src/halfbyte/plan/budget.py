"""How many items at once and how many layers recomputed: the automatic choice, and what of the memory it may take.

The memory that a run may take holds the mapped weights, too, as whoever names it means it: "8GB" is what the system
sees. It is the same with what is free, since the system counts the pages of mapped files as free. Weights that do not
stay in memory can be read from disk again in every pass, so where they leave no room even for one item with every layer
recomputed they are left out of the sum, and the reason says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from halfbyte.plan.activations import ShapeInfo, learned_tokens, training_bytes
from halfbyte.plan.scratch import narrow_bytes, scratch_bytes

MOST_ITEMS = 16  # items at once; more gain nothing
MOST_TOKENS = 4096  # tokens at once: from there on the products run at full speed, more gain nothing on a CPU


@dataclass(frozen=True)
class Choice:
    """An automatic choice and the reason for it. `fits` is None where the need is unknown."""

    micro_batch: int  # items at once
    recompute: int  # the first so many layers compute their activations again in the backward pass
    reason: str
    fits: bool | None = True

    def __str__(self) -> str:
        return f"micro-batch {self.micro_batch}, {self.recompute} layers recomputed: {self.reason}"


@dataclass(frozen=True)
class Room:
    """What is left for activations and loss; `beside` says whether the mapped weights have their place, too."""

    size: int
    beside: bool
    reason: str = ""


def room_beside(memory_bytes: int, fixed_bytes: int, mapped_bytes: int, least_bytes: int) -> Room:
    """The room in `memory_bytes` beside what is spoken for and the mapped weights, if it holds `least_bytes`."""
    beside = memory_bytes - fixed_bytes - mapped_bytes
    without = memory_bytes - fixed_bytes
    if beside >= least_bytes:
        return Room(beside, True)
    if without < least_bytes:
        return Room(without, False)
    return Room(
        without,
        False,
        f"the {amount(mapped_bytes)} of mapped weights are not counted: even with every layer recomputed they do not "
        f"fit into {amount(memory_bytes)} beside the rest, so they are read from disk again in every pass",
    )


def spoken_for(
    info: ShapeInfo,
    matrices: Iterable[tuple[int, int]],
    *,
    adapter: Sequence[int],
    optimiser_bytes: int,
    step_items: int,
    longest: int,
    packed: bool,
    dtype_bytes: int = 2,
    there_bytes: int = 0,
) -> int:
    """Bytes of a training that are taken whatever is chosen: the adapter with its gradients, AdamW's moments and the
    narrow copy, the buffers that all layers share, and `there_bytes` of what stands there before it begins.

    `adapter` are the numbers of its matrices, A and B in turn, `matrices` [out, in] the linear layers, `packed` says
    whether they are quantised; an optimiser step has `step_items` items, of `longest` tokens at most.
    """
    own = 8 * sum(adapter) + narrow_bytes(adapter, dtype_bytes) + optimiser_bytes
    learned = learned_tokens(info, step_items, longest)
    return (
        own + there_bytes + scratch_bytes(info, matrices, step_items * longest, packed, dtype_bytes, positions=learned)
    )


def choose(
    info: ShapeInfo,
    *,
    batch: int,
    longest_tokens: int,
    memory_bytes: int,
    fixed_bytes: int = 0,
    mapped_bytes: int = 0,
    dtype_bytes: int = 2,
    micro_batch: int | None = None,
    recompute: int | None = None,
) -> Choice:
    """How many items to compute at once, and how many layers to recompute; what is not None was asked for.

    `memory_bytes` is what the run may take, `fixed_bytes` what of it is spoken for (adapter, gradients, optimiser,
    scratch), `mapped_bytes` the weights. Recomputation costs up to a third more, so it comes last: first the largest
    micro-batch that does without, then, for one item at a time, as few layers as will fit. Where activations go to
    the host it comes first: least goes there then. A family that is not modelled gets the most careful choice.
    """
    if info.dims is None:
        items, layers = micro_batch or 1, info.layers if recompute is None else recompute
        careful = "one item at a time, every layer recomputed: " if micro_batch is None and recompute is None else ""
        return Choice(items, layers, f"{careful}the need is {info.unknown}", None)
    layers, tokens = info.dims.layers, longest_tokens
    sent = info.offload and recompute is None
    recompute = layers if sent else recompute

    def need(items: int, count: int) -> int:
        return sum(training_bytes(info, items, tokens, min(count, layers), dtype_bytes))

    fewest = micro_batch or 1
    least = min(need(fewest, count) for count in range(layers + 1))
    room = room_beside(memory_bytes, fixed_bytes, mapped_bytes, least)
    most = max(1, min(batch, MOST_ITEMS, MOST_TOKENS // max(1, tokens)))
    tries = [(items, recompute or 0) for items in _sizes(batch, most)] if micro_batch is None else []
    tries += [(fewest, count) for count in (range(layers + 1) if recompute is None else [recompute])]
    found = next(((items, count) for items, count in tries if need(items, count) <= room.size), None)
    items, count = found or tries[-1]
    why = _reason(need, items, count, room, layers, _even(batch, most), bool(found), recompute is None)
    why += "; every layer is recomputed, since least goes to the host then" if sent else ""
    return Choice(items, count, why, found is not None)


def _reason(
    need: Callable[[int, int], int], items: int, count: int, room: Room, layers: int, most: int, fits: bool, free: bool
) -> str:
    there, size = amount(room.size), "one item" if items == 1 else f"{items} items at once"
    if not fits:
        least = "every layer" if count >= layers else f"{count} of {layers} layers"
        why = f"does not fit: {size} with {least} recomputed needs {amount(need(items, count))} "
        why += f"for activations and loss, {there} are there"
    elif count and free:
        why = f"{size} without recomputation needs {amount(need(items, 0))} for activations and loss, "
        why += f"{there} are there; recomputing {count} of {layers} layers fits"
    else:
        limit = "more at once would gain nothing" if items >= most else "more would not fit"
        why = f"{amount(need(items, count))} of {there} for activations and loss; {limit}"
    return f"{why}; {room.reason}" if room.reason else why


def _sizes(batch: int, most: int) -> list[int]:
    """The even micro-batches up to `most`, largest first."""
    return sorted({_even(batch, items) for items in range(1, most + 1)}, reverse=True)


def _even(batch: int, items: int) -> int:
    """The smallest micro-batch that takes no more passes over `batch` items than `items` does."""
    return -(-batch // -(-batch // items))


def enough(size: int) -> str:
    """A size that holds `size`, as it may be asked for: rounded up to whole MB."""
    return f"{-(-max(size, 0) // 10**6)}MB"


def amount(size: int) -> str:
    """A size as reasons give it."""
    size = max(size, 0)
    for unit, scale in (("EB", 10**18), ("PB", 10**15), ("TB", 10**12)):
        if size >= 10 * scale:
            return f"{size / scale:,.2f} {unit}"
    return f"{size / 1e9:,.2f} GB" if size >= 10**8 else f"{size / 1e6:.2f} MB"
