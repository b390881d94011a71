"""A run: the folder that it leaves, what is written there and when.

run.yaml            every option as it was used, the automatic ones too
plan.json           what the run was going to need
measured.json       what it took, phase by phase (halfbyte.ledger)
environment.json    machine and versions
metrics.jsonl       a line an optimiser step
checkpoints/        the state, for --resume
adapter/            the best adapter by validation loss (without validation: the last)
adapter-last/       the last adapter
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from safetensors import SafetensorError

from halfbyte.config import RunConfig, build, flat, read_yaml, to_dict, write_yaml
from halfbyte.data.batches import steps_per_epoch
from halfbyte.data.dataset import TrainingData
from halfbyte.environment import environment
from halfbyte.errors import ConfigError, DataError, TrainingError
from halfbyte.memory import MemoryMeter, give_back
from halfbyte.model.adapter import save_adapter
from halfbyte.model.build import Model
from halfbyte.plan import measured
from halfbyte.tune.loop import Plan, StepRecord, Stopped, train
from halfbyte.tune.progress import show_progress
from halfbyte.tune.schedule import total_steps
from halfbyte.tune.state import Progress, State, flush_to_disk, last_checkpoint

_ELSEWHERE = "choose another: --set out=..."
Watch = Callable[[StepRecord, int], bool]  # is given each record and the number of all steps; whether to go on
_BEFORE = {"evaluations", measured.FILE, "task.yaml"}  # what a run leaves that was killed before it trained
# Options that a resume may change: they decide when something is written or where it runs, not what comes out.
_FREE = {"tune.checkpoint_every", "memory", "device", "out", "task"}


@dataclasses.dataclass
class Outcome:
    """How a run ended. Memory is that of all its steps on this kind of device, those before an interruption too;
    gradients and optimiser are None where they were not there to be counted."""

    folder: Path
    steps: int
    finished: bool
    best_loss: float | None
    seconds: float
    peak_bytes: int | None
    mapped_bytes: int | None
    cuda_peak_bytes: int | None = None
    gradient_bytes: int | None = None
    optimiser_bytes: int | None = None
    before: int = 0  # steps that earlier sessions had made
    elsewhere: int = 0  # steps that were made on another kind of device, or before it was written down

    def in_words(self) -> str:
        """How many steps were made, in how long, and in which sessions."""
        words = f"{self.steps} step{'s' * (self.steps != 1)} in {self.seconds:,.0f} s"
        if self.before and self.before == self.steps:
            return f"nothing was left to train: {words}, all in earlier sessions"
        return words + (f", {self.before} of them in earlier sessions" if self.before else "")

    def _repr_html_(self) -> str:
        from halfbyte.notebook import table
        from halfbyte.plan.budget import amount

        sizes = {"peak memory": self.peak_bytes, "mapped": self.mapped_bytes, "on the GPU": self.cuda_peak_bytes}
        rows = [("optimiser steps", self.steps), ("time", f"{self.seconds:.0f} s")]
        rows += [] if self.best_loss is None else [("best validation loss", f"{self.best_loss:.4g}")]
        rows += [(name, amount(size)) for name, size in sizes.items() if size is not None]
        state = "finished" if self.finished else "not finished: go on with resume"
        return table(f"{self.folder}: {state}", (), rows)


def prepare_folder(config: RunConfig, resume: bool) -> RunConfig:
    """Check that `config` may begin in the run's folder, or go on in it; returns the options to use.

    Raises ConfigError when it can't be made there, when it holds a run and `resume` is not asked for, or when options
    that matter differ.
    """
    folder = Path(config.out)
    stored = folder / "run.yaml"
    if not stored.exists():
        if resume:
            raise ConfigError("there is no run to go on with", where=folder, do="leave --resume away to start it")
        _spare_others(folder, config.task)
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            found = f"{above} is {'no folder' if not above.is_dir() else 'not writable'}"
            raise ConfigError("the run's folder can't be made", where=folder, found=found, do=_ELSEWHERE)
        return config
    if not resume:
        raise ConfigError(
            "the folder holds a run already",
            where=folder,
            do="go on with --resume, or choose another folder: --set out=...",
        )
    before = build(RunConfig, read_yaml(stored), str(stored))
    micro_batch = before.tune.micro_batch if config.tune.micro_batch == "auto" else config.tune.micro_batch
    recompute = before.tune.recompute if config.tune.recompute == "auto" else config.tune.recompute
    tune = dataclasses.replace(config.tune, micro_batch=micro_batch, recompute=recompute)
    compute = before.compute if config.compute == "auto" else config.compute
    config = dataclasses.replace(config, tune=tune, compute=compute)
    old, new = flat(to_dict(before)), flat(to_dict(config))
    keys = sorted({*old, *new} - _FREE)
    changed = [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys if old.get(key) != new.get(key)]
    if changed:
        raise ConfigError(
            "the options differ from those the run was started with",
            where=stored,
            found="\n         ".join(changed),
            do="put them back, or start another run: --set out=...",
        )
    return config


def make_folder(folder: Path) -> None:
    """Make the run's folder, ready for a run that begins or goes on in it. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / measured.PART).unlink(missing_ok=True)  # of a run that was killed while it wrote
    except OSError as error:
        raise ConfigError("the run's folder can't be made", where=folder, found=str(error), do=_ELSEWHERE) from None


