"""Opening a checkpoint: a local folder or a hub id becomes a `Checkpoint`, its headers read and checked. No torch.

What is read: safetensors, in one file or in shards, in 16 or 32 bits or packed by bitsandbytes (NF4, int8). What is
not is refused by name, with the way to get something that is. No code that comes with a model is ever run.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from halfbyte.checkpoint.files import Files, Folder
from halfbyte.checkpoint.headers import TensorInfo, listed, shown
from halfbyte.checkpoint.hub import NotOnHub, download
from halfbyte.checkpoint.local import beside_the_hub, may_be_hub_id, not_here
from halfbyte.errors import CheckpointError
from halfbyte.formats import Weights

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
# what bitsandbytes stores beside a weight
PACKED_SUFFIXES = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format")
QUANT_STATE = ".quant_state."


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: a file of the checkpoint's folder and the bytes in it; its dtype is safetensors' name."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Listing:
    """What a model's configuration and headers say, wherever its files lie; nothing more of it needs to be here."""

    name: str
    files: Files
    config: dict[str, Any]
    tensors: dict[str, Stored]
    weights: Weights | None
    dtype: str
    revision: str | None = None  # commit of a hub model
    notes: tuple[str, ...] = ()  # how it came to be known


@dataclass(frozen=True)
class Checkpoint:
    """A model's files: where they are, what they hold. The tensors' values are read by `checkpoint.mapped`."""

    name: str  # the hub id, or the folder's name
    path: Path
    config: dict[str, Any]  # config.json
    tensors: dict[str, Stored]
    weights: Weights | None  # how the linear layers are packed; None: they are not
    dtype: str  # torch's name of what most of the unpacked bytes are: bfloat16, float16 or float32
    revision: str | None = None  # commit of a hub model

    @property
    def files(self) -> list[str]:
        return sorted({stored.file for stored in self.tensors.values()})

    @property
    def nbytes(self) -> int:
        return sum(stored.nbytes for stored in self.tensors.values())

    @property
    def listing(self) -> Listing:
        """The same, as far as it is known without the folder."""
        kept = (self.config, self.tensors, self.weights, self.dtype, self.revision)
        return Listing(self.name, Folder(self.path), *kept)

    @cached_property
    def quant_states(self) -> dict[str, list[str]]:
        """The quant states that stand beside each packed weight, by the weight's name."""
        found: dict[str, list[str]] = {}
        for name in self.tensors:
            owner, state, _ = name.partition(QUANT_STATE)
            if state:
                found.setdefault(owner, []).append(name)
        return found

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 that tells one checkpoint from another, at the cost of a few MiB of reading a file.

        It covers the names, dtypes and shapes of all tensors, all of config.json, and of each weight file the size,
        the first and last MiB and 16 blocks of 64 KiB evenly between. Not covered: the tokenizer, the folder's name,
        and a change of a few values in the midst of a large file.
        """
        digest = hashlib.sha256()
        for name, stored in sorted(self.tensors.items()):
            digest.update(f"{name}\0{stored.dtype}\0{stored.shape}\n".encode())
        digest.update((self.path / CONFIG).read_bytes())
        for file in self.files:
            _sample(self.path / file, digest)
        return digest.hexdigest()

    @cached_property
    def identity(self) -> str:
        """A sha256 to use again by what was made of this checkpoint: where it is the same, so are the weights.

        It is the fingerprint and, of a local folder, the size and the time of writing of each weight file, so that a
        change which the fingerprint's samples miss counts, too. A commit of the hub does not change.
        """
        if self.revision is not None:
            return self.fingerprint
        found = [(name, (self.path / name).stat()) for name in self.files]
        stamps = "".join(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n" for name, stat in found)
        return hashlib.sha256(f"{self.fingerprint}\n{stamps}".encode()).hexdigest()


def _sample(file: Path, digest: Any, edge: int = 1 << 20, block: int = 1 << 16, blocks: int = 16) -> None:
    size = file.stat().st_size
    digest.update(f"{size}\n".encode())
    places = {0: edge, max(0, size - edge): edge}
    places.update({size * (k + 1) // (blocks + 1): block for k in range(blocks)} if size > 4 * edge else {})
    with file.open("rb") as stream:
        for place, count in sorted(places.items()):
            stream.seek(place)
            digest.update(stream.read(count))


def open_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """Open a local folder or a hub id (downloaded once, by huggingface_hub, to its own cache).

    `revision` is a branch, tag or commit of a hub model. HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE count.
    Raises CheckpointError for whatever is missing, broken or of a kind that is not read.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return open_folder(path)
    if path.exists():
        raise _a_file(path)
    if not may_be_hub_id(model, revision):
        raise not_here(model)
    try:
        folder = download(model, revision)
    except NotOnHub as error:
        raise beside_the_hub(model, error) from None
    commit = folder.name if folder.parent.name == "snapshots" else None
    return open_folder(folder, name=model, revision=commit)


