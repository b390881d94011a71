"""All that the future of a run depends on, and how it is saved.

A step is a pure function of the state and the step's number: the items of a step, their order and the dropout masks
all follow from (seed, step). So the state is small: the adapter, AdamW's two moments, the number of steps done, the
best adapter so far with its loss, and what the run was made of. No random state needs saving and no half-done step: an
interrupted step is done again, the same.

A checkpoint is a folder `step-NNNNNN` with `state.safetensors`, `state.json`, `best.safetensors` (where there is a best
one) and `SHA256SUMS`, which `sha256sum --check` reads. It is written under another name, flushed to disk and renamed,
and the folder is flushed; only then does it count, and only then are older ones removed. One that its digests do not
fit never counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from halfbyte import durable
from halfbyte.config import TuneConfig
from halfbyte.errors import TrainingError
from halfbyte.kernels.pool import pool
from halfbyte.provenance import read_digest
from halfbyte.tune import optimiser

KEPT = 2  # checkpoints that stay: the newest and the one before
TENSORS, PROGRESS, BEST, SUMS = "state.safetensors", "state.json", "best.safetensors", "SHA256SUMS"
_NAME = re.compile(r"step-(\d+)")


@dataclass
class Progress:
    """The part of the state that is numbers."""

    step: int = 0  # optimiser steps done
    best_loss: float | None = None  # lowest validation loss so far, nats a token
    best_step: int | None = None
    seconds: float = 0.0  # spent training so far
    gradient_bytes: int | None = None  # the most that stood there after a backward pass
    first_losses: list[float] = field(default_factory=list)  # of the first steps, nats a token
    exploding: int = 0  # steps up to now, in a row, whose loss is too high
    inputs: dict[str, str] = field(default_factory=dict)  # digests of what the run is made of (tune.inputs)
    made_with: dict[str, Any] = field(default_factory=dict)  # what may change the last bits (tune.inputs)
    files: list[list[Any]] = field(default_factory=list)  # of the model: name, size and time of writing (ns) of each


class NewerState(TrainingError):
    """A state that holds more than this version knows of."""


class State:
    """The adapter's parameters, their optimiser and the progress."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], options: TuneConfig) -> None:
        self.parameters = dict(parameters)
        self.optimiser = optimiser.make(self.parameters.values(), options)
        self._keys = optimiser.KEYS[options.optimiser]
        self.progress = Progress()
        self._best_kept: tuple[int | None, Path] | None = None  # the step of the best adapter that the last one holds
        self.between_steps = True  # False while the optimiser is at work: what is there then is no state
        self.gradients: Tensor | None = None  # all of them in one block, fp32, from the first step on

    def reserve(self) -> None:
        """Make room for AdamW's moments."""
        if self.parameters and not self.optimiser.state:
            optimiser.reserve(self.optimiser, list(self.parameters.values()))

    def clear_gradients(self) -> None:
        """Before a step's first backward pass, which adds to them in place. Made anew in each step they would leave
        holes in the heap: up to 20 MB with rank 64 on all layers."""
        parameters = list(self.parameters.values())
        sizes = [p.numel() for p in parameters]
        if self.gradients is None:
            self.gradients = torch.empty(sum(sizes), device=parameters[0].device)
        for p, part in zip(parameters, torch.split(self.gradients.zero_(), sizes), strict=True):
            p.grad = part.view_as(p)

    def update(self) -> None:
        """Take the optimiser's step. Interrupted in its midst (memory ran out, Ctrl-C twice), the state is lost."""
        self.between_steps = False
        self.optimiser.step()
        self.progress.step += 1
        self.between_steps = True

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"parameter.{name}": p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            moments = self.optimiser.state.get(p, {})
            for key in self._keys:
                if key in moments:
                    tensors[f"{key}.{name}"] = moments[key]
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    def gradient_bytes(self) -> int | None:
        """Bytes of the gradients that stand there now; None where there are none."""
        return sum(p.grad.nbytes for p in self.parameters.values() if p.grad is not None) or None

    def note_gradients(self) -> None:
        """Call it after a backward pass: they are gone when the run is stopped."""
        self.progress.gradient_bytes = max(self.gradient_bytes() or 0, self.progress.gradient_bytes or 0) or None

    def optimiser_bytes(self) -> int | None:
        """Bytes of AdamW's two moments (not of its counters, 4 bytes a matrix); None before the first step."""
        moments = (self.optimiser.state.get(p, {}) for p in self.parameters.values())
        return sum(one[key].nbytes for one in moments for key in self._keys if key in one) or None

    def restore(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Take over what `tensors()` gave. Raises TrainingError when the names or shapes are not this run's."""
        wanted = {f"parameter.{name}": p.shape for name, p in self.parameters.items()}
        found = {name: t.shape for name, t in tensors.items() if name.startswith("parameter.")}
        if wanted != found:
            odd = sorted({*wanted.items()} ^ {*found.items()})[:10]
            raise TrainingError(
                "the checkpoint is of another adapter", found=", ".join(f"{n} {tuple(s)}" for n, s in odd)
            )
        first = self._keys[0]
        if any(name.startswith(f"{first}.") for name in tensors):
            self.reserve()
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(tensors[f"parameter.{name}"])
                if f"{first}.{name}" in tensors:
                    moments = self.optimiser.state[p]
                    optimiser.set_step(moments, progress.step)
                    for key in self._keys:
                        if key in moments:
                            moments[key].copy_(tensors[f"{key}.{name}"])
        self.progress = progress

    def save(self, folder: Path, best: Path | None = None) -> Path:
        """Write a checkpoint into `folder` and remove those older than the last `KEPT`.

        `best`: the file with the weights of the best adapter so far, where there is one. A checkpoint of this step that
        stands there already is this very state, and stays. Raises TrainingError when the disk refuses.
        """
        assert self.between_steps
        place = folder / f"step-{self.progress.step:06d}"
        if place.exists():
            self._note_best(place)
            return place
        pool.clear()  # else what is made for the file would stand beside all that a step needed
        part = durable.part_of(place)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f".step-*{durable.PART}"):  # by a session that was killed
                shutil.rmtree(left)
            part.mkdir()
            save_file(self.tensors(), part / TENSORS)
            (part / PROGRESS).write_text(json.dumps(asdict(self.progress), indent=2) + "\n", encoding="utf-8")
            if best is not None:
                self._keep_best(best, part / BEST)
            sums = "".join(f"{read_digest(file)}  {file.name}\n" for file in sorted(part.iterdir()))
            (part / SUMS).write_text(sums, encoding="utf-8")
            for file in part.iterdir():
                durable.flush(file)
            durable.put(part, place)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            raise TrainingError(
                "the checkpoint can't be written",
                where=place,
                found=str(error),
                do="free some disk space and go on with --resume; an earlier checkpoint, if there is one, is whole",
            ) from error
        self._note_best(place)
        for old in checkpoints(folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return place

    def _note_best(self, place: Path) -> None:
        self._best_kept = (self.progress.best_step, place / BEST)

    def _keep_best(self, best: Path, target: Path) -> None:
        """A second name of the file in the last checkpoint, where the best is still that and the file system has such
        names; else a copy of `best`: that file is the user's, who may write to it."""
        if self._best_kept is not None and self._best_kept[0] == self.progress.best_step:
            with contextlib.suppress(OSError):
                os.link(self._best_kept[1], target)
                return
        shutil.copyfile(best, target)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, whole or not, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


@dataclass
class Saved:
    """A checkpoint that is whole, read. `broken`: the newer ones that are not, each with what is wrong with it."""

    place: Path
    tensors: dict[str, Tensor]
    progress: Progress
    best: Path | None  # the file with the weights of the best adapter
    broken: dict[Path, str] = field(default_factory=dict)


def last_checkpoint(folder: Path) -> Saved | None:
    """The newest checkpoint that is whole. None where there is none at all.

    Raises TrainingError when there are checkpoints and none is whole;
    NewerState for a whole one of a newer version.
    """
    broken: dict[Path, str] = {}
    for place in reversed(checkpoints(folder)):
        try:
            best = place / BEST if BEST in check(place) else None
            return Saved(place, load_file(place / TENSORS), _progress(place), best, broken)
        except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
            broken[place] = str(error) or type(error).__name__
    if broken:
        raise TrainingError(
            "no checkpoint can be read",
            where=folder,
            found="; ".join(f"{place.name}: {fault}" for place, fault in broken.items()),
            do="start the run again in another folder (--set out=...)",
        )
    return None


def last_inputs(folder: Path) -> dict[str, str] | None:
    """What the run in `folder` is made of, by the newest `state.json` that can be read; None: there is none."""
    for place in reversed(checkpoints(folder)):
        try:
            return _progress(place).inputs
        except (OSError, ValueError, TypeError, RecursionError, NewerState):
            continue
    return None


def _progress(place: Path) -> Progress:
    found = json.loads((place / PROGRESS).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{PROGRESS} holds no object")
    if unknown := sorted(found.keys() - {one.name for one in fields(Progress)}):
        raise NewerState("the run was gone on with by a newer halfbyte", where=place / PROGRESS,
                         found=f"this version does not know {', '.join(unknown)}",
                         do="go on with that version, or a later one: pip install -U halfbyte")  # fmt: skip
    return Progress(**found)


def check(place: Path) -> set[str]:
    """The names of a checkpoint's files. Raises OSError, ValueError for one that is missing or is not as written."""
    lines = (place / SUMS).read_text(encoding="utf-8").splitlines()
    sums = {name: known for known, _, name in (line.partition("  ") for line in lines)}
    if missing := {TENSORS, PROGRESS} - set(sums):
        raise ValueError(f"{SUMS} lacks {', '.join(sorted(missing))}")
    if wrong := [name for name, known in sums.items() if read_digest(place / name) != known]:
        raise ValueError(f"the digest of {', '.join(wrong)} is not the one in {SUMS}")
    return set(sums)