def _spare_others(folder: Path, task: str | None) -> None:
    """Raises ConfigError where a run that begins in `folder` would write over what no run of ours left there."""
    ours = _is_ours(folder / measured.FILE)
    mine = folder / "task.yaml"
    if task and not ours and mine.exists() and Path(task).resolve() == mine.resolve():
        raise ConfigError("the run would write its own copy of the task over this file", where=mine,
                          do="move it out of the run's folder, or choose another folder: --set out=...")  # fmt: skip
    allowed = {"evaluations", measured.PART} | (_BEFORE if ours else set())
    found = sorted(path.name for path in folder.iterdir() if path.name not in allowed) if folder.is_dir() else []
    if found or (folder.exists() and not folder.is_dir()):
        raise ConfigError("the run's folder holds something else", where=folder, found=", ".join(found[:8]) or "a file",
                          do="choose another: --set out=...")  # fmt: skip


def _is_ours(file: Path) -> bool:
    try:
        measured.checked(measured.read_object(file), file)
    except DataError:
        return False
    return True


def run_training(
    model: Model,
    data: TrainingData,
    config: RunConfig,
    plan_json: Callable[[RunConfig], dict[str, Any]],
    *,
    resume: bool = False,
    console: Console | None = None,
    watch: Watch | None = None,
) -> Outcome:
    """Train `model` on `data` as `config` says, in the folder that `prepare_folder` checked.

    Micro-batch and recomputation must be settled; `plan_json` gives what the run will need. A model without an adapter
    gets a fresh one. `watch` sees each record once its line is written; when it says so the run ends there, as one that
    was stopped: all is saved and it can go on. Raises TrainingError.
    """
    console = console or Console(stderr=True)
    folder = Path(config.out)
    make_folder(folder)
    if model.adapter is None:
        model.add_adapter(config.adapter, config.seed)
    model.recompute(int(config.tune.recompute))
    state = State(model.parameters_to_train(), config.tune)
    state.progress.data = fingerprint(data)
    if resume:
        _restore(state, folder, console)
    write_yaml(config, folder / "run.yaml")
    _write_json(folder / "plan.json", plan_json(config))
    _write_json(folder / "environment.json", environment())
    outcome = _train(model, data, state, config, folder, console, watch)
    for parameter in state.parameters.values():
        parameter.grad = None
    del state
    give_back()  # so that what comes after is not charged for gradients and moments
    return outcome


def _train(
    model: Model,
    data: TrainingData,
    state: State,
    config: RunConfig,
    folder: Path,
    console: Console,
    watch: Watch | None,
) -> Outcome:
    options = config.tune
    per_epoch = steps_per_epoch(len(data.train), options.batch)
    steps = total_steps(options, per_epoch)
    every = max(1, round(options.validate_every * per_epoch))
    plan = Plan(
        steps=steps,
        steps_per_epoch=per_epoch,
        micro_batch=int(options.micro_batch),
        pad_id=data.pad_id,
        seed=config.seed,
        validate_at=frozenset({*range(every, steps + 1, every), steps}) if data.validation else frozenset(),
    )
    metrics = folder / "metrics.jsonl"
    _cut_metrics(metrics, state.progress.step)
    give_back()
    saved, before = time.monotonic(), state.progress.step
    finished, record = state.progress.step >= steps, None
    with (
        _stop_signals(console) as stop,
        MemoryMeter() as meter,
        metrics.open("a", encoding="utf-8") as lines,
        show_progress(console, steps, state.progress.step) as show,
    ):
        try:
            for record in train(model, data.train, data.validation, state, options, plan, stop):
                _note_best(model, state, record, folder, config)
                memory: dict[str, Any] = {"peak_bytes": meter.peak_bytes, "mapped_bytes": meter.mapped_bytes}
                memory["device"] = str(model.device)
                if meter.cuda_peak_bytes is not None:
                    memory["cuda_peak_bytes"] = meter.cuda_peak_bytes
                lines.write(json.dumps(_line(record) | memory) + "\n")
                lines.flush()
                show(record, meter.peak_bytes)
                if time.monotonic() - saved >= options.checkpoint_every and record.step < steps:
                    state.save(folder / "checkpoints")
                    saved = time.monotonic()
                if watch is not None and not watch(record, steps) and record.step < steps:
                    console.print(f"ended after step {record.step} of {steps}, as asked", markup=False)
                    break
            else:
                finished = True
        except Stopped:
            console.print(
                f"stopped after step {state.progress.step} of {steps}; go on with: "
                f"halfbyte tune {folder / 'run.yaml'} --resume",
                markup=False,
                soft_wrap=True,
            )
        except TrainingError:
            state.save(folder / "checkpoints")
            raise
        except OSError as error:
            raise TrainingError(
                "the run's folder can't be written",
                where=folder,
                found=str(error),
                do="free some disk space and go on with --resume",
            ) from error
    state.save(folder / "checkpoints")
    _save_adapter(model, folder / "adapter-last", config)
    if state.progress.best_step is None:
        _save_adapter(model, folder / "adapter", config)
    peaks, elsewhere = _peaks(metrics, model.device.type, meter if state.progress.step > before else None)
    return Outcome(
        folder=folder,
        steps=state.progress.step,
        finished=finished,
        best_loss=state.progress.best_loss,
        seconds=state.progress.seconds,
        gradient_bytes=state.progress.gradient_bytes,
        before=before,
        optimiser_bytes=state.optimiser_bytes(),
        elsewhere=elsewhere,
        **peaks,
    )


