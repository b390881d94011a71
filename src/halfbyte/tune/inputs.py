"""What a run is made of: the digests that a resume must find again, and what may change the last bits of a step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halfbyte import kernels
from halfbyte.checkpoint.tokenizer import tokenizer_fingerprint
from halfbyte.data.dataset import TrainingData
from halfbyte.environment import processor, versions

_MEANING = {
    "model": "the model: its weights or config.json",
    "tokenizer_files": "the tokenizer: its files in the model's folder",
    "items": "the data: the items that data.train and data.validation give",
}


def inputs_of(model: str, folder: Path, data: TrainingData) -> dict[str, str]:
    """Digests of what decides what a run learns, beside its options. `model`: the fingerprint of the model that was
    named, `folder`: where it lies."""
    return {"model": model, "tokenizer_files": tokenizer_fingerprint(folder) or "none", "items": fingerprint(data)}


def fingerprint(data: TrainingData) -> str:
    """SHA-256 over the tokens of all items and what is learned of them, in their order and by their side."""
    total = hashlib.sha256()
    for item in (*data.train, *data.validation):
        total.update(len(item).to_bytes(8, "little"))
        total.update(np.asarray(item.tokens, dtype="<i8").tobytes() + item.flags)
    total.update(len(data.train).to_bytes(8, "little"))
    return total.hexdigest()


def changed_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A line for each input that is not what it was; what an earlier version did not write down is left out."""
    return [
        f"{meaning} (digest {before[name][:12]} -> {now[name][:12]})"
        for name, meaning in _MEANING.items()
        if name in before and before[name] != now[name]
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


def changed_files(before: Sequence[Sequence[Any]], now: Sequence[Sequence[Any]]) -> list[str]:
    """The names of files that are new, gone, or of another size or time of writing; of `Stamps.listed()`. None where an
    earlier version wrote none down."""
    changed = {tuple(line) for line in before} ^ {tuple(line) for line in now}
    return sorted({str(line[0]) for line in changed}) if before else []
