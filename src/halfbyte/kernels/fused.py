"""Where the ops between the products (norm, gate, rotary embedding, cross-entropy) run as one kernel: natively on the
CPU, through Liger-Kernel's Triton kernels (Hsu et al. 2024, arXiv:2410.10989) on a card.

Liger-Kernel's functions are called one by one, never the patches by which it changes transformers' classes. It is
imported where a card needs it: that takes seconds.
"""

from __future__ import annotations

import functools
from importlib import metadata

import torch
from torch import Tensor

from halfbyte.kernels.choice import Choice, choose

DTYPES = (torch.bfloat16, torch.float32)  # of the native code
WIDEST = 65_536  # numbers in a row that Liger-Kernel takes


def native_isa(x: Tensor) -> str | None:
    """The instruction set for an op on `x`, or None where no native code runs: not on the CPU, or not bf16 or fp32."""
    return choose(x.device).isa if x.dtype in DTYPES else None


def choose_parts(device: torch.device) -> Choice:
    """Which implementation norms, gates and rotary embeddings have on `device`, and why."""
    how = choose(device)
    return how if how.name != "gpu" else _parts(how, *liger())


@functools.cache  # it is asked before every op
def _parts(how: Choice, version: str, missing: str) -> Choice:
    if missing:
        return Choice("reference", f"plain PyTorch: {missing}")
    from halfbyte.kernels.gpu import INTERPRETED  # which multiplies the bits of bf16 numbers as integers

    return Choice("gpu", f"Liger-Kernel {version} with {how.reason}", bf16=how.bf16 and not INTERPRETED)


def dtypes_of(choice: Choice) -> tuple[torch.dtype, ...]:
    """The types that the fused ops of a choice take."""
    if choice.name != "gpu":
        return DTYPES
    return (torch.bfloat16, torch.float16, torch.float32) if choice.bf16 else (torch.float16, torch.float32)


def on_card(x: Tensor) -> bool:
    """Whether Liger-Kernel's ops on rows take `x` [..., width]."""
    choice = choose_parts(x.device)
    return choice.name == "gpu" and x.dtype in dtypes_of(choice) and 0 < x.shape[-1] <= WIDEST and x.numel() > 0


@functools.cache
def liger() -> tuple[str, str]:
    """Liger-Kernel's version, or "" and why there is none."""
    try:
        from halfbyte.kernels.cross_entropy import gpu as _cross_entropy  # noqa: F401
        from halfbyte.kernels.gate import gpu as _gate  # noqa: F401
        from halfbyte.kernels.norm import gpu as _norm  # noqa: F401
        from halfbyte.kernels.rotary import gpu as _rotary  # noqa: F401

        return metadata.version("liger-kernel"), ""
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "liger_kernel":
            return "", "liger-kernel is not installed: pip install 'halfbyte[gpu]'"
        return "", f"liger-kernel can't be loaded ({error}): reinstall it"
    except Exception as error:  # whatever a library that does not fit this system raises
        return "", f"liger-kernel can't be loaded ({error}): reinstall it"
