"""Quantising a matrix of the host on a card, in parts: the memory of the card bounds the part, not the matrix.

Two staging buffers in pinned memory, two on the card, two streams. While the card quantises part i on one stream, part
i + 1 is on its way on the other, and the host reads part i + 2 (from the mapped file) into the buffer that part i has
left. Results come back part by part.

A part is a whole number of blocks, so that codes and absmax values are those of the whole matrix to the bit. What needs
all of them, double quantisation with its mean, happens on the host, on a 64th of the numbers.

On the CPU (in tests) the same steps run one after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from halfbyte import kernels
from halfbyte.errors import CheckpointError
from halfbyte.formats import BLOCKSIZE, Weights

PART = 1 << 24  # weights: 32 MB of bf16, which a bus of 25 GB/s brings in 1.3 ms


class Card:
    """Quantises on `device`; holds the buffers, which grow to the widest type that came by."""

    def __init__(self, device: torch.device, part: int = PART) -> None:
        self._part, cuda = part, device.type == "cuda"
        work, upload = (torch.cuda.Stream(device) if cuda else None for _ in range(2))  # type: ignore[no-untyped-call]
        self._stream = work
        self._slots = (_Slot(device, upload), _Slot(device, upload))

    def quantise(self, weight: Tensor, weights: Weights, *, name: str = "") -> kernels.PackedWeight:
        """As `kernels.quantise` of a matrix on the host, to the bit; the result lies on the host."""
        if weight.ndim != 2 or weight.numel() == 0 or weight.dtype not in kernels.DTYPES:
            return kernels.quantise(weight, weights, name=name)  # which says what is wrong
        weight = weight.detach().contiguous()
        kind: Weights = "int8" if weights == "int8" else "nf4-single"
        try:
            made = self._each(self._parts(weight, kind), kind)
        except CheckpointError:
            kernels.quantise(weight, weights, name=name)  # says where in the whole matrix the fault is
            raise
        shape = (weight.shape[0], weight.shape[1])
        if weights == "int8":
            rows = [one for one in made if isinstance(one, kernels.Int8Weight)]
            return kernels.Int8Weight(
                shape, torch.cat([one.codes for one in rows]), torch.cat([one.scale for one in rows])
            )
        runs = [one for one in made if isinstance(one, kernels.NF4Weight)]
        codes, absmax = torch.cat([one.codes for one in runs]), torch.cat([one.absmax for one in runs])
        single = kernels.NF4Weight(shape, codes, absmax)
        return single if weights == "nf4-single" else kernels.double_quantise(single, name=name)

    def _parts(self, weight: Tensor, kind: Weights) -> Iterator[Tensor]:
        """Matrices that follow each other in `weight`: whole rows for int8, whole blocks for NF4, but for the last."""
        if kind == "int8":
            yield from torch.split(weight, max(1, self._part // weight.shape[1]))
            return
        flat, whole = weight.view(-1), weight.numel() // BLOCKSIZE * BLOCKSIZE
        if whole:
            yield from torch.split(flat[:whole].view(-1, BLOCKSIZE), max(1, self._part // BLOCKSIZE))
        if whole < len(flat):
            yield flat[None, whole:]

    def _each(self, parts: Iterator[Tensor], kind: Weights) -> list[kernels.PackedWeight]:
        """The parts, quantised; a part is sent before the one before it is worked on."""
        made: list[kernels.PackedWeight] = []
        waiting: _Slot | None = None
        for index, part in enumerate(parts):
            slot = self._slots[index % 2]
            slot.send(part)
            if waiting is not None:
                made.append(self._work_on(waiting, kind))
            waiting = slot
        if waiting is not None:
            made.append(self._work_on(waiting, kind))
        return made

    def _work_on(self, slot: _Slot, kind: Weights) -> kernels.PackedWeight:
        with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            made = kernels.quantise(slot.take(), kind)
            slot.done()
            return made.to("cpu")  # waits for this stream alone


class _Slot:
    """A staging buffer on the host (pinned, for a card), its twin on the device, and what each is waiting for."""

    def __init__(self, device: torch.device, upload: torch.cuda.Stream | None) -> None:
        self._device, self._upload = device, upload
        self._host = self._there = torch.empty(0)
        self._shape = torch.Size()
        self._sent = self._used = None if upload is None else torch.cuda.Event()  # type: ignore[no-untyped-call]

    def send(self, part: Tensor) -> None:
        """Begin to bring `part` to the device. Waits until what was sent from this buffer before has left it."""
        self._shape, flat = part.shape, part.reshape(-1)
        if self._upload is None or self._sent is None or self._used is None:
            self._there = flat
            return
        self._sent.synchronize()
        with torch.cuda.stream(self._upload):
            if self._host.dtype != flat.dtype or len(self._host) < len(flat):  # what was in it has been worked on
                self._host = torch.empty(len(flat), dtype=flat.dtype, pin_memory=True)
                self._there = torch.empty(len(flat), dtype=flat.dtype, device=self._device)
            self._host[: len(flat)].copy_(flat)
            self._upload.wait_event(self._used)
            self._there[: len(flat)].copy_(self._host[: len(flat)], non_blocking=True)
            self._sent = self._upload.record_event()

    def take(self) -> Tensor:
        """What was sent, on the device, for work in the current stream."""
        if self._sent is not None:
            torch.cuda.current_stream(self._device).wait_event(self._sent)
        return self._there[: self._shape.numel()].view(self._shape)

    def done(self) -> None:
        """All work with what was taken has been asked for, in the current stream."""
        if self._used is not None:
            self._used = torch.cuda.current_stream(self._device).record_event()
