"""The layers of a decoder for one new token of each of some texts, natively in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from halfbyte import kernels
from halfbyte.kernels.choice import choose
from halfbyte.kernels.decoder import cpu
from halfbyte.kernels.decoder.reference import Angles, Block, Cache, Linears, Norm, Norms
from halfbyte.kernels.product.cpu import FEW

__all__ = ["FEW", "Angles", "Block", "Cache", "Decoder", "Linears", "Norm", "Norms", "uncovered"]

_TYPES = (torch.bfloat16, torch.float32)
_CPU = torch.device("cpu")


def uncovered(blocks: Sequence[Block], dtype: torch.dtype) -> str:
    """Why there is no native call for `blocks` that compute in `dtype` on the CPU; empty if there is."""
    choice = choose("cpu")
    if choice.name != "cpu":
        return choice.reason
    if dtype not in _TYPES:
        return f"no native layers for {dtype}"
    x = torch.empty(1, 0, dtype=dtype)
    for block in blocks:
        for layer in block.linears:
            how = kernels.product_of(x, layer.weight)
            if how.name != "cpu":
                return how.reason
    return ""


class Decoder:
    """`blocks`, which compute in one type, with `caches`: `reference.decode` for one position after the other.

    Raises ValueError for what native code would read or write beyond, and for what `uncovered` says.
    """

    def __init__(self, blocks: Sequence[Block], caches: Sequence[Cache]) -> None:
        if not blocks or len(blocks) != len(caches):
            raise ValueError(f"{len(blocks)} blocks and {len(caches)} caches")
        self.dtype, self.head = caches[0][0].dtype, caches[0][0].shape[-1]
        if reason := uncovered(blocks, self.dtype):
            raise ValueError(reason)
        self.width = blocks[0].linears.q.weight.shape[1]
        self._angles = max((block.angles for block in blocks if block.angles is not None), default=-1) + 1
        self._rows, self._room = len(caches[0][0]), caches[0][0].shape[2]
        for block, cache in zip(blocks, caches, strict=True):
            self._check(block, blocks[0].linears, cache)
        self._native = cpu.Decoder([_contiguous(block) for block in blocks], caches)

    def step(
        self, hidden: Tensor, position: int, angles: Sequence[Angles], visible: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """`hidden` [B, H] after the blocks, for the token at `position`; a new tensor. See `reference.decode`."""
        rows = len(hidden)
        fits = hidden.shape == (rows, self.width) and hidden.dtype == self.dtype and 0 < rows <= min(FEW, self._rows)
        if not fits or not 0 <= position < self._room or len(angles) < self._angles:
            raise ValueError(f"hidden {hidden.dtype} {list(hidden.shape)}, position {position}, {len(angles)} angles; "
                             f"there is room for {self._rows} x {self._room}")  # fmt: skip
        turns = [(cos.contiguous(), sin.contiguous()) for cos, sin in angles]
        shape, dtype = ((rows, turns[0][0].shape[-1]), turns[0][0].dtype) if turns else ((0, 0), self.dtype)
        if dtype not in (self.dtype, torch.float32):
            raise ValueError(f"angles are {dtype}")
        for half in (half for pair in turns for half in pair):
            if half.shape != shape or half.dtype != dtype or shape[1] > self.head or shape[1] % 2:
                raise ValueError(f"an angle is {half.dtype} {list(half.shape)}, the head {self.head} wide")
        if visible is not None:
            if visible.shape != (rows, position + 1) or visible.dtype != torch.bool:
                raise ValueError(f"the mask is {visible.dtype} {list(visible.shape)}, not bool {[rows, position + 1]}")
            visible = visible.contiguous()
        made = hidden.clone(memory_format=torch.contiguous_format)
        return self._native.step(made, position, turns, visible, choose("cpu").isa or "")

    def _check(self, block: Block, first: Linears, cache: Cache) -> None:
        width, head = self.width, self.head
        q, k, inner = (layer.weight.shape[0] for layer in (first.q, first.k, first.gate))
        if q % head or k % head or q % k:
            raise ValueError(f"queries of {q} and keys of {k} in heads of {head}")
        shapes = ((q, width), (k, width), (k, width), (width, q), (inner, width), (inner, width), (width, inner))
        for name, layer, shape in zip(Linears._fields, block.linears, shapes, strict=True):
            layer.check(name, shape, self.dtype, _CPU)
        widths = ((width,), (q, head), (k, head), (width,), (width,), (width,))
        for name, norm, fit in zip(Norms._fields, block.norms, widths, strict=True):
            if norm is not None and (norm.weight.ndim != 1 or len(norm.weight) not in fit):
                raise ValueError(f"{name} is {list(norm.weight.shape)} for rows of {fit}")
            if norm is not None and (norm.weight.dtype != self.dtype or norm.weight.device.type != "cpu"):
                raise ValueError(f"{name} is {norm.weight.dtype} on {norm.weight.device}")
        if block.angles is not None and block.angles < 0:
            raise ValueError(f"angles {block.angles}")
        for states in cache:
            if states.shape != (self._rows, k // head, self._room, head) or states.dtype != self.dtype:
                raise ValueError(f"a cache is {states.dtype} {list(states.shape)}")
            if states.stride(-1) != 1 or states.device.type != "cpu":
                raise ValueError("a cache does not lie token by token on the CPU")


def _contiguous(block: Block) -> Block:
    """`block` with every tensor that native code reads in one piece."""
    norms = (None if norm is None else norm._replace(weight=norm.weight.contiguous()) for norm in block.norms)
    return block._replace(linears=Linears(*(layer.contiguous() for layer in block.linears)), norms=Norms(*norms))
