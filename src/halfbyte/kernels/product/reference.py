"""Products with a frozen matrix in plain PyTorch: the specification of `product`, and what runs where nothing else can.

The matrix is decoded into a buffer that all matrices of a device and dtype share, multiplied by torch, and forgotten.
"""

from __future__ import annotations

import threading
import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from halfbyte.kernels.packed import PackedWeight

FrozenWeight = PackedWeight | Tensor
Pair = tuple[Tensor, Tensor]


class Layer(NamedTuple):
    """A linear layer: a weight [O, I], a bias [O], and a LoRA pair A [R, I] and B [O, R]."""

    weight: FrozenWeight
    bias: Tensor | None = None
    lora: Pair | None = None

    def check(self, name: str, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Raise ValueError for what native code, which gets bare pointers, would read beyond."""
        wanted: dict[str, tuple[FrozenWeight | None, tuple[int, ...]]]
        wanted = {"weight": (self.weight, shape), "bias": (self.bias, shape[:1])}
        if self.lora is not None:
            rank = len(self.lora[0])
            wanted |= {"A": (self.lora[0], (rank, shape[1])), "B": (self.lora[1], (shape[0], rank))}
        for part, (tensor, size) in wanted.items():
            if tensor is None:
                continue
            if tuple(tensor.shape) != size or tensor.device != device:
                raise ValueError(
                    f"{part} of {name} is {tuple(tensor.shape)} on {tensor.device}, not {size} on {device}"
                )
            if part != "weight" and isinstance(tensor, Tensor) and tensor.dtype != dtype:
                raise ValueError(f"{part} of {name} is {tensor.dtype}, not {dtype}")

    def contiguous(self) -> Layer:
        """The same, with bias and pair in one piece."""
        pair = None if self.lora is None else (self.lora[0].contiguous(), self.lora[1].contiguous())
        return Layer(self.weight, None if self.bias is None else self.bias.contiguous(), pair)


TILE = 4096  # rows of a dense matrix of another dtype that are converted at once


class Scratch(threading.local):
    """One buffer a thread, device and dtype, as large as the largest matrix taken so far."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        _all.add(self)

    def take(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        size = shape[0] * shape[1]
        buffer = self._buffers.get((device, dtype))
        if buffer is None or buffer.numel() < size:
            with torch.inference_mode(False):  # a buffer born in inference mode could not be written while training
                buffer = torch.empty(size, dtype=dtype, device=device)
            self._buffers[device, dtype] = buffer
        return buffer[:size].view(shape)

    def clear(self) -> None:
        self._buffers.clear()


_all: weakref.WeakSet[Scratch] = weakref.WeakSet()


def clear_all() -> None:
    """Give up this thread's scratch buffers, wherever they are used."""
    for one in tuple(_all):
        one.clear()


scratch = Scratch()


def decode(weight: FrozenWeight, dtype: torch.dtype) -> Tensor:
    """`weight` as a dense [O, I] tensor. A packed one lands in the scratch buffer: use it before the next call."""
    if isinstance(weight, Tensor):
        return weight.to(dtype)
    from halfbyte.kernels import dequantise

    return dequantise(weight, dtype, out=scratch.take(weight.shape, dtype, weight.device))


@torch.no_grad()
def linear(
    x: Tensor, weight: FrozenWeight, bias: Tensor | None, pair: Pair | None, out: Tensor | None = None
) -> Tensor:
    """x [T, I] W^T (+ bias) (+ h [T, R] B^T with B [O, R]); `out`, if given, is written and returned."""
    y = x.new_empty(len(x), weight.shape[0]) if out is None else out
    if isinstance(weight, Tensor) and weight.dtype != x.dtype:
        for first in range(0, len(weight), TILE):
            rows = slice(first, first + TILE)
            _multiply(x, weight[rows].to(x.dtype), None if bias is None else bias[rows], y[:, rows])
    else:
        _multiply(x, decode(weight, x.dtype), bias, y)
    return y if pair is None else y.addmm_(pair[0], pair[1].T)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(x, weight.T, out=out)
    else:
        torch.addmm(bias, x, weight.T, out=out)


@torch.no_grad()
def linear_transposed(g: Tensor, weight: FrozenWeight, pair: Pair | None, out: Tensor | None = None) -> Tensor:
    """g [T, O] W (+ h [T, R] A with A [R, I]); `out`, if given, is written and returned."""
    x = g.new_empty(len(g), weight.shape[1]) if out is None else out
    if isinstance(weight, Tensor) and weight.dtype != g.dtype:
        x.zero_()
        for columns, tile in zip(torch.split(g, TILE, dim=1), torch.split(weight, TILE), strict=True):
            x.addmm_(columns, tile.to(g.dtype))
    else:
        torch.mm(g, decode(weight, g.dtype), out=x)
    return x if pair is None else x.addmm_(pair[0], pair[1])
