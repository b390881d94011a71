"""Which implementation of the kernels runs on a device, and why."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import torch

from halfbyte.environment import VARIABLE as VARIABLE
from halfbyte.environment import forced_kernels
from halfbyte.errors import ConfigError
from halfbyte.kernels import native

_INTERPRET = "TRITON_INTERPRET"  # Triton's own variable
_BF16_CAPABILITY, _LEAST_CAPABILITY = (8, 0), (7, 0)
_YES = ("1", "y", "yes", "true", "on")  # as Triton reads it


@dataclass(frozen=True)
class Choice:
    """`name` is "reference" (plain PyTorch), "cpu" (native library) or "gpu" (Triton; attention is torch's
    there). `isa`: the instruction set of "cpu"; `bf16`: whether the device computes in it, of "gpu"."""

    name: str
    reason: str
    isa: str | None = None
    bf16: bool = True

    @property
    def beside(self) -> str:
        """Where `isa` is None: why attention and products in int8 are torch's, if they are at all."""
        return self.reason if self.name != "gpu" else "plain PyTorch: this op has no kernel in Triton"

    def triton(self, dtype: torch.dtype) -> bool:
        """Whether Triton's kernels run on tensors of this type."""
        return self.name == "gpu" and (self.bf16 or dtype != torch.bfloat16)


def choose(device: torch.device | str = "cpu") -> Choice:
    """The implementation for tensors on `device`.

    The environment variable HALFBYTE_KERNELS forces one: `reference`, `cpu` (native, the fastest that the processor
    has), one of these (`cpu-portable`, `cpu-avx2`, `cpu-avxvnni`, `cpu-avx512`, `cpu-avx512vnni`, `cpu-avx512bf16`,
    `cpu-amx`), or `gpu` (Triton on CUDA devices; under TRITON_INTERPRET=1 on the CPU, too, for tests). Other devices
    than these have the reference only.
    Raises ConfigError if the variable names what does not exist or can't run here.
    """
    device = device if isinstance(device, torch.device) else torch.device(device)
    forced = forced_kernels()
    if forced == "gpu" or (device.type == "cuda" and not forced):
        return _choose_triton(device, forced, os.environ.get(_INTERPRET, "").lower() in _YES)
    return _choose(device.type, forced, native.load()[1], native.isas())


@functools.cache  # it is asked before every product: ten times a layer and token
def _choose(kind: str, forced: str, missing: str, isas: tuple[str, ...]) -> Choice:
    """`missing`: why there is no native library."""
    if forced == "reference":
        return Choice("reference", f"plain PyTorch: forced by {VARIABLE}")
    if kind != "cpu":
        return Choice("reference", f"plain PyTorch: there is no native kernel for {kind}")
    if missing:
        if forced:
            raise ConfigError(f"{VARIABLE}={forced} can't be had", found=missing, do=f"or unset {VARIABLE}")
        return Choice("reference", f"plain PyTorch: {missing}")
    isa = forced.removeprefix("cpu-") if forced not in ("", "cpu") else native.preferred()
    if isa not in isas:
        have = ", ".join(f"cpu-{name} ({native.ISA_NAMES[name]})" for name in isas)
        raise ConfigError(f"{VARIABLE}={forced} can't be had", found=f"this processor and this build have: {have}",
                          do=f"choose one of these, or unset {VARIABLE}")  # fmt: skip
    by = f" (forced by {VARIABLE})" if forced else ""
    return Choice("cpu", f"native library: {native.ISA_NAMES[isa]}{by}", isa)


@functools.cache
def _choose_triton(device: torch.device, forced: str, interpreted: bool) -> Choice:
    """Triton's kernels where they can run; elsewhere the reference, or an error if they were forced."""
    if device.type not in ("cpu", "cuda"):
        return _choose(device.type, "", "", ())
    cuda, (version, missing) = torch.cuda.is_available(), _triton()
    if device.type == "cpu" and cuda and not interpreted:  # what was forced runs on the card
        return _choose("cpu", "", native.load()[1], native.isas())
    by = f" (forced by {VARIABLE})" if forced else ""
    if not missing and interpreted:
        return Choice("gpu", f"Triton {version} in its interpreter, which is slow and for tests{by}")
    if not missing and not cuda:
        missing = "torch finds no cuda device"
    if not missing:
        found = torch.cuda.get_device_capability(device)
        card = f"{torch.cuda.get_device_name(device)}, compute capability {found[0]}.{found[1]}"
        if found >= _BF16_CAPABILITY:
            return Choice("gpu", f"Triton {version} on {card}{by}")
        if found >= _LEAST_CAPABILITY:
            return Choice("gpu", f"Triton {version} on {card}: no bf16, so fp16 with sums in fp32{by}", bf16=False)
        missing = f"{card}, below the {_LEAST_CAPABILITY[0]}.{_LEAST_CAPABILITY[1]} that Triton needs"
    if forced:
        do = f"unset {VARIABLE}; without a card, {_INTERPRET}=1 runs these kernels on the CPU, for tests"
        raise ConfigError(f"{VARIABLE}={forced} can't be had", found=missing, do=do)
    return Choice("reference", f"plain PyTorch: {missing}")


@functools.cache
def _triton() -> tuple[str, str]:
    """Triton's version, or "" and why there is none."""
    try:
        import triton

        return str(triton.__version__), ""
    except ModuleNotFoundError:
        return "", "triton is not installed: pip install 'halfbyte[gpu]'"
    except Exception as error:  # whatever a library that does not fit this system raises
        return "", f"triton can't be loaded ({error}): reinstall it"
