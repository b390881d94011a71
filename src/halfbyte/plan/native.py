"""Which parts of a model native code computes: what a plan has to know of the kernels, found without importing torch.

A loaded model says it itself (`of_model`). Before that it is foretold (`foretold`) from what decides it later: the
library, the processor's flags, HALFBYTE_KERNELS and the family. Whether the library opens at all is tried in a process
of its own (a tenth of a second; the answer is kept as long as the file is the same): whatever opens it before torch
decides whose threads both of them use. What can't be seen (flags of other systems than Linux) counts as missing, which
plans more memory.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from halfbyte.environment import CPUINFO, NATIVE_INTERFACE, VARIABLE, forced_kernels, has_bf16, processor_flags
from halfbyte.plan.shapes import is_known, text_config

_KERNELS = Path(__file__).parents[1] / "kernels"
_AVX2 = {"avx2", "fma", "f16c"}  # as /proc/cpuinfo spells them
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
_VNNI = _AVX512 | {"avx512_vnni"}  # which all with AVX512-BF16 and AMX have
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")  # then attention is PyTorch's


@dataclass(frozen=True)
class Native:
    """`products`: those of many rows with a frozen matrix, which else is decoded as a whole. `reason` is for people."""

    norms: bool
    mlp: bool
    attention: bool
    products: bool
    reason: str

    def __str__(self) -> str:
        parts = {"norms": self.norms, "MLPs": self.mlp, "attention": self.attention, "products": self.products}
        named = [name for name, is_native in parts.items() if is_native]
        return f"{', '.join(named) if named else 'no part'} native: {self.reason}"


def plain(reason: str) -> Native:
    """Everything in PyTorch's operations."""
    return Native(False, False, False, False, reason)


def foretold(config: Mapping[str, Any], *, dtype_bytes: int = 2, device: str = "auto") -> Native:
    """What `load_model` will find for a model with this config.json on this machine's CPU."""
    if device.startswith("cuda"):
        return plain(f"there is no native kernel for {device}, where Triton's take packed weights and torch's the rest")
    if missing := _missing():
        return plain(missing)
    if not is_known(config):
        return plain("the family is not known")
    text, forced = text_config(config), forced_kernels()
    if dtype_bytes == 4:
        fast = has_fp32_products() if forced in ("", "cpu") else forced != "cpu-portable"
    else:
        fast = _bf16_is_native(forced)
    dropout = any(text.get(name) for name in _DROPOUTS)
    return Native(True, True, not dropout, fast, "the library is there, and the family is one that it covers")


def _missing() -> str:
    """Why there is no native code; empty where there is."""
    if forced_kernels() == "reference":
        return f"{VARIABLE}=reference"
    file = next((file for suffix in EXTENSION_SUFFIXES if (file := _KERNELS / f"_native{suffix}").exists()), None)
    if file is None:
        return "the native library was not built"
    fault = _fault_of(str(file), file.stat().st_mtime_ns)
    return f"the native library can't be loaded ({fault})" if fault else ""


_TRY = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).halfbyte_interface())"


@functools.cache
def _fault_of(file: str, changed: int) -> str:
    """Why the library in `file` can't be used; empty if it can. `changed`, its time, is for the cache alone."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRY, file], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"it could not be tried: {error}"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if done.stdout.strip() != str(NATIVE_INTERFACE):
        return "it was built from other sources than these"
    return ""


def has_bf16_products(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the processor has native products in bf16: with AVX512-VNNI, and with AVX2 where that is all."""
    flags = processor_flags(cpuinfo)
    return flags >= _VNNI or (flags >= _AVX2 and not flags >= _AVX512)


def has_fp32_products(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the processor has AVX2, with which native products in fp32 run."""
    return processor_flags(cpuinfo) >= _AVX2


def int8_missing(kind: str = "cpu", cpuinfo: Path = CPUINFO) -> str:
    """Why there are no products in int8 on a device of this `kind`; "" where there are."""
    if kind != "cpu":
        return "they run on a processor, not on a card"
    if missing := _missing():
        return missing
    if forced_kernels() in ("cpu-portable", "cpu-avx2", "cpu-avxvnni"):
        return f"{VARIABLE}={forced_kernels()}"
    return "" if processor_flags(cpuinfo) >= _VNNI else "this processor has no AVX512-VNNI"


def multiplies_bf16() -> bool:
    """Whether bf16 is faster than fp32 here: by the processor's instructions, or by native products without them."""
    forced = forced_kernels()
    return has_bf16() or (forced != "cpu-avx512bf16" and _bf16_is_native(forced) and not _missing())


def _bf16_is_native(forced: str) -> bool:
    if forced in ("", "cpu"):
        return has_bf16_products()
    return forced not in ("cpu-portable", "cpu-avx512")


def of_model(replaced: Iterable[Any], attention: str, *, products: bool, reason: str) -> Native:
    """Of a loaded model: its `replaced` parts, the name of its attention, and whether the native product runs.

    A part counts as native only if every class of its kind was replaced.
    """
    norms = [part for part in replaced if "Norm" in part.kind]
    others = [part for part in replaced if "Norm" not in part.kind]
    return Native(
        norms=bool(norms) and not any(part.reason for part in norms),
        mlp=bool(others) and not any(part.reason for part in others),
        attention=attention == "halfbyte",
        products=products,
        reason=reason,
    )
