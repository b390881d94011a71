"""The code tables of `halfbyte.formats` as tensors, made once a device, and what follows from them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from halfbyte.formats import DYNAMIC_CODE, NF4_CODE


def _tensor(values: tuple[float, ...]) -> Tensor:
    with torch.inference_mode(False):  # or a table first asked for in inference mode would be of no use elsewhere
        return torch.tensor(values, dtype=torch.float32, device="cpu")


def _midpoints(levels: Tensor) -> Tensor:
    return (levels[:-1] + levels[1:]) / 2


@functools.cache
def nf4_levels(device: torch.device) -> Tensor:
    """fp32 [16], ascending."""
    return _tensor(NF4_CODE).to(device)


@functools.cache
def nf4_bounds(device: torch.device) -> Tensor:
    """fp32 [15]: midpoints of neighbouring levels; a code is the number of bounds below the scaled weight."""
    return _midpoints(_tensor(NF4_CODE)).to(device)


@functools.cache
def nf4_pairs(device: torch.device) -> Tensor:
    """fp32 [256, 2]: the two levels that a byte of codes stands for, the high nibble first."""
    levels = _tensor(NF4_CODE)
    byte = torch.arange(256, device="cpu")
    return torch.stack((levels[byte >> 4], levels[byte & 15]), dim=1).to(device)


@functools.cache
def dynamic_levels(device: torch.device) -> Tensor:
    """fp32 [256], ascending."""
    return _tensor(DYNAMIC_CODE).to(device)


@functools.cache
def dynamic_lookup(device: torch.device) -> Tensor:
    """uint8 [65536]: for each of 65536 equidistant points from -1 to 1, the code of the nearest dynamic level.

    bitsandbytes finds the codes of double quantisation through such a table, so a value within 1/65535 of a midpoint
    can get the farther level; that is part of the format if codes are to be equal.
    """
    points = torch.arange(65536, dtype=torch.float32, device="cpu") * 2 / 65535 - 1
    return torch.bucketize(points, _midpoints(_tensor(DYNAMIC_CODE))).to(torch.uint8).to(device)
