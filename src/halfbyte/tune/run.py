"""A run: the folder that it leaves, what is written there and when.

run.yaml            every option as it was used, the automatic ones too
plan.json           what the run was going to need
measured.json       what it took, phase by phase (halfbyte.ledger)
environment.json    machine, versions, git, seed and fingerprints (halfbyte.tune.origin)
metrics.jsonl       a line an optimiser step
checkpoints/        the state, for --resume (halfbyte.tune.state)
adapter/            the best adapter by validation loss (without validation: the last)
adapter-last/       the last adapter
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from halfbyte import durable
from halfbyte.config import RunConfig
from halfbyte.data.batches import steps_per_epoch
from halfbyte.data.dataset import TrainingData
from halfbyte.errors import HalfbyteError, TrainingError
from halfbyte.memory import MemoryMeter, give_back, ran_out
from halfbyte.model.build import Model
from halfbyte.model.offload import Offloader
from halfbyte.model.packing import packed_attention
from halfbyte.option_files import write_yaml
from halfbyte.output import Output, OutputLost
from halfbyte.plan import measured
from halfbyte.tune import origin
from halfbyte.tune.folder import CHECKPOINTS, METRICS, alone_in, cut_metrics, refuse_other_inputs
from halfbyte.tune.inputs import changed_files, changed_making, inputs_of, made_with
from halfbyte.tune.loop import ALONE, Plan, StepRecord, train
from halfbyte.tune.progress import show_progress
from halfbyte.tune.ranks import Ranks
from halfbyte.tune.records import NoRecords, Records, put_best
from halfbyte.tune.schedule import total_steps
from halfbyte.tune.state import State, last_checkpoint
from halfbyte.tune.stop import Stopped, stop_signals

Watch = Callable[[StepRecord, int], bool]  # is given each record and the number of all steps; whether to go on


@dataclasses.dataclass
class Outcome:
    """How a run ended. Memory is that of all its steps on this kind of device, those before an interruption too;
    gradients and optimiser are None where they were not there to be counted."""

    folder: Path
    steps: int
    finished: bool
    best_loss: float | None
    seconds: float
    peak_bytes: int | None = None
    mapped_bytes: int | None = None
    cuda_peak_bytes: int | None = None
    gradient_bytes: int | None = None
    optimiser_bytes: int | None = None
    before: int = 0  # steps that earlier sessions had made
    elsewhere: int = 0  # steps that were made on another kind of device, or before it was written down
    stopped: bool = False  # by a signal

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
        rows += [] if self.best_loss is None else [("best validation loss", f"{self.best_loss:.4g} nats a token")]
        rows += [(name, amount(size)) for name, size in sizes.items() if size is not None]
        state = "finished" if self.finished else "not finished: go on with resume"
        return table(f"{self.folder}: {state}", (), rows)


def run_training(
    model: Model,
    data: TrainingData,
    config: RunConfig,
    plan_json: Callable[[RunConfig], dict[str, Any]],
    *,
    resume: bool = False,
    console: Console | None = None,
    watch: Watch | None = None,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Train `model` on `data` as `config` says, in the folder that `prepare_folder` checked.

    Micro-batch and recomputation must be settled, and packing, which else is off; `plan_json` gives what the run will
    need. A model without an adapter gets a fresh one. `watch` sees each record once its line is written; when it says
    so the run ends there, as one that was stopped: all is saved and it can go on. Of several `ranks` the first one
    writes, and the outcome of the others has no memory. Raises TrainingError, and ConfigError where another process
    trains in the folder.
    """
    console = console or Output(works=True, stderr=True)
    with alone_in(Path(config.out)) if ranks.leads else nullcontext():
        return _run(model, data, config, plan_json, resume, console, watch, ranks)


def _run(
    model: Model, data: TrainingData, config: RunConfig, plan_json: Callable[[RunConfig], dict[str, Any]],
    resume: bool, console: Console, watch: Watch | None, ranks: Ranks,
) -> Outcome:  # fmt: skip
    folder = Path(config.out)
    inputs = inputs_of(model.fingerprint, model.path, data)
    if ranks.leads and resume:
        refuse_other_inputs(folder, inputs)
    if model.adapter is None:
        model.add_adapter(config.adapter, config.seed)
    offload = Offloader(model.device, model.net) if config.tune.offload_activations else None
    model.recompute(int(config.tune.recompute), offload=offload)
    state = State(model.parameters_to_train(), config.tune)
    making = made_with(model.device) | {"processes": ranks.count}
    if resume and ranks.leads:
        _restore(state, model, config, making, console)
    state.progress.inputs, state.progress.made_with = inputs, making
    state.progress.files = [list(line) for line in model.files.listed()]
    ranks.spread(state)
    if ranks.leads:
        try:
            write_yaml(config, folder / "run.yaml")
            durable.write_text(folder / "plan.json", json.dumps(plan_json(config), indent=2) + "\n")
            origin.write(folder, origin.of_run(model, config, inputs["items"]), state.progress.step)
            cut_metrics(folder / METRICS, state.progress.step)
        except OSError as error:
            raise _refused(folder, error) from error
    with packed_attention(model) if _packed(config, model) else nullcontext():
        outcome = _train(model, data, state, config, console, watch, ranks)
    ranks.part()
    if ranks.leads:
        origin.add_adapters(folder)
    for parameter in state.parameters.values():
        parameter.grad = None
    del state
    give_back()  # so that what comes after is not charged for gradients and moments
    return outcome


