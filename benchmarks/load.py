"""From a bf16 checkpoint to a model in NF4: packing to disk, opening what was packed, and the stock stack's load.

Each in a process of its own, imports left out. "cold" means that the file's pages were dropped from the cache before
(posix_fadvise) and `from_disk` is the share that then came through the disk's interface; what lies behind it (a host's
cache, say) can't be told from here. "warm" means read just before, as far as it fits in memory. The limit is what the
disk allows: reading the bf16 file, and writing as many bytes as the packed one has, flushed as packing flushes.

    python benchmarks/load.py --shape 1b --folder /path/with/checkpoints
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import importlib
import os
import shutil
import time

from benchmarks import bench, shapes
from benchmarks.bench import Bench
from benchmarks.common import rows_of
from benchmarks.turns import Phase, working

BUFFER = 8 << 20
_IO = Path("/proc/self/io")
CACHES = ("cold", "warm")
OPENINGS = 3


def weights_file(folder: str, kind: str) -> Path:
    return max((Path(folder) / kind).glob("*.safetensors"), key=lambda file: file.stat().st_size)


def drop_from_cache(file: Path) -> None:
    """Ask the system to forget the file's pages; those that some process maps stay."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read(file: Path) -> None:
    buffer = bytearray(BUFFER)
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


def bytes_from_disk() -> int:
    """What this process has fetched through the disk's interface so far; 0 where the system does not tell."""
    lines = _IO.read_text(encoding="utf-8").splitlines() if _IO.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), 0)


def prepare(file: Path, cache: str) -> None:
    """Make `file` cold or warm."""
    if cache == "cold":
        drop_from_cache(file)
    else:
        read(file)


def disk(folder: str, caches: list[str]) -> Phase:
    """A turn: reading the bf16 file from a cold and from a warm cache, and writing as much as the packed file."""
    source, nbytes = weights_file(folder, "bf16"), weights_file(folder, "nf4").stat().st_size
    scratch, block = Path(folder) / "written", os.urandom(BUFFER)
    yield {"file_bytes": source.stat().st_size, "packed_bytes": nbytes}
    while True:
        figures: dict[str, float] = {}
        for cache in caches:
            prepare(source, cache)
            began, before = time.perf_counter(), bytes_from_disk()
            read(source)
            figures[f"read_{cache}_seconds"] = time.perf_counter() - began
            figures[f"read_{cache}_from_disk"] = (bytes_from_disk() - before) / source.stat().st_size
        began = time.perf_counter()
        with scratch.open("wb", buffering=0) as stream:
            for start in range(0, nbytes, BUFFER):
                stream.write(block[: min(BUFFER, nbytes - start)])
            os.fsync(stream.fileno())
        figures["write_seconds"] = time.perf_counter() - began
        scratch.unlink()
        yield figures


def pack(folder: str, caches: list[str]) -> Phase:
    """A turn: bf16 to NF4 on disk, from a cold and from a warm cache, with the peak of memory."""
    from halfbyte.memory import MemoryMeter, give_back

    _imports()
    source, out = weights_file(folder, "bf16"), Path(folder) / "packed again"
    yield {}
    while True:
        figures: dict[str, float] = {}
        for cache in caches:
            prepare(source, cache)
            give_back()
            with MemoryMeter() as meter:
                began = time.perf_counter()
                shapes.pack_to(Path(folder) / "bf16", out)
                figures[f"{cache}_seconds"] = time.perf_counter() - began
            figures[f"{cache}_peak_bytes"] = meter.peak_bytes or 0
            figures[f"{cache}_mapped_bytes"] = meter.mapped_bytes or 0
            shutil.rmtree(out)
        yield figures


def opened(folder: str) -> Phase:
    """Once, in a fresh process: opening the packed checkpoint after imports, and by how much memory grows."""
    from halfbyte.memory import MemoryMeter, give_back
    from halfbyte.model.build import load_model

    _imports()
    give_back()
    with MemoryMeter() as meter:
        before, began = meter.peak_bytes or 0, time.perf_counter()
        load_model(str(Path(folder) / "nf4"))
        seconds = time.perf_counter() - began
        yield {"seconds": seconds, "growth_bytes": (meter.peak_bytes or 0) - before}


def _imports() -> None:
    """What transformers imports only when a model is built."""
    for name in ("transformers", "transformers.models.llama.modeling_llama", "halfbyte.model.build",
                 "halfbyte.checkpoint.pack", "halfbyte.memory"):  # fmt: skip
        importlib.import_module(name)


def measure(run: Bench) -> None:
    """Packing beside the disk, opening, and the peer's load."""
    where, shape, large = str(run.folder), run.shape, run.shape == "8b"
    arguments = {"folder": where, "caches": CACHES[:1] if large else CACHES}
    phases = {"limit": ("benchmarks.load:disk", arguments), "halfbyte": ("benchmarks.load:pack", arguments)}
    with working(phases) as workers:
        sizes = workers["limit"].opened
        # the largest is packed once when the checkpoint is made; a first turn that does not count would only wait
        outcomes = run.turns(workers, "pack", rounds=0 if large else run.rounds)
    for who, outcome in outcomes.items():
        counted = outcome.turns or [outcome.first]
        run.add("load", rows_of("pack", shape, "", who, [{**sizes, **t} if who == "limit" else t for t in counted]))
    times = []
    for _ in range(OPENINGS):
        with working({"": ("benchmarks.load:opened", {"folder": where})}) as workers:
            times.append(workers[""].opened)
    run.add("load", rows_of("open", shape, "packed checkpoint", "halfbyte", times))
    read(weights_file(where, "bf16"))  # a warm cache is all the peer can wish for
    run.add("load", rows_of("open", shape, "bf16 checkpoint into NF4", "peer", [run.peer.opened]))


if __name__ == "__main__":
    bench.main(__doc__, None, measure)
