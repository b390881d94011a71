"""What a run puts on disks: the files it downloads, the packed copy that it makes of them, and its own folder."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from halfbyte.checkpoint.source import cache_folder
from halfbyte.formats import QUANTISED, Weights
from halfbyte.plan.inventory import Inventory
from halfbyte.plan.weighing import gb, mapped_bytes, packed_sizes, state_bytes

_KEPT = 3  # checkpoints: two stay, and one more stands beside them while it is written (tune.state)
_EXPERT = re.compile(r"\bexperts\.\d+\.")  # apart in the files, one tensor in the model
_AS_IT_IS: dict[Weights, tuple[str, ...]] = {"bf16": ("bfloat16", "float16"), "fp32": ("float32",)}


@dataclass(frozen=True)
class Disk:
    """Bytes. `download`: of the weights, 0 where they are here; `packed`: of the copy, 0 where there is none; `run`:
    the adapter and the checkpoints, at most; `free`: where copies are kept, None where that is not this machine."""

    download: int | None
    packed: int | None
    run: int
    free: int | None = None
    cache: str = ""
    there: bool = False  # a copy by that name stands in the cache already

    @property
    def lacking(self) -> int:
        """Bytes that the copy takes beyond what is free."""
        if self.packed is None or self.free is None or self.there:
            return 0
        return max(0, self.packed - self.free)

    def __str__(self) -> str:
        parts = [("downloads", self.download), ("the packed copy takes", self.packed), ("the run", self.run)]
        words = ", ".join(f"{what} {'unknown' if size is None else gb(size)}" for what, size in parts if size != 0)
        if self.free is not None and self.packed != 0:
            words += f"; {gb(self.free)} are free in {self.cache}"
            if self.lacking:
                words += f": does not fit, {gb(self.lacking)} too much; free some, or set HALFBYTE_CACHE"
        return words


def makes_copy(inventory: Inventory, weights: Weights) -> bool:
    """Whether the files can't be used as they are: they are in another format, or experts stand apart in them."""
    if inventory.packed is not None:
        return False
    if weights in QUANTISED or inventory.dtype not in _AS_IT_IS[weights]:
        return True
    return any(spec.kind == "expert" and _EXPERT.search(spec.name) for spec in inventory.tensors)


def disk_of(inventory: Inventory, weights: Weights, adapter_bytes: int, optimiser_bytes: int, *, here: bool) -> Disk:
    """`here`: the run is planned for this machine."""
    known = inventory.parameters is not None
    packed = (_copy_bytes(inventory, weights) if known else None) if makes_copy(inventory, weights) else 0
    download = 0 if inventory.source in ("headers", "config") else inventory.stored_bytes
    if download is None and inventory.parameters is not None:
        download = 2 * inventory.parameters
    run = _KEPT * (adapter_bytes + optimiser_bytes) + 2 * adapter_bytes  # the last adapter, and the best
    if not here:
        return Disk(download, packed, run)
    cache = cache_folder()
    found = list(cache.glob(f"{inventory.name.replace('/', '--')}-{weights}-*")) if cache.is_dir() else []
    return Disk(download, packed, run, _free(cache), str(cache), bool(found))


def _copy_bytes(inventory: Inventory, weights: Weights) -> int | None:
    """Of the copy's weight files, but for their headers."""
    size = mapped_bytes(inventory, weights)
    if size is None or weights not in QUANTISED:
        return size
    tables = packed_sizes(inventory.quantised.values())[weights].tables
    return size + tables + state_bytes(weights, inventory.quantised.values())


def _free(folder: Path) -> int | None:
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return None
