"""Where the tensors of a model are known from: a local folder's headers, its config.json alone, or the catalogue.

The headers are the truth where there are any: what lies in the files is counted, with three corrections, each of them
noted. An output head that is tied is counted once even if it is stored twice; buffers that older versions saved
(rotary frequencies, causal masks) are no parameters; a matrix that is packed already counts with the shape that it
unpacks to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfbyte.checkpoint.source import Checkpoint, is_packed_part, open_folder
from halfbyte.errors import CheckpointError, ConfigError
from halfbyte.formats import Weights
from halfbyte.plan import catalogue
from halfbyte.plan.shapes import (
    FAMILIES,
    Dimensions,
    TensorSpec,
    assumptions,
    dimensions,
    is_known,
    kind_of,
    tensors_from,
    text_config,
)


@dataclass(frozen=True)
class Inventory:
    """The tensors of a model. `unknown` maps what can't be said to the reason why."""

    name: str
    source: str  # "headers", "config" or "catalogue"
    where: str
    config: Mapping[str, Any]
    tensors: tuple[TensorSpec, ...]
    dims: Dimensions | None  # None: a family whose activations are not modelled
    packed: Weights | None = None  # the checkpoint is packed already
    largest_stored_bytes: int | None = None  # of the tensors in the files
    notes: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of the linear layers of the blocks, by module name."""
        return {spec.module: (spec.shape[0], spec.shape[1]) for spec in self.tensors if spec.kind == "linear"}

    @property
    def parameters(self) -> int | None:
        return None if "parameters" in self.unknown else sum(spec.count for spec in self.tensors)


def take_inventory(name_or_path: str) -> Inventory:
    """The tensors of a local folder or of a model of the catalogue; a folder wins over a name.

    Raises ConfigError for what is neither, and CheckpointError for a folder that can't be read.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return from_folder(path)
    if path.exists():
        do = "for a run file, plan the run: halfbyte plan RUN.yaml" if path.suffix in (".yaml", ".yml") else None
        raise ConfigError("a file stands where a model's folder is expected", where=path,
                          do=do or "name the folder that holds config.json")  # fmt: skip
    entry = None if _looks_like_path(name_or_path) else catalogue.lookup(name_or_path)
    if entry is not None:
        return from_catalogue(entry)
    near = catalogue.nearest_names(name_or_path)
    hint = f"; the catalogue has {', '.join(near)}" if near else ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path) and not _looks_like_path(name_or_path):
        raise ConfigError(
            f"'{name_or_path}' is no folder here, and the catalogue does not have it",
            do="fetch its config.json and safetensors files into a folder (hf download ID --local-dir FOLDER) and plan "
            f"that folder; config.json alone will do for {', '.join(sorted(FAMILIES))}{hint}",
        )
    if _looks_like_path(name_or_path):
        raise ConfigError("there is no such folder", where=name_or_path, do="check the path")
    catalogue.find(name_or_path)
    raise AssertionError("find raises where lookup finds nothing")


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name or name.endswith("/")


def from_catalogue(entry: catalogue.Entry) -> Inventory:
    """The tensors of a model of the catalogue; what its null fields leave open stands in `unknown`."""
    config = entry.config
    dims = dimensions(config, where=f"the catalogue's entry {entry.name}")
    tensors = tensors_from(dims)
    unknown = _unknown(entry, dims, tensors)
    notes = assumptions(config)
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
        dims=dims,
        notes=notes,
        unknown=unknown,
    )


def _unknown(entry: catalogue.Entry, dims: Dimensions, tensors: list[TensorSpec]) -> dict[str, str]:
    if dims.vocabulary is None:
        return {"parameters": entry.unknown("vocab_size")}
    if dims.tied is None:
        least, head = sum(spec.count for spec in tensors), dims.vocabulary * dims.hidden
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
    return from_checkpoint(open_folder(folder))


_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}


def _from_config(folder: Path) -> Inventory:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("the folder is no model: it holds neither config.json nor safetensors files", where=folder,
                          do="name a Hugging Face model folder, or a model of the catalogue") from None  # fmt: skip
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("config.json can't be read", where=file, found=str(error)) from None
    if not isinstance(config, dict):
        raise ConfigError("config.json holds no object", where=file, found=type(config).__name__)
    dims = dimensions(config, where=file)
    if dims.tied is None or dims.vocabulary is None:
        missing = "tie_word_embeddings" if dims.tied is None else "vocab_size"
        raise ConfigError("the configuration leaves open what the shapes follow from", where=file,
                          found=f"'{missing}' is null", do="write its value into config.json")  # fmt: skip
    notes = ["from config.json alone: the folder holds no safetensors files"]
    if config.get("quantization_config"):
        notes.append("config.json names a quantisation; without the files it is counted as a 16-bit model")
    if "text_config" in config:
        notes.append("the language model alone is counted: config.json describes other towers, too")
    return Inventory(folder.resolve().name, "config", str(folder), config, tuple(tensors_from(dims)), dims, notes=notes)


_BUFFER = re.compile(r"(rotary_emb\.(inv_freq|cos_cached|sin_cached)|(^|\.)attn\.(masked_)?bias)$")


def from_checkpoint(checkpoint: Checkpoint) -> Inventory:
    """The tensors of an opened checkpoint, by its headers."""
    config = text_config(checkpoint.config)
    model_type = config.get("model_type")
    dims = dimensions(config, where=checkpoint.path / "config.json") if is_known(config) else None
    notes: list[str] = []
    specs: list[TensorSpec] = []
    for name, stored in checkpoint.tensors.items():
        if _BUFFER.search(name) or is_packed_part(name):
            continue
        shape = _unpacked_shape(checkpoint, name) or tuple(stored.shape)
        specs.append(TensorSpec(name, shape, kind_of(name, shape, model_type)))
    if checkpoint.weights is not None:
        notes.append(f"the checkpoint is packed already: {checkpoint.weights}")
    defaults = FAMILIES[model_type].defaults if model_type in FAMILIES else {}
    tied = bool({**defaults, **config}.get("tie_word_embeddings", False))
    heads = [spec for spec in specs if spec.kind == "head"]
    if tied and heads:
        specs = [spec for spec in specs if spec.kind != "head"]
        notes.append(f"{heads[0].name} is stored, but tied to the embedding: counted once")
    return Inventory(
        name=checkpoint.name,
        source="headers",
        where=str(checkpoint.path),
        config=config,
        tensors=tuple(specs),
        dims=dims,
        packed=checkpoint.weights,
        largest_stored_bytes=max((stored.nbytes for stored in checkpoint.tensors.values()), default=0),
        notes=notes,
    )


_STATE_LIMIT = 65536  # bytes; bitsandbytes' own quant states are about 200


def _unpacked_shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...] | None:
    """The shape that a 4-bit weight unpacks to: its quant state, a JSON object stored beside it, says so."""
    state = checkpoint.tensors.get(f"{name}.quant_state.bitsandbytes__nf4")
    if state is None:
        return None
    try:
        with (checkpoint.path / state.file).open("rb") as stream:
            stream.seek(state.start)
            shape = json.loads(stream.read(min(state.end - state.start, _STATE_LIMIT)))["shape"]
        return tuple(int(size) for size in shape)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("a quant state can't be read", where=f"{checkpoint.path}: {name}", found=str(error),
                              do="pack or fetch the model again") from None  # fmt: skip
