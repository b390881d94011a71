"""What a run is made of: the digests that a resume must find again, and what may change the last bits of a step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halfbyte import kernels
from halfbyte.data.dataset import TrainingData
from halfbyte.environment import processor, versions

_MEANING = {
    "model": "the model: its weights or config.json",
    "tokenizer": "the tokenizer: its files in the model's folder",
    "items": "the data: the items that data.train and data.validation give",
}
# What transformers makes a tokenizer of, chat templates included
_TOKENIZER = ("tokenizer*", "*.model", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json",
              "chat_template*", "*.tiktoken")  # fmt: skip


def inputs_of(model: str, folder: Path, data: TrainingData) -> dict[str, str]:
    """Digests of what decides what a run learns, beside its options. `model`: the fingerprint of the model that was
    named, `folder`: where it lies."""
    return {"model": model, "tokenizer": tokenizer_digest(folder), "items": fingerprint(data)}


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of the tokenizer's files."""
    return _files_digest(folder, _TOKENIZER)


def answering_digest(folder: Path) -> str:
    """The same with the generation configuration: all that answers depend on beside weights and config.json."""
    return _files_digest(folder, (*_TOKENIZER, "generation_config.json"))


def _files_digest(folder: Path, patterns: Iterable[str]) -> str:
    total = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}):
        total.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def fingerprint(data: TrainingData) -> str:
    """SHA-256 over the tokens of all items and what is learned of them, in their order and by their side."""
    total = hashlib.sha256()
    for item in (*data.train, *data.validation):
        total.update(len(item.ids).to_bytes(8, "little"))
        total.update(np.asarray(item.ids, dtype="<i8").tobytes() + bytes(item.learned))
    total.update(len(data.train).to_bytes(8, "little"))
    return total.hexdigest()


def changed_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A line for each input that is not what it was."""
    return [
        f"{meaning} (digest {before.get(name, 'none')[:12]} -> {now[name][:12]})"
        for name, meaning in _MEANING.items()
        if before.get(name) != now[name]
    ]


def made_with(device: torch.device) -> dict[str, Any]:
    """What may change the last bits of a step: another processor, library or number of threads rounds otherwise."""
    kernel = kernels.choose(device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    isa = f"{kernel.name} {kernel.isa}" if kernel.isa else kernel.name
    return {"device": f"{device.type}: {card}", "kernels": isa, "threads": torch.get_num_threads(), **versions()}


def changed_making(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of `made_with` is not what it was, a few words each."""
    names = [*now, *(name for name in before if name not in now)]
    return [f"{name} {before.get(name)} -> {now.get(name)}" for name in names if before.get(name) != now.get(name)]
