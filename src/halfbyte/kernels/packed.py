"""Quantised matrices in memory: bitsandbytes' layouts (see `halfbyte.formats`), checked when they are made.

Native code receives bare pointers, so whatever it relies on (types, sizes, contiguity, one device) is checked here,
once, and not in every call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halfbyte.errors import CheckpointError
from halfbyte.formats import BLOCKSIZE, NESTED_BLOCKSIZE, Weights

_Part = tuple[str, Tensor, torch.dtype, tuple[int, ...]]  # name, tensor, and what it should be


@dataclass(frozen=True, eq=False)
class NF4Weight:
    """A matrix of n = out * in weights in NF4, row-major; blocks straddle rows where `in` is no multiple of 64.

    `codes` uint8 [ceil(n / 2)], flat, the first weight in the high nibble; `absmax` fp32 [ceil(n / 64)]. With double
    quantisation `absmax` is uint8, `nested_absmax` fp32 [ceil(blocks / 256)] and `offset` the mean absmax (an fp32
    value). Raises CheckpointError, all faults in one, if the parts do not fit together.
    """

    shape: tuple[int, int]
    codes: Tensor
    absmax: Tensor
    nested_absmax: Tensor | None = None
    offset: float | None = None

    def __post_init__(self) -> None:
        n = self.shape[0] * self.shape[1]
        blocks = -(-n // BLOCKSIZE)
        nested = self.nested_absmax is not None
        parts: list[_Part] = [
            ("codes", self.codes, torch.uint8, (-(-n // 2),)),
            ("absmax", self.absmax, torch.uint8 if nested else torch.float32, (blocks,)),
        ]
        if self.nested_absmax is not None:
            parts.append(("nested_absmax", self.nested_absmax, torch.float32, (-(-blocks // NESTED_BLOCKSIZE),)))
        faults = _faults(self.shape, parts)
        if nested != (self.offset is not None):
            faults.append("nested_absmax and offset belong together: one of them is missing")
        _refuse(faults, "NF4", self.shape)

    @property
    def weights(self) -> Weights:
        return "nf4-single" if self.nested_absmax is None else "nf4"

    @property
    def nbytes(self) -> int:
        """Bytes of codes and constants."""
        return sum(t.nbytes for t in (self.codes, self.absmax, self.nested_absmax) if t is not None)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def to(self, device: torch.device | str) -> NF4Weight:
        nested = None if self.nested_absmax is None else self.nested_absmax.to(device)
        return replace(self, codes=self.codes.to(device), absmax=self.absmax.to(device), nested_absmax=nested)


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """A matrix in int8: `codes` int8 [out, in] and `scale` fp32 [out], the largest magnitude of each row.

    A weight is code * scale / 127. Raises CheckpointError, all faults in one, if the parts do not fit together.
    """

    shape: tuple[int, int]
    codes: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        parts: list[_Part] = [
            ("codes", self.codes, torch.int8, self.shape),
            ("scale", self.scale, torch.float32, (self.shape[0],)),
        ]
        _refuse(_faults(self.shape, parts), "int8", self.shape)

    @property
    def weights(self) -> Weights:
        return "int8"

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scale.nbytes

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def to(self, device: torch.device | str) -> Int8Weight:
        return replace(self, codes=self.codes.to(device), scale=self.scale.to(device))


PackedWeight = NF4Weight | Int8Weight


def _faults(shape: tuple[int, int], parts: list[_Part]) -> list[str]:
    faults = [] if min(shape) > 0 else ["the matrix has no weights"]
    for name, tensor, dtype, expected in parts:
        if tensor.dtype != dtype or tuple(tensor.shape) != expected:
            faults.append(f"{name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(expected)}")
        elif not tensor.is_contiguous():
            faults.append(f"{name} is not contiguous")
        if tensor.device != parts[0][1].device:
            faults.append(f"{name} lies on {tensor.device}, {parts[0][0]} on {parts[0][1].device}")
    return faults


def _refuse(faults: list[str], kind: str, shape: tuple[int, int]) -> None:
    if faults:
        raise CheckpointError(
            f"the parts of this {kind} matrix of {shape[0]} x {shape[1]} do not fit together", found="; ".join(faults)
        )
