"""Where the tensors of a model are known from: headers of a folder or a hub model, config.json alone, the catalogue.

The headers are the truth where there are any: what lies in the files is counted, with three corrections, each of them
noted. An output head that is tied is counted once even if it is stored twice; buffers that older versions saved
(rotary frequencies, causal masks) are no parameters; a matrix that is packed already counts with the shape that it
unpacks to. Of a hub model only configuration and headers are fetched (`checkpoint/remote.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from halfbyte.checkpoint.headers import shown
from halfbyte.checkpoint.local import is_yaml, may_be_hub_id, not_here
from halfbyte.checkpoint.source import QUANT_STATE, Listing, Stored, is_packed_part, open_folder
from halfbyte.errors import CheckpointError, ConfigError
from halfbyte.formats import Weights
from halfbyte.plan import catalogue
from halfbyte.plan.families import assumptions, defaults_of, not_loaded
from halfbyte.plan.mixtures import shapes_of
from halfbyte.plan.shapes import (
    Dimensions,
    TensorSpec,
    dimensions,
    is_known,
    kind_of,
    text_config,
    type_of,
)


@dataclass(frozen=True)
class Inventory:
    """The tensors of a model. `unknown` maps what can't be said to the reason why."""

    name: str
    source: str  # "headers", "hub" (headers, too), "config" or "catalogue"
    where: str
    config: Mapping[str, Any]
    tensors: tuple[TensorSpec, ...]
    dims: Dimensions | None  # None: a family whose activations are not modelled
    packed: Weights | None = None  # the checkpoint is packed already
    largest_stored_bytes: int | None = None  # of the tensors in the files
    stored_bytes: int | None = None  # of the files with the weights; None: not known
    dtype: str = "bfloat16"  # of what is not packed in the files; where they are not known, what most have
    notes: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()  # linear layers that a packed checkpoint keeps in 16 bits
    tokenizer_bytes: int | None = None  # of its file; None: not known

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of the linear layers of the blocks, by module name."""
        return {spec.module: (spec.shape[0], spec.shape[1]) for spec in self.tensors if spec.kind == "linear"}

    @property
    def quantised(self) -> dict[str, tuple[int, int]]:
        """Those of `linears` that a quantised format packs: all, where the checkpoint itself is not packed."""
        return {name: shape for name, shape in self.linears.items() if name not in self.kept}

    @property
    def parameters(self) -> int | None:
        return None if "parameters" in self.unknown else count_parameters(self.tensors)


def take_inventory(name_or_path: str, revision: str | None = None) -> Inventory:
    """The tensors of a local folder, a model of the catalogue or one of the hub; the first of these that there is.

    A `revision` (branch, tag or commit) asks the hub, whatever the catalogue has. Raises ConfigError for what is none
    of them, and CheckpointError for files that can't be read.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return from_folder(path)
    if path.exists():
        do = "for a run file, plan the run: halfbyte plan RUN.yaml" if path.suffix in (".yaml", ".yml") else None
        raise ConfigError("a file stands where a model's folder is expected", where=path,
                          do=do or "name the folder that holds config.json")  # fmt: skip
    is_hub_id = bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name_or_path)) and ".." not in name_or_path
    entry = None if _looks_like_path(name_or_path) or (revision and is_hub_id) else catalogue.lookup(name_or_path)
    if entry is not None and revision:
        raise ConfigError("a revision is of a model on the hub, and this is a short name of the catalogue",
                          where=name_or_path, found=f"revision {revision!r}",
                          do=f"write the hub id: {entry.name}")  # fmt: skip
    if entry is not None:
        return from_catalogue(entry)
    if _looks_like_path(name_or_path) or (is_hub_id and not may_be_hub_id(name_or_path, revision)):
        error = not_here(name_or_path)
        raise ConfigError(error.what, where=error.where, found=error.found, do=error.do)
    if is_hub_id:
        return _from_hub(name_or_path, revision)
    catalogue.find(name_or_path)
    raise AssertionError("find raises where lookup finds nothing")


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name or name.endswith("/") or is_yaml(name)
    )


def _from_hub(model: str, revision: str | None) -> Inventory:
    from halfbyte.checkpoint.remote import list_hub_model  # not before it is needed: it takes a tenth of a second

    try:
        return from_listing(list_hub_model(model, revision), "hub")
    except CheckpointError as error:
        near = catalogue.nearest_names(model)
        if not near:
            raise
        hint = f"{error.do}; the catalogue has {', '.join(near)}, for which no network is needed"
        raise CheckpointError(error.what, where=error.where, found=error.found, do=hint) from None


