"""The study of a sweep: its trials, kept in Optuna's storage (SQLite, or PostgreSQL for several machines).

A trial belongs to the folder of the process that asked for it (`Home`), because its run lies there. While a process
works on a trial it holds a file lock, which the system releases however the process ends, and says every half minute
that it is there. So a trial that was killed is told from one that runs: whoever works in its folder next takes it up
again, and the others count it as lost after `LOST` seconds without a word, so that they do not wait for it.

No trial is started again from nothing because of an interruption, and none is counted twice.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.errors import ConfigError
from halfbyte.sweep.home import Home
from halfbyte.sweep.space import Space
from halfbyte.sweep.storage import open_study, reaching, sqlite_url

if TYPE_CHECKING:
    from filelock import FileLock
    from optuna.trial import FrozenTrial, Trial

BEAT, LOST = 30.0, 300.0  # seconds between two signs of life; without one for so long a trial is lost
_UNBORN = 60.0  # seconds after which a trial that belongs to nobody was killed while it was asked for


@dataclass
class Row:
    """A trial as it is shown and written."""

    number: int
    state: str  # complete, pruned, failed, running, interrupted or lost
    values: dict[str, Any]
    loss: float | None  # lowest validation loss, nats a token
    curve: dict[int, float]  # tenth of the run: validation loss there
    seconds: float | None  # of training
    host: str
    folder: str  # of the run, on that host
    here: bool  # it lies in this sweep's folder
    error: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ("complete", "pruned", "failed")


@dataclass
class Claim:
    """A trial that this process works on."""

    trial: Trial
    values: dict[str, Any]
    folder: Path
    lock: FileLock
    resumed: bool
    url: str  # of the study
    reported: int = field(default=0)  # the last tenth that the study knows a loss of

    @property
    def number(self) -> int:
        return self.trial.number

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Say every `BEAT` seconds that the trial is worked on, and give its lock back at the end."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT):
                with contextlib.suppress(Exception):  # the trial's own reports tell if the database is gone
                    self.trial.set_user_attr("seen", time.time())

        thread = threading.Thread(target=beat, name="halfbyte-sweep", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.lock.release()

    def report(self, loss: float, tenth: int) -> bool:
        """Tell the study a validation loss; whether the trial is to be pruned."""
        if tenth <= self.reported:  # known, or done again after an interruption
            return False
        self.reported = tenth
        with reaching(self.url):
            self.trial.report(loss, tenth)
            return self.trial.should_prune()


class Study:
    """A study that any number of processes may share.

    Raises MissingDependency without Optuna or a driver, StorageError when the database can't be reached, and
    ConfigError when the study is of another sweep."""

    def __init__(
        self, storage: str | None, name: str, space: Space, own: Mapping[str, Any] | None, what: dict[str, Any],
        seed: int, home: Home,
    ) -> None:  # fmt: skip
        """`own`: what trial 0 tries, None: what the sampler draws; `what`: all that must be the same to share it."""
        from halfbyte.sweep.secret import shown_url

        self.space, self.home, self.name, self._distributions = space, home, name, space.distributions()
        self.url = storage or sqlite_url(home.folder / "study.db")
        self._study = open_study(self.url, name, seed, own)
        self.shown = shown_url(self.url)
        home.keep_to(f"{name} in {self.shown if storage else 'study.db'}")
        self._check(what)

    def _check(self, what: dict[str, Any]) -> None:
        with reaching(self.url):
            before = self._study.user_attrs.get("sweep")
            if before is None:
                self._study.set_user_attr("sweep", what)
                return
        differs = [f"{key}: {before.get(key)!r} -> {what.get(key)!r}" for key in sorted({*before, *what})
                   if before.get(key) != what.get(key)]  # fmt: skip
        if differs:
            raise ConfigError(
                "the study was started with another run, space or data", where=f"{self.shown}, {self.name}",
                found="\n         ".join(differs),
                do="put them back, or start another study: --out FOLDER, or --study NAME in a shared database",
            )  # fmt: skip

    def claim(self, most: int) -> Claim | None:
        """A trial to work on: one that was interrupted here, else a new one; None when `most` trials are there."""
        from optuna.trial import Trial, TrialState

        with reaching(self.url), self.home.alone():
            for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if frozen.user_attrs.get("home") != self.home.id:
                    continue
                lock = self.home.lock(frozen.number)
                if lock is not None:
                    trial = Trial(self._study, frozen._trial_id)
                    return self._claimed(trial, lock, True, max(frozen.intermediate_values, default=0))
            if len(self._counted()) >= most:
                return None
            trial = self._study.ask(self._distributions)
            lock = self.home.lock(trial.number)
            if lock is None:  # an old process of a study that was thrown away: nothing of it is ours
                raise ConfigError("another sweep works in this folder", where=self.home.folder, do="--out FOLDER")
            trial.set_user_attr("home", self.home.id)
            claim = self._claimed(trial, lock, False, 0)
            if sum(one.number < trial.number for one in self._counted()) >= most:  # two asked at the same moment
                trial.set_user_attr("surplus", True)
                self._study.tell(trial, state=TrialState.FAIL)
                lock.release()
                return None
            return claim

    def _claimed(self, trial: Trial, lock: FileLock, resumed: bool, reported: int) -> Claim:
        folder = self.home.run(trial.number)
        for key, value in (("seen", time.time()), ("host", socket.gethostname()), ("folder", str(folder))):
            trial.set_user_attr(key, value)
        return Claim(trial, self.space.values(trial.params), folder, lock, resumed, self.url, reported)

    def complete(self, claim: Claim, loss: float, seconds: float) -> None:
        self._end(claim, "COMPLETE", loss, seconds)

    def prune(self, claim: Claim, loss: float | None, seconds: float) -> None:
        self._end(claim, "PRUNED", loss, seconds)

    def fail(self, claim: Claim, error: str, seconds: float | None = None) -> None:
        with reaching(self.url):
            claim.trial.set_user_attr("error", error)
        self._end(claim, "FAIL", None, seconds)

    def _end(self, claim: Claim, state: str, loss: float | None, seconds: float | None) -> None:
        from optuna.trial import TrialState

        with reaching(self.url):
            claim.trial.set_user_attr("seconds", seconds)
            claim.trial.set_user_attr("loss", loss)
            self._study.tell(claim.trial, loss if state == "COMPLETE" else None, state=TrialState[state])

    def _counted(self) -> list[FrozenTrial]:
        """The trials of the study, without those that never came to be."""
        every = self._study.get_trials(deepcopy=False)
        return [one for one in every if not one.user_attrs.get("surplus") and not _unborn(one)]

    def rows(self) -> list[Row]:
        """Every trial, in its order."""
        with reaching(self.url), self.home.alone():
            return [self._row(one) for one in self._counted()]

    def _row(self, one: FrozenTrial) -> Row:
        attributes, state = one.user_attrs, {"FAIL": "failed"}.get(one.state.name, one.state.name.lower())
        here = attributes.get("home") == self.home.id
        if state == "running" and here:
            lock = self.home.lock(one.number)
            if lock is not None:
                lock.release()
                state = "interrupted"
        elif state == "running" and time.time() - attributes.get("seen", time.time()) > LOST:
            state = "lost"
        curve = dict(sorted(one.intermediate_values.items()))
        known = [loss for loss in (attributes.get("loss"), *curve.values()) if loss is not None]
        return Row(one.number, state, self.space.values(one.params), min(known, default=None), curve,
                   attributes.get("seconds"), attributes.get("host", ""), attributes.get("folder", ""), here,
                   attributes.get("error", ""))  # fmt: skip

    def importances(self, best: float) -> dict[str, float]:
        """The share of each knob in what sets the `best` share of the complete trials apart from all of them
        (PED-ANOVA, Watanabe et al. 2023, arXiv:2304.10255), the largest first."""
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        with reaching(self.url), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = get_param_importances(self._study, evaluator=PedAnovaImportanceEvaluator(target_quantile=best))
        return {key: float(share) for key, share in found.items()}

    def scored(self) -> list[int]:
        """The trials that were winners and have been scored on the test set, in that order."""
        with reaching(self.url):
            return list(self._study.user_attrs.get("scored", []))

    def tested(self) -> dict[str, Any] | None:
        """What the fingerprint of the task is made of that a winner was scored on; None before that."""
        with reaching(self.url):
            found: dict[str, Any] | None = self._study.user_attrs.get("tested")
        return found

    def note_scored(self, number: int, asked: dict[str, Any] | None) -> None:
        """That trial `number` was scored on the task whose fingerprint is made of `asked`."""
        with reaching(self.url):
            self._study.set_user_attr("tested", asked)
            scored = self.scored()
            if number not in scored:
                self._study.set_user_attr("scored", [*scored, number])


def _unborn(trial: FrozenTrial) -> bool:
    """Whether it was killed between being asked for and being somebody's."""
    started = trial.datetime_start
    nobodys = trial.state.name == "RUNNING" and "home" not in trial.user_attrs
    return nobodys and (started is None or time.time() - started.timestamp() > _UNBORN)
