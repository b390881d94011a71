"""Which implementation of the kernels runs on a device, and why."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import torch

from halfbyte.errors import ConfigError, nearest
from halfbyte.kernels import native

VARIABLE = "HALFBYTE_KERNELS"
_FORCED = ("reference", "cpu", *(f"cpu-{isa}" for isa in native.ISAS))


@dataclass(frozen=True)
class Choice:
    """`name` is "reference" (plain PyTorch) or "cpu" (native library); `isa` the instruction set of the latter."""

    name: str
    reason: str
    isa: str | None = None


def choose(device: torch.device | str = "cpu") -> Choice:
    """The implementation for tensors on `device`.

    The environment variable HALFBYTE_KERNELS forces one: `reference`, `cpu` (native, the best that the processor has)
    or one instruction set: `cpu-portable`, `cpu-avx2`, `cpu-avx512`, `cpu-avx512bf16`, `cpu-amx`. Other devices than
    the CPU have the reference only.
    Raises ConfigError if the variable names what does not exist or can't run here.
    """
    kind = device.type if isinstance(device, torch.device) else torch.device(device).type
    return _choose(kind, os.environ.get(VARIABLE, ""), native.load()[1], native.isas())


@functools.cache  # it is asked before every product: ten times a layer and token
def _choose(kind: str, forced: str, missing: str, isas: tuple[str, ...]) -> Choice:
    """`missing`: why there is no native library."""
    if forced and forced not in _FORCED:
        raise ConfigError(f"{VARIABLE} names no kernels", found=repr(forced), do=nearest(forced, _FORCED, "kernels"))
    if forced == "reference":
        return Choice("reference", f"plain PyTorch: forced by {VARIABLE}")
    if kind != "cpu":
        return Choice("reference", f"plain PyTorch: there is no native kernel for {kind} yet")
    if missing:
        if forced:
            raise ConfigError(f"{VARIABLE}={forced} can't be had", found=missing, do=f"or unset {VARIABLE}")
        return Choice("reference", f"plain PyTorch: {missing}")
    isa = forced.removeprefix("cpu-") if forced not in ("", "cpu") else isas[-1]
    if isa not in isas:
        have = ", ".join(native.ISA_NAMES[name] for name in isas)
        raise ConfigError(f"{VARIABLE}={forced} can't be had", found=f"this processor and this build have: {have}",
                          do=f"choose one of these, or unset {VARIABLE}")  # fmt: skip
    by = f" (forced by {VARIABLE})" if forced else ""
    return Choice("cpu", f"native library: {native.ISA_NAMES[isa]}{by}", isa)
