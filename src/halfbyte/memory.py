"""How much memory a stage took.

What counts (the project's rule, the same for every figure): the peak is the largest sum over time of anonymous pages,
shared memory (memfd included), what is swapped out, and dirty pages of files. Clean pages of mapped files (a packed
model; the shared libraries, too) can be dropped by the system at any time, so they stand beside it as `mapped_bytes`.
The largest VmRSS alone would blame whoever maps files and flatter whoever swaps.

On Linux a native thread looks at the anonymous pages every other millisecond (kernels/watch.cpp). A thread of Python
reads /proc/self/status, which tells the other kinds, every 100 (every 10 where there is no native one), and
/proc/self/smaps_rollup now and then: it walks all pages, 15 ms where a GB is mapped, but only it knows which pages of
files are dirty. A peak that is shorter than the interval can be missed: at 10 ms, those of a training step's loss and
of a prompt's passes were up to 3 % too low on a fast processor. Elsewhere there is only the largest resident set,
which counts mapped files as well; `method` says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import gc
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

_STATUS, _ROLLUP = Path("/proc/self/status"), Path("/proc/self/smaps_rollup")
_NATIVE, _BESIDE, _ALONE = 0.002, 0.1, 0.01  # seconds between two looks: native, Python's beside it, and without it


def give_back() -> None:
    """Return what earlier work freed to the system, so that the next phase is not charged for it: blocks of the pool,
    scratch buffers, what MKL keeps, what torch keeps of a card, holes of the heap."""
    _open_holes()
    gc.collect()
    if (pool := sys.modules.get("halfbyte.kernels.pool")) is not None:
        pool.pool.clear()
    if (products := sys.modules.get("halfbyte.kernels.product.reference")) is not None:
        products.clear_all()
    if (native := sys.modules.get("halfbyte.kernels.native")) is not None:
        native.release_buffers()
    if (torch := sys.modules.get("torch")) is not None:
        _free_buffers(torch)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    trim()
    _close_holes()


def _free_buffers(torch: Any) -> None:
    """MKL's, which stands in torch's library where there is one."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = next((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"), None)
        if library is not None:
            ctypes.CDLL(str(library)).mkl_serv_free_buffers()


def trim() -> None:
    """Return the holes of glibc's heap to the system; on other systems nothing happens.

    What a step of a small model makes lies in the heap, in blocks below what `hold_little` has mapped, and each step
    leaves other holes: without this the demo's training peaked at 551 MB in its first step and at 621 in its 25th, with
    it at 571 from the fourth on. It takes some milliseconds a step."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


_REFUSED = ("can't allocate memory", "cannot allocate memory", "std::bad_alloc", "out of memory")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's own, that of torch on either device, or the system's."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _REFUSED)


_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h


@functools.cache
def hold_little() -> bool:
    """From here on, glibc returns blocks from 1 MB on to the system as soon as they are freed; whether that was set.

    Its own threshold grows to 32 MB, and what comes and goes then leaves holes: a step of a 1B model with every
    layer recomputed peaked at 0.96 GB instead of 0.65, in the same time. Beside `kernels.pool`, which keeps
    what native kernels return, a threshold of 4 MB saved 150,000 more page faults and held 80 MB more. Smaller
    thresholds slow small models down. Who sets MALLOC_MMAP_THRESHOLD_ has the last word.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 20) and mallopt(_M_TRIM_THRESHOLD, 8 << 20))


_IS_MAPPED = 2  # a bit of the size that glibc keeps in front of a block
_MOST_HOLES = 1024  # of 1 MB
_closed: list[int] = []  # addresses of blocks that keep holes closed


def _close_holes() -> None:
    """Take the holes of glibc's heap that hold 1 MB and more, without writing to them.

    Else, whatever its threshold, glibc puts a large block into one before it maps it, and then what comes and goes is
    not returned: once an adapter had been trained, which leaves such holes, evaluating it took up to 50 MB more than
    before. What is taken is address space, and a page for each MB."""
    if not hold_little.cache_info().currsize or not hold_little():
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    while len(_closed) < _MOST_HOLES:
        block = libc.malloc(1 << 20)
        if not block:
            return
        if ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value & _IS_MAPPED:
            libc.free(block)  # there is no hole that holds it
            return
        _closed.append(block)