def open_folder(path: Path, *, name: str | None = None, revision: str | None = None) -> Checkpoint:
    """Open a local folder. Raises CheckpointError."""
    try:
        files = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise CheckpointError("this folder can't be read", where=path, found=error.strerror,
                              do="make it readable") from None  # fmt: skip
    if not files:
        raise CheckpointError("this folder is empty", where=path, do="give the folder that holds config.json")
    if SINGLE not in files and INDEX not in files:
        raise _no_weights(path, files)
    if CONFIG not in files:
        raise CheckpointError(
            "this folder has no config.json", where=path, do="copy config.json from where the weights came from"
        )
    found = list_files(Folder(path), name or path.resolve().name, sharded=SINGLE not in files, revision=revision)
    return Checkpoint(found.name, path, found.config, found.tensors, found.weights, found.dtype, revision)


def list_files(
    files: Files, name: str, *, sharded: bool, config: dict[str, Any] | None = None, revision: str | None = None
) -> Listing:
    """Read and check the headers of a model's files; `config` is config.json where it was read already.

    Raises CheckpointError for what is missing, broken or of a kind that is not read.
    """
    config = files.json(CONFIG) if config is None else config
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(
            "config.json names no model_type", where=files.where(CONFIG), do="use the model's own file"
        )
    weights = packed_format(config, files.where())
    tensors = _shards(files) if sharded else _one_file(files)
    _check_packed(tensors, weights, files.where())
    return Listing(name, files, config, tensors, weights, _main_dtype(tensors, config), revision)


def is_packed_part(name: str) -> bool:
    """Whether a tensor of this name stands beside a weight that bitsandbytes packed."""
    return name.endswith(PACKED_SUFFIXES) or QUANT_STATE in name


def packed_format(config: Mapping[str, Any], where: object) -> Weights | None:
    """What `quantization_config` of a config.json says. Raises CheckpointError for a format that is not read."""
    settings = config.get("quantization_config") or config.get("compression_config")
    if not settings:
        return None

    def refuse(found: str) -> CheckpointError:
        return CheckpointError(
            f"this checkpoint is quantised in a format that is not read: {found}",
            where=where,
            do="use the model's 16-bit checkpoint, or one that bitsandbytes packed as nf4 or in 8 bits",
        )

    if not isinstance(settings, dict):
        raise refuse(shown(settings))
    method = shown(str(settings.get("quant_method") or "bitsandbytes"))
    four = settings.get("load_in_4bit") or settings.get("_load_in_4bit")
    eight = settings.get("load_in_8bit") or settings.get("_load_in_8bit")
    if method != "bitsandbytes" and not method.startswith("QuantizationMethod.BITS"):
        raise refuse(method)
    if bool(four) == bool(eight):
        raise refuse("bitsandbytes with neither, or both, of load_in_4bit and load_in_8bit")
    if eight:
        if settings.get("llm_int8_has_fp16_weight"):
            raise refuse("bitsandbytes 8-bit with llm_int8_has_fp16_weight")
        return "int8"
    kind = settings.get("bnb_4bit_quant_type", "fp4")
    if kind != "nf4":
        raise refuse(f"bitsandbytes {shown(kind)}")
    return "nf4" if settings.get("bnb_4bit_use_double_quant") else "nf4-single"


def _one_file(files: Files) -> dict[str, Stored]:
    (header,) = files.headers([SINGLE])
    return {name: _stored(SINGLE, info) for name, info in header.items()}


def _stored(file: str, info: TensorInfo) -> Stored:
    return Stored(file, info.dtype, info.shape, info.start, info.end)


_MOST_SHARDS = 2000  # far beyond any model; of the hub, each one is two requests