def from_catalogue(entry: catalogue.Entry) -> Inventory:
    """The tensors of a model of the catalogue; what its null fields leave open stands in `unknown`."""
    config = entry.config
    tensors, dims, modelled = shapes_of(config, where=f"the catalogue's entry {entry.name}")
    unknown = _unknown(entry, dims, tensors)
    notes = [*not_loaded(config), *assumptions(config)]
    if entry.fields.get("notes") and not unknown:  # else the reason says it
        notes.append(f"the catalogue notes: {entry.fields['notes']}")
    for name, words in (entry.fields.get("conflicts") or {}).items():
        notes.append(f"sources disagree on {name}: {'; '.join(words)}")
    return Inventory(
        name=entry.name,
        source="catalogue",
        where="the packaged catalogue",
        config=config,
        tensors=tuple(tensors),
        dims=dims if modelled else None,
        notes=notes,
        unknown=unknown,
    )


def _unknown(entry: catalogue.Entry, dims: Dimensions, tensors: list[TensorSpec]) -> dict[str, str]:
    if dims.vocabulary is None:
        return {"parameters": entry.unknown("vocab_size")}
    if dims.tied is None:
        least, head = count_parameters(tensors), dims.vocabulary * dims.hidden
        either = f"{least:,} if the output head is tied to the embedding, {least + head:,} if it is not"
        return {"parameters": f"{entry.unknown('tie_word_embeddings')}; {either}"}
    return {}


def from_folder(folder: Path) -> Inventory:
    """The tensors of a local model folder, from its headers, or from config.json where it has no weights at all.

    Raises CheckpointError for weights that are broken or of a kind that is not read, ConfigError for a config.json
    that the shapes do not follow from.
    """
    suffixes = {file.suffix for file in folder.iterdir()}
    if not suffixes & _WEIGHT_SUFFIXES and not (folder / "model.safetensors.index.json").exists():
        return _from_config(folder)
    return replace(from_listing(open_folder(folder).listing), tokenizer_bytes=_tokenizer_bytes(folder))


def _tokenizer_bytes(folder: Path) -> int | None:
    files = (folder / name for name in ("tokenizer.json", "tokenizer.model"))
    return next((file.stat().st_size for file in files if file.is_file()), None)


_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}


def _from_config(folder: Path) -> Inventory:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("the folder is no model: it holds neither config.json nor safetensors files", where=folder,
                          do="name a Hugging Face model folder, or a model of the catalogue") from None  # fmt: skip
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("config.json can't be read", where=file, found=str(error),
                          do="use the model's own file") from None  # fmt: skip
    if not isinstance(config, dict):
        raise ConfigError("config.json holds no object", where=file, found=type(config).__name__,
                          do="use the model's own file")  # fmt: skip
    tensors, dims, modelled = shapes_of(config, where=file)
    if dims.tied is None or dims.vocabulary is None:
        missing = "tie_word_embeddings" if dims.tied is None else "vocab_size"
        raise ConfigError("the configuration leaves open what the shapes follow from", where=file,
                          found=f"'{missing}' is null", do="write its value into config.json")  # fmt: skip
    notes = ["from config.json alone: the folder holds no safetensors files", *not_loaded(config)]
    if config.get("quantization_config"):
        notes.append("config.json names a quantisation; without the files it is counted as a 16-bit model")
    if "text_config" in config:
        notes.append("the language model alone is counted: config.json describes other towers, too")
    known = dims if modelled else None
    size = _tokenizer_bytes(folder)
    return Inventory(folder.resolve().name, "config", str(folder), config, tuple(tensors), known, notes=notes,
                     tokenizer_bytes=size)  # fmt: skip


_BUFFER = re.compile(r"(rotary_emb\.(inv_freq|cos_cached|sin_cached)|(^|\.)attn\.(masked_)?bias)$")


_BLOCK = re.compile(r"\.layers\.(\d+)\.")