def _train(
    model: Model, data: TrainingData, state: State, config: RunConfig, console: Console, watch: Watch | None,
    ranks: Ranks,
) -> Outcome:  # fmt: skip
    options, folder = config.tune, Path(config.out)
    plan = _loop_plan(data, config, _packed(config, model))
    before, finished, stopped = state.progress.step, state.progress.step >= plan.steps, False
    give_back()
    with (
        stop_signals(say=ranks.leads) as stop,
        MemoryMeter() as meter,
        (Records if ranks.leads else NoRecords)(model, state, config) as records,
        show_progress(console, plan.steps, before) as show,
    ):
        records.checkpoint()  # the first one says what the run is made of
        try:
            for record in train(model, data.train, data.validation, state, options, plan, stop, ranks):
                records.add(record, meter)
                try:
                    show(record, meter.peak_bytes)
                except OutputLost:  # nobody will see how far it came, but it stops as for a signal
                    stop.asked = True
                if record.step < plan.steps:
                    records.checkpoint_if_due()
                    if watch is not None and not watch(record, plan.steps):
                        console.print(f"ended after step {record.step} of {plan.steps}, as asked", markup=False)
                        break
            else:
                finished = True
        except Stopped:
            stopped = True
        except HalfbyteError:
            _keep(records, console)
            raise
        except (MemoryError, RuntimeError, OSError) as error:
            if not ran_out(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold the activations
            _keep(records, console)
            raise _out_of_memory(state, config, error) from error
        unsaved = records.end(finished)
        if stopped:  # said once all is saved: a terminal that is gone can't be written to
            console.print(f"stopped after step {state.progress.step} of {plan.steps}", markup=False)
        if unsaved:
            console.print(unsaved, markup=False, soft_wrap=True)
        if finished and stop():  # asked while the last of it was written: nothing more is begun
            raise KeyboardInterrupt
    measured_by = meter if state.progress.step > before else None
    peaks, elsewhere = _peaks(folder / METRICS, model.device.type, measured_by) if ranks.leads else ({}, 0)
    return Outcome(
        folder=folder,
        steps=state.progress.step,
        finished=finished,
        stopped=stopped,
        best_loss=state.progress.best_loss,
        seconds=state.progress.seconds,
        gradient_bytes=state.progress.gradient_bytes,
        before=before,
        optimiser_bytes=state.optimiser_bytes(),
        elsewhere=elsewhere,
        **peaks,
    )


def _packed(config: RunConfig, model: Model) -> bool:
    """Whether several items stand in one row: as the run was settled, and if the model can on this machine."""
    return config.tune.packing == "on" and int(config.tune.micro_batch) > 1 and model.packs_with != ""


def _loop_plan(data: TrainingData, config: RunConfig, packed: bool) -> Plan:
    options = config.tune
    per_epoch = steps_per_epoch(len(data.train), options.batch)
    steps = total_steps(options, per_epoch)
    every = max(1, round(options.validate_every * per_epoch))
    return Plan(
        steps=steps,
        steps_per_epoch=per_epoch,
        micro_batch=int(options.micro_batch),
        pad_id=data.pad_id,
        seed=config.seed,
        packed=packed,
        validate_at=frozenset({*range(every, steps + 1, every), steps}) if data.validation else frozenset(),
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


def _keep(records: Records, console: Console) -> None:
    """Save the last good state of a run that ends by a fault; a second fault does not hide the first."""
    try:
        records.keep_what_is_good()
    except (HalfbyteError, MemoryError, RuntimeError) as error:
        found = f"{error.what}: {error.found}" if isinstance(error, HalfbyteError) else str(error)
        console.print(f"the state is kept as of the last checkpoint: {found}", markup=False, soft_wrap=True)


def _out_of_memory(state: State, config: RunConfig, error: BaseException) -> TrainingError:
    less = [f"a lower tune.micro_batch (now {config.tune.micro_batch})", f"more tune.recompute (now "
            f"{config.tune.recompute} layers)", f"a lower data.max_tokens (now {config.data.max_tokens})"]  # fmt: skip
    return TrainingError(
        "memory ran out",
        where=f"step {state.progress.step + 1}",
        found=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
        do="close other programs and go on with --resume; or start another run with less to hold: " + ", ".join(less),
    )


def _restore(state: State, model: Model, config: RunConfig, making: dict[str, Any], console: Console) -> None:
    """Take over the last checkpoint that is whole, and the best adapter that goes with it; the rest is named."""
    folder = Path(config.out)
    found = last_checkpoint(folder / CHECKPOINTS)
    if found is None:
        console.print("no checkpoint was written yet: the run starts at its first step")
        return
    try:
        for place, fault in found.broken.items():
            aside = place.with_name(f"broken-{place.name}")
            shutil.rmtree(aside, ignore_errors=True)
            place.rename(aside)
            console.print(
                f"{place.name} is not whole and is passed over; it is now {aside.name}: {fault}", markup=False
            )
        if found.best is not None:
            put_best(found.best, model, config)
    except OSError as error:
        raise _refused(folder, error) from error
    state.restore(found.tensors, found.progress)
    console.print(f"going on from {found.place.name}")
    if others := changed_making(found.progress.made_with, making):
        said = "from here on the last bits may differ from those of a run that was never stopped, as this session "
        console.print(f"{said}computes with something else: {'; '.join(others)}", markup=False, soft_wrap=True)
    if written := changed_files(found.progress.files, model.files.listed()):
        said = "the model's files have the fingerprint that they had, which reads samples of them, but another size or "
        said += f"time of writing: {', '.join(written)}; if they were more than copied, start another run"
        console.print(said, markup=False, soft_wrap=True)


def _refused(folder: Path, error: OSError) -> TrainingError:
    return TrainingError("the run's folder can't be written", where=error.filename or folder,
                         found=error.strerror or str(error),
                         do="free some disk space and go on with --resume")  # fmt: skip
