"""What a run writes while it trains: the lines of metrics.jsonl, the best adapter, checkpoints.

The order makes a resume exact. A better adapter is on disk before the state says that there is one; a step's line is
there before a checkpoint of that step. So what a checkpoint says is always there, and what is there beyond it is
written again, the same.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError

from halfbyte import durable
from halfbyte.config import RunConfig
from halfbyte.errors import TrainingError
from halfbyte.memory import MemoryMeter
from halfbyte.model.adapter import WEIGHTS, save_adapter, save_config
from halfbyte.model.build import Model
from halfbyte.tune.folder import CHECKPOINTS, METRICS
from halfbyte.tune.loop import StepRecord
from halfbyte.tune.state import State, checkpoints

ADAPTER, LAST = "adapter", "adapter-last"


class Records:
    """Context manager; what can't be written is a TrainingError."""

    def __init__(self, model: Model, state: State, config: RunConfig) -> None:
        self.model, self.state, self.config = model, state, config
        self.folder = Path(config.out)
        self._recorded = state.progress.step  # the last step whose line stands there
        self._saved = time.monotonic()
        self._lines: BinaryIO | None = None

    def __enter__(self) -> Records:
        try:
            self._lines = (self.folder / METRICS).open("ab", buffering=0)
        except OSError as error:
            raise self._refused(METRICS, error) from error
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lines is not None:
            self._lines.close()

    def add(self, record: StepRecord, meter: MemoryMeter) -> None:
        """Write the line of a step, and the adapter where its validation loss is the lowest so far."""
        self._note_best(record)
        line: dict[str, Any] = {key: value for key, value in asdict(record).items() if value is not None}
        line |= {"peak_bytes": meter.peak_bytes, "mapped_bytes": meter.mapped_bytes, "device": str(self.model.device)}
        if meter.cuda_peak_bytes is not None:
            line["cuda_peak_bytes"] = meter.cuda_peak_bytes
        self._write(json.dumps(line).encode() + b"\n")
        self._recorded = record.step

    def _write(self, text: bytes) -> None:
        assert self._lines is not None
        try:
            while text:
                text = text[self._lines.write(text) :]
        except OSError as error:
            raise self._refused(METRICS, error) from error

    def _note_best(self, record: StepRecord) -> None:
        loss, progress = record.validation_loss, self.state.progress
        if loss is None or not math.isfinite(loss) or (progress.best_loss is not None and loss >= progress.best_loss):
            return
        self._save_adapter(ADAPTER)
        progress.best_loss, progress.best_step = loss, record.step

    def checkpoint(self) -> None:
        """Save the state, once all lines up to it are on disk."""
        assert self._lines is not None
        try:
            os.fsync(self._lines.fileno())
        except OSError as error:
            raise self._refused(METRICS, error) from error
        best = None if self.state.progress.best_step is None else self.folder / ADAPTER / WEIGHTS
        self.state.save(self.folder / CHECKPOINTS, best)
        self._saved = time.monotonic()

    def checkpoint_if_due(self) -> None:
        """Save the state where `tune.checkpoint_every` has passed, unless it is in doubt."""
        if time.monotonic() - self._saved >= self.config.tune.checkpoint_every and self._good():
            self.checkpoint()

    def keep_what_is_good(self) -> None:
        """Save the state when the run ends by a fault, where it is one to go on from."""
        if self._recorded == self.state.progress.step and self._good():
            self.checkpoint()

    def _good(self) -> bool:
        """Whether the state is one to go back to: no step half done, no loss that explodes, all numbers finite."""
        state = self.state
        if not state.between_steps or state.progress.exploding:
            return False
        return all(bool(torch.isfinite(p.detach()).all()) for p in state.parameters.values())

    def end(self, finished: bool) -> str:
        """Save the state and the last adapter; it is the best one where no validation has said otherwise.

        Of a run that was stopped while the state is in doubt nothing is saved. What there is to say of that, or "".
        """
        if not finished and not self._good():
            kept = checkpoints(self.folder / CHECKPOINTS)[-1].name
            return f"the loss is too high to go on from here, so this is not saved: {kept} is what counts"
        self.checkpoint()
        self._save_adapter(LAST)
        if self.state.progress.best_step is None:
            self._save_adapter(ADAPTER)
        return ""

    def _save_adapter(self, name: str) -> None:
        folder, config = self.folder / name, self.config
        try:
            save_adapter(self.model.net, folder, config.adapter, config.model, self.model.fingerprint)
        except (OSError, SafetensorError) as error:
            raise TrainingError("the adapter can't be written", where=folder, found=str(error),
                                do="free some disk space and go on with --resume") from error  # fmt: skip

    def _refused(self, name: str, error: OSError) -> TrainingError:
        return TrainingError("the run's folder can't be written", where=self.folder / name,
                             found=error.strerror or str(error),
                             do="free some disk space and go on with --resume")  # fmt: skip


class NoRecords(Records):
    """Of a rank that writes nothing."""

    def __enter__(self) -> Records:
        return self

    def add(self, record: StepRecord, meter: MemoryMeter) -> None:
        pass

    def checkpoint(self) -> None:
        pass

    def checkpoint_if_due(self) -> None:
        pass

    def end(self, finished: bool) -> str:
        return ""


def put_best(weights: Path, model: Model, config: RunConfig) -> None:
    """Make the best adapter of a checkpoint the run's: a step that is done again decides anew. Raises OSError."""
    folder = Path(config.out) / ADAPTER
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / WEIGHTS
    part = durable.part_of(place)
    part.unlink(missing_ok=True)  # of an earlier version's run that was killed: another name of a checkpoint's file
    shutil.copyfile(weights, part)
    durable.put(part, place)
    save_config(model.net, folder, config.adapter, config.model)
