from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from halfbyte import kernels, memory
from halfbyte.kernels import native
from halfbyte.kernels.product import reference
from halfbyte.memory import MemoryMeter

MIB = 2**20
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")


@linux
def test_a_short_anonymous_peak_is_seen() -> None:
    with MemoryMeter() as meter:
        before = meter.peak_bytes
        scratch = np.ones(64 * MIB, dtype=np.uint8)
        time.sleep(0.05)
        del scratch
        time.sleep(0.02)
    assert before is not None and meter.peak_bytes is not None
    assert 60 * MIB < meter.peak_bytes - before < 80 * MIB


@linux
@pytest.mark.skipif(not native.isas(), reason="needs the native library")
def test_native_code_sees_a_peak_between_two_looks_and_a_reset_forgets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_BESIDE", 60.0)
    with MemoryMeter() as meter:
        before = meter.peak_bytes
        scratch = np.ones(64 * MIB, dtype=np.uint8)
        time.sleep(0.05)
        del scratch
        high = meter.peak_bytes
        meter.reset()
        low = meter.peak_bytes
    assert None not in (before, high, low)
    assert 60 * MIB < high - before < 80 * MIB and low < high - 50 * MIB  # type: ignore[operator]


@linux
def test_without_native_code_python_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(interval: float) -> None:
        raise OSError

    monkeypatch.setattr(native, "Watch", none)
    test_a_short_anonymous_peak_is_seen()


@linux
def test_reset_forgets_the_peak() -> None:
    with MemoryMeter() as meter:
        scratch = np.ones(64 * MIB, dtype=np.uint8)
        time.sleep(0.05)
        high = meter.peak_bytes
        del scratch
        meter.reset()
    assert high is not None and meter.peak_bytes is not None
    assert meter.peak_bytes < high - 50 * MIB


@linux
def test_clean_mapped_pages_stand_apart_and_dirty_ones_count(tmp_path: Path) -> None:
    file = tmp_path / "mapped"
    file.write_bytes(os.urandom(MIB) * 32)
    os.sync()
    with file.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as mapped, MemoryMeter() as meter:
        before, mapped_before = meter.peak_bytes, meter.mapped_bytes
        assert sum(mapped[i] for i in range(0, len(mapped), 4096)) > 0
        clean, mapped_clean = meter.peak_bytes, meter.mapped_bytes
        assert None not in (before, mapped_before, clean, mapped_clean)
        assert mapped_clean - mapped_before > 28 * MIB  # type: ignore[operator]
        assert clean - before < 8 * MIB  # type: ignore[operator]
        for i in range(0, len(mapped), 4096):
            mapped[i] = 1
        meter._rollup_due = 0.0  # look at the pages now, not in half a second
        assert meter.peak_bytes - before > 28 * MIB  # type: ignore[operator]


@linux
def test_shared_memory_counts() -> None:
    with MemoryMeter() as meter, mmap.mmap(-1, 32 * MIB) as shared:
        before = meter.peak_bytes
        shared.write(b"x" * 32 * MIB)
        assert meter.peak_bytes - before > 28 * MIB  # type: ignore[operator]


def test_without_proc_the_largest_resident_set_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfbyte.memory._STATUS", Path("/nowhere/status"))
    with MemoryMeter() as meter:
        pass
    assert meter.method == "largest resident set"
    assert meter.peak_bytes is None or meter.peak_bytes > MIB
    assert meter.mapped_bytes is None


def test_neither_imports_torch() -> None:
    code = (
        "import sys; from halfbyte.memory import MemoryMeter; from halfbyte.environment import environment\n"
        "with MemoryMeter() as meter: environment()\n"
        "assert meter.cuda_peak_bytes is None and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@linux
def test_large_blocks_go_back_to_the_system_when_they_are_freed() -> None:
    code = """
import torch
from halfbyte.memory import MemoryMeter, hold_little
assert hold_little()
def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])
torch.ones(1)
before = anonymous()
for _ in range(3):  # after the first, glibc would keep blocks of this size
    blocks = [torch.ones(2 << 20) for _ in range(8)]
    del blocks[::2]
    kept = anonymous() - before
    del blocks
print(kept, anonymous() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    kept, left = map(int, done.stdout.split())
    assert kept < 4 * 8192 + 2048 and left < 2048  # kB


def test_buffers_of_the_products_are_given_back() -> None:
    scratch = reference.Scratch()
    scratch.take((64, 64), torch.float32, torch.device("cpu"))
    memory.give_back()
    assert not scratch._buffers


_HOLES = """
import ctypes, sys
from halfbyte import memory
assert memory.hold_little()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
small = [libc.malloc(1 << 19) for _ in range(40)]  # 20 MB of the heap
for block in small[:-1]:  # the last one keeps its end where it is
    libc.free(block)
memory.trim() if sys.argv[1] == "trim" else memory.give_back()
large = libc.malloc(4 << 20)
print("mapped" if ctypes.c_size_t.from_address(large - 8).value & 2 else "in the heap")
memory.give_back()
print(len(memory._closed))
"""


@pytest.mark.parametrize(("how", "where"), [("trim", "in the heap"), ("give_back", "mapped")])
@linux
def test_large_blocks_are_mapped_though_the_heap_has_holes(how: str, where: str) -> None:
    done = subprocess.run([sys.executable, "-c", _HOLES, how], capture_output=True, text=True, check=True)
    found, closed = done.stdout.split("\n")[:2]
    assert found == where
    assert 10 <= int(closed) < 1024  # the holes are closed again, and few of 1 MB each are there


@linux
@pytest.mark.skipif("avx2" not in native.isas(), reason="needs native products in fp32")
def test_what_products_keep_of_this_thread_is_given_back() -> None:
    def anonymous() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return 1024 * int(line.split()[1])

    weight, x = torch.ones(4096, 4096), torch.ones(512, 4096)
    kernels.linear(x, weight)  # what the first call of all sets up stays
    memory.give_back()
    before, made = anonymous(), kernels.linear(x, weight)
    kept = anonymous() - before - made.nbytes
    del made
    memory.give_back()
    assert kept > 3 * MIB and anonymous() - before < kept // 4
    assert torch.equal(kernels.linear(x[:3], weight[:2]), torch.full((3, 2), 4096.0))
