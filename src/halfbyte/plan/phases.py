"""The phases of a run: the parts of what each needs, the layers that are recomputed, and whether all of them fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from halfbyte.formats import QUANTISED, Weights, packed_bytes
from halfbyte.plan import activations
from halfbyte.plan.activations import RUNTIME_BYTES, ShapeInfo
from halfbyte.plan.answering import Scored, evaluation_bytes
from halfbyte.plan.budget import room_beside
from halfbyte.plan.disk import makes_copy
from halfbyte.plan.inventory import Inventory
from halfbyte.plan.weighing import gb

WAITING, LEAST_WAITING = 128_000_000, 32_000_000  # bytes that wait for the disk (checkpoint.stream, checkpoint.writer)
_CONVERTED = 12_000_000  # bytes of what is converted at once, with what it becomes (checkpoint.writer)


@dataclass(frozen=True)
class Phase:
    """The need of one phase in bytes. `parts` sum to `peak_bytes`; a None in them makes the peak None."""

    parts: dict[str, int | None]
    mapped_bytes: int | None
    seconds: float | None = None

    @property
    def peak_bytes(self) -> int | None:
        sizes = list(self.parts.values())
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def crowds_out(self, memory_bytes: int) -> bool:
        """Whether it fits into so much memory, but not beside its mapped weights, which are read from disk again."""
        peak = self.peak_bytes
        return peak is not None and peak <= memory_bytes < peak + (self.mapped_bytes or 0)

    def to_json(self) -> dict[str, Any]:
        return {"peak_bytes": self.peak_bytes, "mapped_bytes": self.mapped_bytes, "seconds": self.seconds,
                "parts": self.parts}  # fmt: skip


def _largest(inventory: Inventory) -> int | None:
    """The largest tensor in bytes, as the file or the built model holds it; None without the vocabulary's size."""
    if inventory.dims is not None and inventory.dims.vocabulary is None:
        return None
    built = max((2 * spec.count for spec in inventory.tensors), default=0)
    return max(built, inventory.largest_stored_bytes or 0)


def packing(inventory: Inventory, weights: Weights) -> Phase:
    """Beside the matrix that is being packed, those that are packed wait for the disk, up to a limit. What is copied as
    it is waits as a mapping, converted some MB at a time where its type changes; what is put together first (experts)
    is computed: then it is twice the largest."""
    if not makes_copy(inventory, weights):
        return Phase({}, 0)
    largest = _largest(inventory)
    return Phase({"runtime": RUNTIME_BYTES, "tensors": None if largest is None else _packing_bytes(
        inventory, weights, largest)}, largest)  # fmt: skip


def _packing_bytes(inventory: Inventory, weights: Weights, largest: int) -> int:
    computed = 2 * largest * any(spec.kind in ("expert", "other") for spec in inventory.tensors)
    if weights not in QUANTISED:
        return max(_CONVERTED, computed)
    sizes = [part.codes + part.constants for part in
             (packed_bytes(weights, *shape) for shape in inventory.quantised.values())]  # fmt: skip
    most = max(sizes, default=0)
    waiting = min(sum(sizes), max(most, min(WAITING, max(LEAST_WAITING, largest // 2))))
    return max(waiting + most + most // 8 * (weights == "nf4"), computed)  # an eighth: absmax in fp32


def training(info: ShapeInfo, batch: int, sequence: int, recompute: int, b: int) -> dict[str, int | None]:
    if info.dims is None:
        return {"activations": None, "logits": None}
    kept, logits = activations.training_bytes(info, batch, sequence, recompute, b)
    return {"activations": kept, "logits": logits if info.dims.vocabulary else None}


def evaluation(
    info: ShapeInfo, batch: int, sequence: int, b: int, kind: str, budget: int, scored: Scored | None, new: int
) -> dict[str, int | None]:
    if info.dims is None:
        return {"kv_cache": None, "activations": None, "logits": None}
    parts: dict[str, int | None] = {**evaluation_bytes(info, batch, sequence, b, kind, budget, scored, new)}
    return parts if info.dims.vocabulary else {**parts, "logits": None}


def settle_recompute(
    info: ShapeInfo, recompute: int | str, batch: int, sequence: int, memory_bytes: int | None, fixed: int, mapped: int,
    b: int,
) -> tuple[int, str, bool]:  # fmt: skip
    """The number of layers to recompute, why, and whether the mapped weights count as part of the memory."""
    known = info.dims is not None and info.dims.vocabulary is not None
    every = range(info.layers + 1) if known else ()
    needs = [sum(activations.training_bytes(info, batch, sequence, layers, b)) for layers in every]
    room = room_beside(memory_bytes, fixed, mapped, min(needs)) if needs and memory_bytes is not None else None
    left_out = f"; {room.reason}" if room is not None and room.reason else ""
    counts = room is not None and room.beside
    if isinstance(recompute, int):
        layers = min(recompute, info.layers)
        return layers, f"recomputation: {layers} of {info.layers} layers, as asked{left_out}", counts
    if info.offload:
        return info.layers, "recomputation: every layer, since least goes to the host then", counts
    if not known:
        return info.layers, "recomputation: every layer, the careful choice where the need is unknown", counts
    if room is None:
        return info.layers, "recomputation: every layer, as this system does not tell how much memory is free", counts
    layers = next((count for count, need in enumerate(needs) if need <= room.size), -1)
    if layers < 0:
        return info.layers, "recomputation: every layer, and even so the run does not fit", counts
    few = "none is needed" if layers == 0 else f"{layers} of {info.layers} layers, the fewest that fit"
    beside = " beside the mapped weights" if layers and counts and mapped else ""
    return layers, f"recomputation: {few}{beside}{left_out}", counts


def verdict(
    phases: dict[str, Phase], memory_bytes: int | None, unknown: dict[str, str], mapped_counts: bool
) -> tuple[bool | None, list[str]]:
    """Whether every phase fits, and a reason for each. A phase that fits but for the mapped weights reads them from
    disk again and again; where recomputing more layers would spare that (`mapped_counts`), tuning does not fit."""
    if memory_bytes is None:
        return None, ["fits: unknown, because this system does not tell how much memory is free; give --memory"]
    reasons: list[str] = []
    verdicts: list[bool | None] = []
    for name, phase in phases.items():
        peak, mapped = phase.peak_bytes, phase.mapped_bytes or 0
        if not phase.parts:
            reasons.append(f"{name}: nothing to do, the weights are used as they are stored")
            continue
        if peak is None:
            verdicts.append(None)
            reasons.append(f"{name}: {unknown.get('activations') or unknown.get('parameters') or 'unknown'}")
            continue
        strict = name == "tune" and mapped_counts
        need = peak + mapped if strict or peak + mapped <= memory_bytes else peak
        verdicts.append(need <= memory_bytes)
        words = f"{name} needs {gb(peak)}" + (f" and {gb(mapped)} of mapped weights" if mapped and need > peak else "")
        words += f", {gb(memory_bytes)} are there"
        words += ": fits" if need <= memory_bytes else f": does not fit, {gb(need - memory_bytes)} too much"
        if need <= memory_bytes and phase.crowds_out(memory_bytes):
            words += f", but the {gb(mapped)} of mapped weights do not stay in memory beside it: slow, read from disk"
        reasons.append(words)
    return (False if False in verdicts else None if None in verdicts else True), reasons
