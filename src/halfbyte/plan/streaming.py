"""A base that is larger than the card: what of it stays there, what the host holds, and when streaming it pays.

`model/stream.py` keeps the linear weights of the layers in the host's memory, a buffer a layer, and two slots on the
card, each as large as the largest of these. An embedding that is no head stays in the file: a pass reads some of its
rows. All of it follows from shapes, to the byte.

A pass brings every layer once, forward and backward, while the layer before it is computed; it costs nothing but
memory of the host where computing a layer takes at least as long. So a layer of n weights in s bytes wants t tokens at
once with 2 n t / (operations a second) >= s / (bytes a second of the link).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from halfbyte.errors import ConfigError
from halfbyte.formats import QUANTISED, Weights, aligned, packed_bytes
from halfbyte.plan.activations import ShapeInfo, offloaded_bytes
from halfbyte.plan.devices import CONTEXT_BYTES
from halfbyte.plan.inventory import Inventory
from halfbyte.plan.phases import Phase
from halfbyte.plan.weighing import gb

SLOTS = 2
LINK = 25_000_000_000  # bytes a second to the card: PCIe 4.0 x16 as it is reached with pinned memory; assumed
_LAYER = re.compile(r"(?:.*?\.)?\d+(?=\.)")  # of a module's name, up to the first number


@dataclass(frozen=True)
class Streaming:
    """Bytes of the weights that are streamed, `layers` times some of all `weights`: `away_bytes` is what of the model
    is not on the card, `host_bytes` what lies in the host's buffers, `slot_bytes` the card's slots together."""

    layers: int
    weights: int
    away_bytes: int
    host_bytes: int
    slot_bytes: int

    @property
    def seconds(self) -> float:
        """Of the link for one pass."""
        return self.host_bytes / LINK

    @property
    def tokens_per_tflops(self) -> float:
        """Tokens that a micro-batch needs for each 10^12 operations a second of the card, so that products take as
        long as the link."""
        return self.seconds * 1e12 / (2 * self.weights)


def streaming(inventory: Inventory, weights: Weights) -> Streaming | None:
    """What streaming a model in the format `weights` means; None where it has no layers that can be told apart."""
    sizes: dict[str, int] = {}
    stored = numbers = 0
    for name, (rows, columns) in inventory.linears.items():
        found = _LAYER.match(name)
        if found is None:
            continue
        parts = _parts(weights, rows, columns, packed=name in inventory.quantised)
        sizes[found[0]] = sizes.get(found[0], 0) + sum(map(aligned, parts))
        stored, numbers = stored + sum(parts), numbers + rows * columns
    if not sizes:
        return None
    if any(spec.kind == "head" for spec in inventory.tensors):
        stored += _dense(weights) * max(
            (spec.count for spec in inventory.tensors if spec.kind == "embedding"), default=0
        )
    return Streaming(len(sizes), numbers, stored, sum(sizes.values()), SLOTS * max(sizes.values()))


def _dense(weights: Weights) -> int:
    """Bytes of a number that is not packed."""
    return 4 if weights == "fp32" else 2


def _parts(weights: Weights, rows: int, columns: int, packed: bool) -> list[int]:
    """Bytes of each tensor of a matrix."""
    if weights not in QUANTISED or not packed:
        return [_dense(weights) * rows * columns]
    size = packed_bytes(weights, rows, columns)
    return [part for part in (size.codes, size.absmax, size.nested_absmax) if part]


def for_a_card(stream: str, offload: bool) -> str | None:
    """The option that asks for what only a card has: the host's memory beside its own."""
    return "stream" if stream == "on" else "tune.offload_activations" if offload else None


def no_card(option: str, found: str) -> ConfigError:
    do = f"leave {option} away, or run on a card: device: cuda (halfbyte plan takes device: 8GB, too)"
    return ConfigError("this is for a card, whose memory is not the host's", where=option, found=found, do=do)


def no_layers() -> ConfigError:
    return ConfigError("this architecture's layers can't be streamed", where="stream",
                       found="no layers of linear layers in it", do="use stream: off")  # fmt: skip


def needs_streaming(
    inventory: Inventory, weights: Weights, work: Phase, opened: Phase, memory_bytes: int
) -> tuple[bool, str]:
    """Whether the weights are streamed to a card with `memory_bytes`, and why; `work` is what it is to do and `opened`
    the model alone, both planned with all weights on the card."""
    need, made = work.peak_bytes, streaming(inventory, weights)
    least = opened.peak_bytes if need is None else need
    if least is None:
        return False, "how much the card must hold is not known"
    if least <= memory_bytes:
        return False, "the card holds the weights" + (", and what else it must hold is not known" * (need is None))
    if made is None or made.away_bytes <= made.slot_bytes:
        return False, "the card does not hold the weights, but streaming would not spare memory"
    return True, f"with all weights on the card {gb(least)} would be needed, {gb(memory_bytes)} are there"


def opened_on_card(weights: int | None, streamed: Streaming | None) -> dict[str, int | None]:
    """What a card holds of an opened base model of `weights` bytes, by part; `streamed`: what is streamed of it."""
    if streamed is None:
        return {"context": CONTEXT_BYTES, "weights": weights}
    there = None if weights is None else weights - streamed.away_bytes
    return {"context": CONTEXT_BYTES, "weights": there, "slots": streamed.slot_bytes}


def in_words(made: Streaming) -> str:
    """What it costs, and from where on nothing."""
    return (f"stream: {made.layers} layers, {gb(made.host_bytes)} in pinned memory of the host, come to the card one "
            f"ahead of use, forward and backward: {1e3 * made.seconds:,.0f} ms a pass at {LINK / 1e9:.0f} GB/s "
            f"(assumed), which the products hide from about {100 * made.tokens_per_tflops:,.0f} tokens at once on, "
            "where the card multiplies at 100 TFLOP/s")  # fmt: skip


def offload_words(info: ShapeInfo, batch: int, tokens: int, recompute: int, b: int) -> list[str]:
    """The same of activations that lie on the host, if they do."""
    if not info.offload or info.dims is None:
        return []
    size = offloaded_bytes(info, batch, tokens, recompute, b)
    return [f"offload: {gb(size)} of activations lie in pinned memory of the host, {2e3 * size / LINK:,.0f} ms there "
            f"and back at {LINK / 1e9:.0f} GB/s (assumed), beside the products"]  # fmt: skip
