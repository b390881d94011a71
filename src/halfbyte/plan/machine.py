"""What this machine has: memory in all and free, its container's limit, cores, CUDA devices. Never imports torch."""

from __future__ import annotations

import dataclasses
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.environment import cores, memory_bytes, processor

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**60  # cgroup v1 writes a huge number where there is no limit


@dataclass(frozen=True)
class CudaDevice:
    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Machine:
    """`available_bytes` is what a program may take now without swapping, limits of the container included."""

    system: str
    processor: str
    cores: int
    total_bytes: int | None
    available_bytes: int | None
    limit_bytes: int | None  # of the container; None: there is none
    cuda: tuple[CudaDevice, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def this_machine(*, cuda: bool = True) -> Machine:
    """Look at this machine. `cuda=False` spares the call of nvidia-smi."""
    total, free = memory_bytes(), _free_memory()
    limit, used = cgroup_memory()
    available = free
    if limit is not None:
        room = max(0, limit - (used or 0))
        available = room if free is None else min(free, room)
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor(),
        cores=cores(),
        total_bytes=total,
        available_bytes=available,
        limit_bytes=limit if limit is not None and (total is None or limit < total) else None,
        cuda=cuda_devices() if cuda else (),
    )


def _free_memory() -> int | None:
    """What the system says can be had without swapping; None where it does not tell."""
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    if sys.platform == "darwin":
        return memory_bytes()  # macOS gives back caches and compresses; what is installed is the best bound it tells
    if sys.platform == "win32":
        return _windows_memory()
    return None


def _windows_memory() -> int | None:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong), ("total", ctypes.c_ulonglong),
                    ("available", ctypes.c_ulonglong), ("rest", ctypes.c_ulonglong * 5)]  # fmt: skip

    status = Status()
    status.length = ctypes.sizeof(Status)
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 (mypy elsewhere does not know windll)
    return int(status.available) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def cgroup_memory(root: Path = _CGROUP, own: Path = Path("/proc/self/cgroup")) -> tuple[int | None, int | None]:
    """(limit, use) in bytes of the control group that binds tightest, v2 or v1; (None, None) without a limit.

    Pages of files that the kernel would drop at once (`inactive_file`) do not count as used.
    """
    tightest: tuple[int | None, int | None] = (None, None)
    room = None
    for folder, limit_name, use_name in _groups(root, own):
        limit = _number(folder / limit_name)
        if limit is None or limit >= _NO_LIMIT:
            continue
        use = max(0, (_number(folder / use_name) or 0) - _inactive_file(folder))
        if room is None or limit - use < room:
            room, tightest = limit - use, (limit, use)
    return tightest


def _groups(root: Path, own: Path) -> list[tuple[Path, str, str]]:
    """The control groups of this process, from its own up to the root, with the names of limit and use."""
    found: list[tuple[Path, str, str]] = []
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in [*lines, "0::/", "0:memory:/"]:
        _, controllers, path, *_ = *line.split(":", 2), "-", "", ""
        if controllers == "":
            base, names = root, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = base / path.strip().lstrip("/")
        while folder != base and base in folder.parents:
            found.append((folder, *names))
            folder = folder.parent
        found.append((base, *names))
    return list(dict.fromkeys(found))


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
        return int(text) if text != "max" else None
    except (OSError, ValueError):
        return None


def _inactive_file(folder: Path) -> int:
    try:
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    except (OSError, ValueError):
        pass
    return 0


def cuda_devices() -> tuple[CudaDevice, ...]:
    """NVIDIA devices as nvidia-smi lists them; none where it is absent, fails or takes over two seconds."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=2, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    devices = []
    for line in answer.splitlines():
        parts = [part.strip() for part in line.rsplit(",", 2)]
        if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit():
            devices.append(CudaDevice(parts[0], int(parts[1]) << 20, int(parts[2]) << 20))
    return tuple(devices)