def _shards(files: Files) -> dict[str, Stored]:
    """The tensors of all shards; the index and the shards' own headers must say the same."""
    index, where = files.json(INDEX).get("weight_map"), files.where(INDEX)
    if not isinstance(index, dict) or not all(isinstance(shard, str) for shard in index.values()):
        raise CheckpointError("this index has no weight_map", where=where, do="fetch the file again")
    shards = sorted(set(index.values()))
    if len(shards) > _MOST_SHARDS:
        raise CheckpointError("this index names more files than any model has", where=where, found=len(shards),
                              do="fetch the file again")  # fmt: skip
    outside = [shown(shard) for shard in shards if not _is_plain(shard)]
    if outside:
        raise CheckpointError("this index names files that do not lie beside it; they are not read", where=where,
                              found=", ".join(outside[:10]),
                              do="fetch the index again, from where you trust it")  # fmt: skip
    missing = files.missing(shards)
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(shards)} shards are missing",
            where=files.where(),
            found=f"no {shown(', '.join(missing), 1000)}",
            do="finish the download; for a hub model, run the command again",
        )
    tensors: dict[str, Stored] = {}
    faults: list[str] = []
    for shard, header in zip(shards, files.headers(shards), strict=True):
        for name, info in header.items():
            if index.get(name) != shard:
                faults.append(f"{shown(name)}: in {shard}, but the index says {shown(index.get(name, 'nothing'))}")
            tensors[name] = _stored(shard, info)
    faults += [f"{shown(name)}: not in {index[name]}" for name in index if name not in tensors]
    if faults:
        raise CheckpointError(
            "the index and the shards contradict each other",
            where=where,
            found=listed(faults),
            do="fetch all files again, from the same revision",
        )
    return tensors


def _is_plain(file: str) -> bool:
    """Whether this is the name of a file in the model's own folder."""
    return Path(file).name == file and file.isprintable() and "\\" not in file


def _check_packed(tensors: Mapping[str, Stored], weights: Weights | None, where: object) -> None:
    parts = [name for name in tensors if is_packed_part(name)]
    if parts and weights is None:
        raise CheckpointError(
            "this checkpoint holds packed weights, but its config.json has no quantization_config",
            where=where,
            found=f"{shown(parts[0])} and {len(parts) - 1} more",
            do="use the config.json that was saved with the weights",
        )
    if weights is not None and not parts:
        raise CheckpointError(
            f"config.json says that this checkpoint is packed ({weights}), but no tensor is",
            where=where,
            do="remove quantization_config from config.json if the weights are plain, or fetch the packed ones",
        )


def _main_dtype(tensors: Mapping[str, Stored], config: Mapping[str, Any]) -> str:
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float32"}
    count: Counter[str] = Counter()
    for name, stored in tensors.items():
        if stored.dtype in names and not is_packed_part(name):
            count[names[stored.dtype]] += stored.nbytes
    if count:
        return count.most_common(1)[0][0]
    said = str(config.get("dtype") or config.get("torch_dtype"))
    return said if said in names.values() else "bfloat16"


_CONVERT = "AutoModelForCausalLM.from_pretrained('{path}'{more}).save_pretrained('NEW_FOLDER')"


def _no_weights(path: Path, files: list[str]) -> CheckpointError:
    """Why a folder without model.safetensors is none that can be opened."""
    old = [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
    gguf = [name for name in files if name.endswith(".gguf")]
    if gguf:
        return _gguf(path, gguf[0])
    if "adapter_config.json" in files:
        return CheckpointError(
            "this folder holds an adapter, not a model", where=path, do="name the base model, and this with --adapter"
        )
    if old:
        return CheckpointError(
            "this folder holds pickled weights, which can run code when they are opened and are not read",
            where=path,
            found=", ".join(old[:5]),
            do="convert them with transformers: " + _CONVERT.format(path=path, more=""),
        )
    first = ", ".join(files[:10]) + (", ..." if len(files) > 10 else "")
    return CheckpointError(
        f"this folder is neither a model nor a run: it has neither {SINGLE} nor {INDEX}, and no run.yaml",
        where=path,
        found=first,
        do="give a folder that holds a model in safetensors, or one that halfbyte tune left",
    )


def _gguf(path: Path, file: str) -> CheckpointError:
    return CheckpointError(
        "GGUF files are not read",
        where=path,
        found=file,
        do="use the model's safetensors checkpoint, or convert with transformers: "
        + _CONVERT.format(path=path, more=f", gguf_file='{file}'"),
    )


def _a_file(path: Path) -> CheckpointError:
    if path.suffix == ".gguf":
        return _gguf(path.parent, path.name)
    return CheckpointError(
        "this is a file; a model is a folder", where=path, do=f"give the folder that holds it: {path.parent}"
    )


def cache_folder() -> Path:
    """Where packed copies are kept: HALFBYTE_CACHE, by default ~/.cache/halfbyte."""
    return Path(os.environ.get("HALFBYTE_CACHE") or Path.home() / ".cache" / "halfbyte").expanduser()