def _peaks(metrics: Path, device: str, meter: MemoryMeter | None) -> tuple[dict[str, int | None], int]:
    """The largest of what `meter` (None: no step was made under it) and the lines of earlier sessions on this kind of
    device say; and how many lines are of steps that were made elsewhere, or do not say where."""
    every = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in every if measured.device_kind(line) == device]
    found: dict[str, int | None] = {}
    for key in ("peak_bytes", "mapped_bytes", "cuda_peak_bytes"):
        sizes = [line.get(key) for line in lines] + [getattr(meter, key, None)]
        found[key] = max((size for size in sizes if size is not None), default=None)
    return found, len(every) - len(lines)


def _line(record: StepRecord) -> dict[str, Any]:
    return {key: value for key, value in asdict(record).items() if value is not None}


def _note_best(model: Model, state: State, record: StepRecord, folder: Path, config: RunConfig) -> None:
    """Keep the adapter whose validation loss is the lowest so far."""
    loss, progress = record.validation_loss, state.progress
    if loss is None or not math.isfinite(loss) or (progress.best_loss is not None and loss >= progress.best_loss):
        return
    progress.best_loss, progress.best_step = loss, record.step
    _save_adapter(model, folder / "adapter", config)


def fingerprint(data: TrainingData) -> str:
    """SHA-256 over the tokens of all items and what is learned of them, in their order."""
    digest = hashlib.sha256()
    for item in (*data.train, *data.validation):
        digest.update(np.asarray(item.ids, dtype="<i8").tobytes() + bytes(item.learned))
    return digest.hexdigest()


def _save_adapter(model: Model, folder: Path, config: RunConfig) -> None:
    try:
        save_adapter(model.net, folder, config.adapter, config.model, model.fingerprint)
    except (OSError, SafetensorError) as error:
        raise TrainingError("the adapter can't be written", where=folder, found=str(error),
                            do="free some disk space and go on with --resume") from error  # fmt: skip


def _restore(state: State, folder: Path, console: Console) -> None:
    found = last_checkpoint(folder / "checkpoints")
    if found is None:
        console.print("no checkpoint was written yet: the run starts at its first step")
        return
    tensors, progress, place, broken = found
    if progress.data != state.progress.data:
        raise TrainingError("the training data are not those that the run was started with", where=folder,
                            found=f"items {state.progress.data[:12]}, then {progress.data[:12]}",
                            do="put the data back, or start another run: --set out=...")  # fmt: skip
    for path in broken:
        console.print(f"[yellow]{path.name} is broken and is passed over[/]")
    state.restore(tensors, Progress(**asdict(progress)))
    console.print(f"going on from {place.name}")


def _cut_metrics(file: Path, step: int) -> None:
    """Drop the lines of steps after `step`: they are done again."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # the line that was being written when the run was killed
    part = file.with_suffix(".part")
    part.write_text("".join(kept), encoding="utf-8")
    flush_to_disk(part)
    part.replace(file)


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _stop_signals(console: Console) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask the loop to stop at the next micro-batch; a second one stops at once."""
    asked = False

    def handle(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        console.print("stopping; the state and the adapter are saved (again: stop at once)")

    try:
        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs the thread handles signals
        old = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
