"""All that the future of a run depends on, and how it is saved.

A step is a pure function of the state and the step's number: the items of a step, their order and the dropout masks
all follow from (seed, step). So the state is small: the adapter, AdamW's two moments, the number of steps done and the
best validation loss. No random state needs saving and no half-done step: an interrupted step is done again, the same.

A checkpoint is a folder `step-NNNNNN` with `state.safetensors` and `state.json`. It is written under another name,
flushed to disk and renamed; only then does it count.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from halfbyte.config import TuneConfig
from halfbyte.errors import TrainingError

KEPT = 2  # checkpoints that stay: the newest and the one before


@dataclass
class Progress:
    """The part of the state that is numbers."""

    step: int = 0  # optimiser steps done
    best_loss: float | None = None  # lowest validation loss so far, nats a token
    best_step: int | None = None
    seconds: float = 0.0  # spent training so far
    data: str = ""  # fingerprint of the items
    gradient_bytes: int | None = None  # the most that stood there after a backward pass


class State:
    """The adapter's parameters, their optimiser and the progress."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], options: TuneConfig) -> None:
        self.parameters = dict(parameters)
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.progress = Progress()

    def reserve(self) -> None:
        """Make room for AdamW's moments, all in one block: matrix by matrix they would lie in the heap, and the holes
        that they leave there when training is done are not given back while anything beside them lives."""
        if self.optimiser.state or not self.parameters:
            return
        some = next(iter(self.parameters.values()))
        block = torch.zeros(2 * sum(p.numel() for p in self.parameters.values()), device=some.device)
        sizes = [p.numel() for p in self.parameters.values() for _ in range(2)]
        places = iter(torch.split(block, sizes))
        for p in self.parameters.values():
            self.optimiser.state[p] = {"step": torch.tensor(0.0), "exp_avg": next(places).view_as(p),
                                       "exp_avg_sq": next(places).view_as(p)}  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"parameter.{name}": p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            moments = self.optimiser.state.get(p, {})
            for key in ("exp_avg", "exp_avg_sq"):
                if key in moments:
                    tensors[f"{key}.{name}"] = moments[key]
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    def gradient_bytes(self) -> int | None:
        """Bytes of the gradients that stand there now; None where there are none."""
        return sum(p.grad.nbytes for p in self.parameters.values() if p.grad is not None) or None

    def note_gradients(self) -> None:
        """Call it after a backward pass: they are gone before the next one, or when the run is stopped."""
        self.progress.gradient_bytes = max(self.gradient_bytes() or 0, self.progress.gradient_bytes or 0) or None

    def optimiser_bytes(self) -> int | None:
        """Bytes of AdamW's two moments (not of its counters, 4 bytes a matrix); None before the first step."""
        moments = (self.optimiser.state.get(p, {}) for p in self.parameters.values())
        return sum(one[key].nbytes for one in moments for key in ("exp_avg", "exp_avg_sq") if key in one) or None

    def restore(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Take over what `tensors()` gave. Raises TrainingError when the names or shapes are not this run's."""
        wanted = {f"parameter.{name}": p.shape for name, p in self.parameters.items()}
        found = {name: t.shape for name, t in tensors.items() if name.startswith("parameter.")}
        if wanted != found:
            odd = sorted({*wanted.items()} ^ {*found.items()})[:10]
            raise TrainingError(
                "the checkpoint is of another adapter", found=", ".join(f"{n} {tuple(s)}" for n, s in odd)
            )
        if any(name.startswith("exp_avg.") for name in tensors):
            self.reserve()
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(tensors[f"parameter.{name}"])
                if f"exp_avg.{name}" in tensors:
                    moments = self.optimiser.state[p]
                    moments["step"] = torch.tensor(float(progress.step))
                    for key in ("exp_avg", "exp_avg_sq"):
                        moments[key].copy_(tensors[f"{key}.{name}"])
        self.progress = progress

    def save(self, folder: Path) -> Path:
        """Write a checkpoint into `folder` and remove those older than the last `KEPT`."""
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / f"step-{self.progress.step:06d}"
        part = folder / f".{place.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir()
            save_file(self.tensors(), part / "state.safetensors")
            (part / "state.json").write_text(json.dumps(asdict(self.progress), indent=2) + "\n", encoding="utf-8")
            for file in part.iterdir():
                flush_to_disk(file)
            if place.exists():
                shutil.rmtree(place)
            part.rename(place)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            raise TrainingError(
                "the checkpoint can't be written",
                where=place,
                found=str(error),
                do="free some disk space and go on with --resume; an earlier checkpoint, if there is one, is whole",
            ) from error
        for old in checkpoints(folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return place


def flush_to_disk(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir()) if folder.is_dir() else []


def last_checkpoint(folder: Path) -> tuple[dict[str, Tensor], Progress, Path, list[Path]] | None:
    """The newest checkpoint that can be read, and the newer ones that can't. None where there is none at all.

    Raises TrainingError when there are checkpoints and none can be read.
    """
    broken: list[Path] = []
    faults: list[str] = []
    for place in reversed(checkpoints(folder)):
        try:
            values: dict[str, Any] = json.loads((place / "state.json").read_text(encoding="utf-8"))
            return load_file(place / "state.safetensors"), Progress(**values), place, broken
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            broken.append(place)
            faults.append(f"{place.name}: {error}")
    if broken:
        raise TrainingError(
            "no checkpoint can be read",
            where=folder,
            found="; ".join(faults),
            do="start the run again in another folder (--set out=...)",
        )
    return None
