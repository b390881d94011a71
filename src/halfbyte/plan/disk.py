"""What a run puts on disks: the files it downloads, the packed copy that it makes of them, and its own folder."""

from __future__ import annotations

import glob
import os
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
    new: int = 0  # what of these comes onto that disk: not a copy, or a download, that seems to be there already

    @property
    def lacking(self) -> int:
        """Bytes that are too few there."""
        return 0 if self.free is None else max(0, self.new - self.free)

    def __str__(self) -> str:
        parts = [("downloads", self.download), ("the packed copy takes", self.packed),
                 ("the run's adapter and checkpoints at most", self.run)]  # fmt: skip
        words = ", ".join(f"{what} {'unknown' if size is None else gb(size)}" for what, size in parts if size != 0)
        if self.free is not None:
            words += f"; {gb(self.free)} are free on the disk of {self.cache}"
            if self.lacking:
                words += f": does not fit, {gb(self.lacking)} too much; free some, or set HALFBYTE_CACHE (the copy) or "
                words += "HF_HOME (the download) to a folder on another disk"
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
    name = glob.escape(inventory.name.replace("/", "--"))
    there = cache.is_dir() and any(cache.glob(f"{name}-{weights}-*"))
    fetched = (_hub_cache() / f"models--{inventory.name.replace('/', '--')}").is_dir()
    beside = 0 if fetched or not _same_disk(cache, _hub_cache()) else download or 0
    beside += run if _same_disk(cache, Path.cwd()) else 0  # where RUN.yaml's `out` is, unless it says otherwise
    return Disk(download, packed, run, _free(cache), str(cache), beside + (0 if there else packed or 0))


def _copy_bytes(inventory: Inventory, weights: Weights) -> int | None:
    """Of the copy's weight files, but for their headers."""
    size = mapped_bytes(inventory, weights)
    if size is None or weights not in QUANTISED:
        return size
    tables = packed_sizes(inventory.quantised.values())[weights].tables
    return size + tables + state_bytes(weights, inventory.quantised.values())


def _hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _existing(folder: Path) -> Path:
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)


def _same_disk(one: Path, other: Path) -> bool:
    try:
        return _existing(one).stat().st_dev == _existing(other).stat().st_dev
    except OSError:
        return False


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(_existing(folder)).free
    except OSError:
        return None
