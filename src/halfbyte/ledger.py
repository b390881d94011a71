"""The ledger of a run: what each phase took, measured while it runs, and written to `measured.json` as it comes.

A phase that is done again is measured again; one that was done by an earlier session of the same run keeps its figures.
Figures of another model, format, compute type or device are of another run and are dropped. What a file may hold is
said in docs/plan.md; reading and comparing it is `plan/measured.py`, which needs no torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from halfbyte.errors import DataError
from halfbyte.memory import MemoryMeter, give_back
from halfbyte.plan import measured
from halfbyte.plan.check import render_check


class Ledger:
    """What is known so far. Nothing is written before `begin` says which run it is."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder, self.console = folder, console
        self.run: dict[str, str] = {}  # what the figures are of
        self.exact: dict[str, int] = {}  # bytes by part, counted over tensors
        self.phases: dict[str, dict[str, Any]] = {}
        self.awaited = {"open", "tune"}  # phases that this run has, beside those that are there
        self.finished = False
        self.method = ""
        self.unkept = False  # it could not be written, and that was said

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Measure the phase `name`; it counts unless its `counts` is set to False or it ends in an error."""
        give_back()
        made, began = Phase(), time.perf_counter()
        with MemoryMeter() as meter:
            yield made
        self.method = meter.method
        if made.counts:
            self.note(name, meter.peak_bytes, meter.mapped_bytes, meter.cuda_peak_bytes, time.perf_counter() - began)

    def begin(self, model: Any, *, with_task: bool) -> None:
        """Say which model it is, loaded and without an adapter; take over what an earlier session of the run measured.

        `with_task`: the run evaluates a task."""
        from halfbyte.model.held import held_bytes

        self.run = {"model": model.fingerprint, "weights": model.weights, "compute": model.compute,
                    "device": model.device.type}  # fmt: skip
        file = self.folder / measured.FILE
        if with_task:
            self.awaited |= {"evaluate_before", "evaluate_after"}
        if file.exists():
            self._take_over(file, with_task)
        held = held_bytes(model.net)
        self.exact |= {name: held[name] for name in ("weights", "constants")}
        for name, phase in self.phases.items():  # those that came before the model was known
            if model.device.type == "cpu":
                phase.pop("cuda_peak_bytes", None)
            phase["parts"] = self._parts(name, phase)
        self.write()

    def _take_over(self, file: Path, with_task: bool) -> None:
        try:
            found = measured.checked(measured.read_object(file), file)
        except DataError as error:
            self.console.print(f"{error.what}; it is begun anew: {error.found}", markup=False, soft_wrap=True)
            return
        if found.get("run") != self.run:
            return
        kept = {name: phase for name, phase in found["phases"].items() if with_task or "evaluate" not in name}
        self.phases = {name: {**kept, **self.phases}[name] for name in measured.PHASES if name in kept | self.phases}
        self.exact = found["exact"] | self.exact

    def note(self, name: str, peak: int | None, mapped: int | None, cuda: int | None, seconds: float | None) -> None:
        """Write down what a phase took. `cuda`, what a card held, counts where the phase computes there: packing is the
        host's, and so is a run on the processor, though CUDA may be awake for something else."""
        phase: dict[str, Any] = {"peak_bytes": peak, "mapped_bytes": mapped, "seconds": seconds}
        if cuda and name != "pack" and self.run.get("device") != "cpu":
            phase["cuda_peak_bytes"] = cuda
        phase["parts"] = self._parts(name, phase)
        self.phases[name] = phase
        self.write()

    def evaluated(self, name: str, result: Mapping[str, Any]) -> None:
        """Write down what an evaluation took, from its result.json, unless it was made on another kind of device."""
        if measured.device_kind(result) != self.run["device"]:
            return
        peak, mapped, cuda = (result.get(key) for key in ("peak_bytes", "mapped_bytes", "cuda_peak_bytes"))
        self.note(name, peak, mapped, cuda, float(result["seconds"]))

    def trained(self, outcome: Any, net: Any) -> None:
        """Write down what the training took: an `Outcome`, and the network that was trained."""
        from halfbyte.model.held import held_bytes

        counted = {"adapter": held_bytes(net)["adapter"], "gradients": outcome.gradient_bytes,
                   "optimiser": outcome.optimiser_bytes}  # fmt: skip
        self.exact |= {name: size for name, size in counted.items() if size is not None}
        if outcome.steps > outcome.elsewhere:  # the time of a run that moved is that of no device
            seconds = None if outcome.elsewhere else outcome.seconds
            peak, mapped, cuda = (self._most(outcome, key) for key in ("peak_bytes", "mapped_bytes", "cuda_peak_bytes"))
            self.note("tune", peak, mapped, cuda, seconds)

    def _most(self, outcome: Any, key: str) -> int | None:
        """The larger of what this session and those before it saw: the last of these may hold what stood after its
        last step, which no line of the metrics has."""
        sizes = (getattr(outcome, key), self.phases.get("tune", {}).get(key))
        return max((size for size in sizes if size is not None), default=None)

    def _parts(self, name: str, phase: Mapping[str, Any]) -> dict[str, int]:
        """The peak by part: what of `exact` was there in that phase, and the rest. Mapped weights are no part of it."""
        there = {"tune": ("adapter", "gradients", "optimiser")}.get(name, tuple[str, ...]())
        card = phase.get("cuda_peak_bytes")
        if card is not None:  # on a processor the adapter that is evaluated is mapped, too
            there = ("weights", "constants", *(there or ("adapter",) * (name == "evaluate_after")))
        known = {part: self.exact.get(part) for part in there}
        return measured.parts_of(phase["peak_bytes"] if card is None else card, known)

    def end(self, plan: Mapping[str, Any], *, finished: bool) -> None:
        """Write that the run is finished, or is not, and print planned and measured side by side."""
        self.finished = finished
        self.write()
        render_check(measured.against(plan, self.to_json()), self.console)

    def to_json(self) -> dict[str, Any]:
        """The object of `measured.json`."""
        has = [name for name in measured.PHASES if name in self.awaited or name in self.phases]
        return {"schema": 1, "run": self.run, "finished": self.finished, "method": self.method, "has": has,
                "exact": self.exact,
                "phases": {name: self.phases[name] for name in has if name in self.phases}}  # fmt: skip

    def write(self) -> None:
        """Put it into the run's folder, whole or not at all. Where that fails the run goes on: it is worth more."""
        if not self.run:
            return
        part = self.folder / measured.PART
        try:
            part.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
            part.replace(self.folder / measured.FILE)
        except OSError as error:
            self._say_unkept(error)

    def _say_unkept(self, error: OSError) -> None:
        if not self.unkept:
            why = f"{self.folder / measured.FILE} can't be written, the run goes on without: {error.strerror or error}"
            self.console.print(why, markup=False, soft_wrap=True)
        self.unkept = True


class Phase:
    """A phase that is being measured."""

    counts = True