def from_listing(listing: Listing, source: str = "headers") -> Inventory:
    """The tensors of a model by its headers, wherever they lie."""
    config = text_config(listing.config)
    model_type = type_of(config)
    dims = dimensions(config, where=listing.files.where("config.json")) if is_known(config) else None
    shapes = _unpacked_shapes(listing, every=source != "hub")
    notes = [*listing.notes, *not_loaded(listing.config)]
    specs: list[TensorSpec] = []
    for name, stored in listing.tensors.items():
        if _BUFFER.search(name) or is_packed_part(name):
            continue
        shape = shapes.get(name, stored.shape)
        specs.append(TensorSpec(name, shape, kind_of(name, shape, model_type)))
    kept = _kept_in_16_bits(listing, specs)
    if listing.weights is not None:
        but = f"; {len(kept)} linear layers in it are not ({next(iter(kept))}, ...)" if kept else ""
        notes.append(f"the checkpoint is packed already: {listing.weights}{but}")
    tied = bool({**defaults_of(model_type), **config}.get("tie_word_embeddings", False))
    heads = [spec for spec in specs if spec.kind == "head"]
    if tied and heads:
        specs = [spec for spec in specs if spec.kind != "head"]
        notes.append(f"{heads[0].name} is stored, but tied to the embedding: counted once")
    blocks = {found[1] for spec in specs if (found := _BLOCK.search(spec.name))}
    if dims is not None and blocks and len(blocks) < dims.layers:
        notes.append(f"config.json says {dims.layers} layers, and the files hold {len(blocks)}: such a model can't be "
                     "opened, and what is said of its activations is of the former")  # fmt: skip
    return Inventory(
        name=listing.name,
        source=source,
        where=str(listing.files.where()),
        config=config,
        tensors=tuple(specs),
        dims=dims,
        packed=listing.weights,
        largest_stored_bytes=max((stored.nbytes for stored in listing.tensors.values()), default=0),
        stored_bytes=_file_bytes(listing),
        dtype=listing.dtype,
        notes=notes,
        kept=frozenset(kept),
    )


def _file_bytes(listing: Listing) -> int:
    """Of all files: each ends with its last tensor."""
    ends: dict[str, int] = {}
    for stored in listing.tensors.values():
        ends[stored.file] = max(ends.get(stored.file, 0), stored.end)
    return sum(ends.values())


def _kept_in_16_bits(listing: Listing, specs: list[TensorSpec]) -> list[str]:
    """The linear layers that a packed checkpoint does not pack: bitsandbytes skips those it is told to."""
    if listing.weights is None:
        return []
    floats = {"BF16", "F16", "F32"}
    return [spec.module for spec in specs if spec.kind == "linear" and listing.tensors[spec.name].dtype in floats]


def count_parameters(tensors: Iterable[TensorSpec]) -> int:
    """How many parameters the tensors hold; buffers are none."""
    return sum(spec.count for spec in tensors if spec.kind != "buffer")


_STATE = f"{QUANT_STATE}bitsandbytes__nf4"
_STATE_LIMIT = 65536  # bytes; bitsandbytes' own quant states are about 200


def _unpacked_shapes(listing: Listing, *, every: bool) -> dict[str, tuple[int, ...]]:
    """The shapes that 4-bit weights unpack to: quant states, JSON objects stored beside them, say so.

    Not `every` one is read of a hub model, where each is a request: layers that differ in nothing but the number of
    their block and have as many codes have one shape.
    """
    known: dict[tuple[str, int], tuple[int, ...]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, stored in listing.tensors.items():
        state = listing.tensors.get(name + _STATE)
        if state is None:
            continue
        alike = (name if every else re.sub(r"\d+", "*", name), stored.nbytes)
        if alike not in known:
            known[alike] = _read_shape(listing, name, state, stored.nbytes)
        shapes[name] = known[alike]
    return shapes


def _read_shape(listing: Listing, name: str, state: Stored, codes: int) -> tuple[int, ...]:
    try:
        text = listing.files.read(state.file, state.start, min(state.nbytes, _STATE_LIMIT))
        shape = json.loads(text)["shape"]
        if len(shape) != 2 or not all(type(size) is int and 0 < size < 2**31 for size in shape):
            raise ValueError(f"{shown(shape)} is no shape of a matrix")
        if -(-shape[0] * shape[1] // 2) != codes:
            raise ValueError(f"{codes:,} bytes of codes are not those of a matrix of {shape[0]:,} x {shape[1]:,}")
        return tuple(shape)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        where, found = listing.files.where(state.file), shown(str(error))
        raise CheckpointError(f"the quant state of {shown(name)} can't be read", where=where, found=found,
                              do="pack or fetch the model again") from None  # fmt: skip
