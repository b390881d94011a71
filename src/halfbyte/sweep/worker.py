"""One process' part of a sweep: take a trial, train it, tell the study, until there are enough or it is stopped.

A trial is an ordinary run in a folder of its own, without the task: nothing of the test set is looked at. It is judged
by its lowest validation loss, and pruned when, at a tenth of its run, its lowest loss so far is worse than the median
of the other trials' there (Optuna's median pruner). Tenths of a run, not steps or epochs, so that runs with other
batches or epochs are compared where their learning rates are equally far down.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from halfbyte.config import RunConfig
from halfbyte.errors import HalfbyteError
from halfbyte.output import Output
from halfbyte.sweep.home import Home
from halfbyte.sweep.space import Space
from halfbyte.sweep.storage import StorageError
from halfbyte.sweep.study import Claim, Row, Study

POLL = 2.0  # seconds between two looks at trials of other processes
SAME_FAULT = 3  # trials in a row that fail in the same words: the next one would, too


class Train(Protocol):
    """Trains the run `config` and returns 0, or 130 when it was stopped; `experiment.tune`, but for tests."""

    def __call__(
        self, config: RunConfig, *, resume: bool, force: bool, console: Console, watch: Callable[[Any, int], bool]
    ) -> int: ...


class Show(Protocol):
    """Is told what happens."""

    def begins(self, claim: Claim) -> None: ...

    def goes_on(self, claim: Claim, step: int, steps: int, loss: float | None) -> None: ...

    def ended(self, number: int, rows: list[Row]) -> None: ...

    def waits(self, rows: list[Row]) -> None: ...


@dataclass
class Worker:
    study: Study
    home: Home
    space: Space
    config: RunConfig  # of the run, without a task
    train: Train
    show: Show
    trials: int  # of the study, whoever makes them
    until: float = math.inf  # time.monotonic() at which it ends
    keep: Callable[[list[Row]], object] = lambda rows: None  # is given all trials whenever one has ended

    def work(self) -> str:
        """Work until the study has its trials; returns "done", "timeout" or "interrupted".

        A trial that is stopped stays the study's, and is gone on with the next time. Raises StorageError, and
        HalfbyteError where every trial fails alike or nothing can be written."""
        faults: list[str] = []
        while time.monotonic() < self.until:
            claim = self.study.claim(self.trials)
            if claim is None:
                rows = self.study.rows()
                if not any(row.state == "running" for row in rows):
                    return "done"
                self.show.waits(rows)
                time.sleep(min(POLL, max(0.0, self.until - time.monotonic())))
                continue
            with claim.beating():
                fault = self._try(claim)
            if fault in ("timeout", "interrupted"):
                return fault
            rows = self.study.rows()
            self.keep(rows)
            self.show.ended(claim.number, rows)
            faults = [*faults, fault] if fault else []
            if len(faults) >= SAME_FAULT and len(set(faults[-SAME_FAULT:])) == 1:
                raise HalfbyteError(f"{SAME_FAULT} trials in a row failed alike", where=claim.folder, found=fault,
                                    do="put it right, and raise --trials by those that failed")  # fmt: skip
        return "timeout"

    def _try(self, claim: Claim) -> str:
        """Train one trial and tell the study. Returns "timeout", "interrupted", what failed, or nothing."""
        self.show.begins(claim)
        watch = _Watch(claim, self.until, self.show)
        log = self.home.folder / "logs" / f"{claim.number:04}.txt"
        log.parent.mkdir(exist_ok=True)
        try:
            with log.open("a", encoding="utf-8") as lines:
                console = Output(file=lines, width=120)
                config = replace(self.space.apply(self.config, claim.values), out=str(claim.folder))
                code = self.train(config, resume=(claim.folder / "run.yaml").exists(), force=False, console=console,
                                  watch=watch)  # fmt: skip
        except (StorageError, OSError):
            raise
        except Exception as error:
            if isinstance(error.__cause__, OSError):  # a full disk is full for every trial: this one goes on later
                raise
            text = _fault(error)
            self.study.fail(claim, text, trained(claim.folder)[1])
            return text
        loss, seconds = trained(claim.folder)
        if watch.ended == "pruned":
            self.study.prune(claim, loss, seconds)
        elif watch.ended == "timeout":
            return "timeout"
        elif code != 0:
            return "interrupted"
        elif loss is None:
            text = "no validation loss was taken: no item was held out"
            self.study.fail(claim, text, seconds)
            return text
        else:
            self.study.complete(claim, loss, seconds)
        return ""


def _fault(error: BaseException) -> str:
    if isinstance(error, HalfbyteError):
        return error.what + (f": {error.found}" if error.found else "")
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class _Watch:
    """Looks at each step of a trial's run: reports validation losses, and says whether the run goes on."""

    def __init__(self, claim: Claim, until: float, show: Show) -> None:
        self.claim, self.until, self.show = claim, until, show
        self.ended = ""

    def __call__(self, record: Any, steps: int) -> bool:
        loss = record.validation_loss
        self.show.goes_on(self.claim, record.step, steps, loss)
        tenth = 10 * record.step // steps
        if loss is not None and self.claim.report(loss, tenth) and record.step < steps:
            self.ended = "pruned"
        elif time.monotonic() >= self.until and record.step < steps:
            self.ended = "timeout"
        return not self.ended


def trained(folder: Path) -> tuple[float | None, float]:
    """(lowest finite validation loss, seconds of training) of the run in `folder`."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None, 0.0
    steps: list[dict[str, Any]] = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the line that was being written when the run was killed
            steps.append(json.loads(line))
    losses = [step["validation_loss"] for step in steps if step.get("validation_loss") is not None]
    return min(filter(math.isfinite, losses), default=None), sum(step.get("seconds", 0.0) for step in steps)