def _open_holes() -> None:
    """Give the heap what `_close_holes` took."""
    if _closed:
        free = ctypes.CDLL(None).free
        while _closed:
            free(ctypes.c_void_p(_closed.pop()))


class MemoryMeter:
    """Context manager: the peaks of this process' memory since it was entered, or since `reset()`.

    `peak_bytes` and `mapped_bytes` are None where nothing measures them; `cuda_peak_bytes` is what PyTorch allocated at
    most on all CUDA devices, None without one. All can be read while the meter runs.
    """

    def __init__(self) -> None:
        self._peak = self._mapped = self._dirty_files = 0
        self._rollup_due = 0.0
        self._watch: Any = None  # of native code
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.method = "sampled" if _STATUS.exists() else "largest resident set"

    def __enter__(self) -> MemoryMeter:
        self.reset()
        if self.method == "sampled":
            self._stop.clear()
            if "torch" in sys.modules:  # which the library's module imports
                from halfbyte.kernels import native

                with contextlib.suppress(OSError):
                    self._watch = native.Watch(_NATIVE)
            self._thread = threading.Thread(target=self._look_on, name="halfbyte-memory", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._stop.set()
        try:
            if self._thread is not None:
                self._thread.join()
                self._thread = None
            self._look()
        finally:
            with self._lock:
                watch, self._watch = self._watch, None
            if watch is not None:
                watch.end()

    def reset(self) -> None:
        """Forget the peaks so far (the largest resident set of other systems can't be forgotten)."""
        self._look()  # what native code saw is of the time before
        with self._lock:
            self._peak = self._mapped = 0
            self._rollup_due = 0.0
        for torch, device in _cuda_devices():
            torch.cuda.reset_peak_memory_stats(device)
        self._look()

    @property
    def peak_bytes(self) -> int | None:
        if self.method != "sampled":
            return _largest_resident_set()
        self._look()
        return self._peak

    @property
    def mapped_bytes(self) -> int | None:
        if self.method != "sampled":
            return None
        self._look()
        return self._mapped

    @property
    def cuda_peak_bytes(self) -> int | None:
        peaks = [int(torch.cuda.max_memory_allocated(device)) for torch, device in _cuda_devices()]
        return sum(peaks) if peaks else None

    def _look_on(self) -> None:
        while not self._stop.wait(_ALONE if self._watch is None else _BESIDE):
            self._look()

    def _look(self) -> None:
        if self.method != "sampled":
            return
        with self._lock:
            now = time.monotonic()
            held = _fields(_STATUS)
            kept = held.get("RssAnon", 0) + held.get("RssShmem", 0)
            if now >= self._rollup_due:
                pages = _fields(_ROLLUP)
                dirty = pages.get("Shared_Dirty", 0) + pages.get("Private_Dirty", 0)
                # Anonymous and shared pages are dirty, too; what is dirty beyond them belongs to files.
                self._dirty_files = max(0, dirty - kept)
                took = time.monotonic() - now
                self._rollup_due = now + max(0.5, 200 * took)
            anonymous = held.get("RssAnon", 0) + held.get("VmSwap", 0)
            if self._watch is not None:  # between two looks
                anonymous = max(anonymous, self._watch.take())
            self._peak = max(self._peak, anonymous + held.get("RssShmem", 0) + self._dirty_files)
            self._mapped = max(self._mapped, held.get("RssFile", 0) - self._dirty_files)


def _fields(file: Path) -> dict[str, int]:
    """The `Name: 123 kB` lines of a file of /proc, in bytes."""
    try:
        lines = file.read_text().splitlines()
    except OSError:  # a container may hide it
        return {}
    found = {}
    for line in lines:
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            found[name] = 1024 * int(rest[:-3])
    return found


def _largest_resident_set() -> int | None:
    """Of this process since it began, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(largest if sys.platform == "darwin" else 1024 * largest)


def _cuda_devices() -> list[tuple[Any, int]]:
    """(torch, device) of each CUDA device in use; never imports torch or wakes CUDA up."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return []
    return [(torch, device) for device in range(torch.cuda.device_count())]
