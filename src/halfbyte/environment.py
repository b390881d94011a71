"""Where a result was made: versions and machine, written beside every figure. Never imports torch by itself."""

from __future__ import annotations

import functools
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import halfbyte
from halfbyte.errors import ConfigError, nearest
from halfbyte.provenance import git_state

NATIVE_INTERFACE = 11  # of the native library; raised together with halfbyte_interface() in dequantise/cpu.cpp
CPUINFO = Path("/proc/cpuinfo")
ISAS = ("portable", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx")  # as `enum Isa` of kernels/common.h
VARIABLE = "HALFBYTE_KERNELS"
KERNELS = ("reference", "cpu", *(f"cpu-{isa}" for isa in ISAS), "gpu")  # that the variable can name
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")


def environment() -> dict[str, Any]:
    """`versions` {library: version}, `machine` {processor, cores, threads, memory_bytes, system, cuda} and `git`
    {commit, dirty} of the current folder (None: it is in no repository)."""
    return {"versions": versions(), "machine": machine(), "git": git_state()}


def versions() -> dict[str, str]:
    """Versions of Python, halfbyte and the libraries that its figures depend on."""
    found = {"halfbyte": halfbyte.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """`cores`: logical processors that this process may use; `threads`: those that torch uses (None: not loaded)."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None and hasattr(torch, "get_num_threads") else None
    found: dict[str, Any] = {
        "processor": processor(),
        "cores": cores(),
        "threads": threads,
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "cuda": [],
    }
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        found["cuda"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return found


def forced_kernels() -> str:
    """What the variable HALFBYTE_KERNELS says, "" if nothing. Raises ConfigError for what does not exist."""
    forced = os.environ.get(VARIABLE, "")
    if forced and forced not in KERNELS:
        raise ConfigError(f"{VARIABLE} names no kernels", found=repr(forced), do=nearest(forced, KERNELS, "kernels"))
    return forced


@functools.cache
def has_bf16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the processor has fast instructions for bf16, Arm's included. Intel's AVX512-BF16, which takes two cycles
    for a product, is slower than fp32; with AMX nobody needs it."""
    intel = "GenuineIntel" in _words(cpuinfo, ("vendor_id",))
    wanted = {"amx_bf16", "bf16"} if intel else {"amx_bf16", "bf16", "avx512_bf16"}
    return bool(wanted & processor_flags(cpuinfo))


def processor_flags(cpuinfo: Path = CPUINFO) -> set[str]:
    """What the processor has, as Linux spells it; nothing on other systems."""
    return _words(cpuinfo, ("flags", "Features"))


def _words(cpuinfo: Path, names: tuple[str, ...]) -> set[str]:
    """Of the first line with one of these names."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith(names)), set())


def processor() -> str:
    """The processor's name as its maker prints it."""
    try:
        for line in CPUINFO.read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Physical memory, None where the system does not tell. (What a process may take is `plan`'s business.)"""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
