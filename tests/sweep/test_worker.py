"""Trials: which are asked for, pruned, failed, taken up again; and that a study is one whoever works on it."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from halfbyte.config import AdapterConfig, RunConfig, TuneConfig
from halfbyte.errors import ConfigError, HalfbyteError, MissingDependency
from halfbyte.report.sweep import write_page
from halfbyte.sweep import storage
from halfbyte.sweep.home import Home
from halfbyte.sweep.result import Found, importances, winner
from halfbyte.sweep.space import Knob, Space
from halfbyte.sweep.study import Row, Study
from halfbyte.sweep.worker import Worker
from tests.sweep.trainers import Trainer

SPACE = Space((Knob("tune.learning_rate", low=1e-5, high=1e-1, log=True), Knob("adapter.rank", choices=(2, 4, 8))))
CONFIG = RunConfig(model="m", tune=TuneConfig(learning_rate=1e-4), adapter=AdapterConfig(rank=4))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """TPE and the pruner set in earlier than they do for users."""
    monkeypatch.setattr(storage, "RANDOM", 3)
    monkeypatch.setattr(storage, "JUDGED", 2)


class Silent:
    def begins(self, *_: Any) -> None: ...

    goes_on = ended = waits = begins


def study_in(folder: Path, seed: int = 0, what: dict[str, Any] | None = None, url: str | None = None) -> Study:
    return Study(url, "s", SPACE, SPACE.own(CONFIG), what or {"data": "d"}, seed, Home(folder))


def work(study: Study, trainer: Trainer, trials: int, until: float = math.inf) -> str:
    return Worker(study, study.home, SPACE, CONFIG, trainer, Silent(), trials, until).work()


def values(rows: list[Row]) -> list[tuple[float, int]]:
    return [(row.values["tune.learning_rate"], row.values["adapter.rank"]) for row in rows]


def test_the_first_trial_is_the_run_and_an_interruption_changes_no_trial(folder: Path) -> None:
    whole, parts, other = (study_in(folder / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    trainer = Trainer()
    assert work(whole, trainer, 6) == "done"
    for trials in (2, 5, 6, 6):
        assert work(study_in(folder / "b"), trainer, trials) == "done"
    work(other, trainer, 3)
    assert values(whole.rows()) == values(parts.rows()) and values(whole.rows())[0] == (1e-4, 4)
    assert values(whole.rows())[1:3] != values(other.rows())[1:]
    assert len(set(values(whole.rows())[1:3])) == 2
    best = winner(whole.rows())
    assert best is not None and best.loss == min(row.loss for row in whole.rows() if row.state == "complete")
    assert best.loss < whole.rows()[0].loss and best.seconds == 5  # type: ignore[operator]


def test_a_trial_is_pruned_where_it_is_worse_than_the_median(folder: Path) -> None:
    study = study_in(folder)
    work(study, Trainer(), 7)
    pruned = [row for row in study.rows() if row.state == "pruned"]
    complete = [row for row in study.rows() if row.state == "complete"]
    assert pruned and len(complete) >= storage.JUDGED and not {0, 1} & {row.number for row in pruned}
    for row in pruned:
        assert max(row.curve) >= storage.TENTHS and len(row.curve) < 10
        assert row.curve[max(row.curve)] == row.loss
    assert all(set(row.curve) == set(range(1, 11)) for row in complete)


def test_a_trial_that_fails_is_reported_and_stops_no_other(folder: Path) -> None:
    study = study_in(folder)
    trainer = Trainer(fails=lambda config: "it broke" if config.adapter.rank == 4 else "")
    assert work(study, trainer, 5) == "done"
    failed = [row for row in study.rows() if row.state == "failed"]
    assert failed and all(row.error == "it broke: by the test" and row.values["adapter.rank"] == 4 for row in failed)
    assert any(row.state == "complete" for row in study.rows())
    with pytest.raises(HalfbyteError, match="3 trials in a row failed alike"):
        work(study_in(folder / "all"), Trainer(fails=lambda config: "always"), 20)
    assert len(study_in(folder / "all").rows()) == 3


def test_a_full_disk_fails_no_trial(folder: Path) -> None:
    def full(config: RunConfig) -> str:
        raise HalfbyteError("the disk is full") from OSError(28, "No space left on device")

    study = study_in(folder)
    with pytest.raises(HalfbyteError, match="the disk is full"):
        work(study, Trainer(fails=full), 2)
    assert [row.state for row in study.rows()] == ["interrupted"]
    assert work(study, Trainer(), 2) == "done" and [row.state for row in study.rows()] == ["complete"] * 2


def test_a_trial_that_was_stopped_is_taken_up_again(folder: Path) -> None:
    trainer = Trainer(stops=lambda config, step: Path(config.out).name == "0001" and step == 5)
    assert work(study_in(folder), trainer, 3) == "interrupted"
    study = study_in(folder)
    assert [(row.number, row.state) for row in study.rows()] == [(0, "complete"), (1, "interrupted")]
    again = Trainer()
    assert work(study, again, 3) == "done"
    assert again.seen == [("0001", True), ("0002", False)]
    assert set(study.rows()[1].curve) == set(range(1, 11)) and study.rows()[1].state == "complete"


def test_a_timeout_ends_in_the_middle_of_a_trial_and_loses_nothing(folder: Path) -> None:
    study, trainer = study_in(folder), Trainer()
    moment = time.monotonic()
    trainer.stops = lambda config, step: step == 4 and time.sleep(max(0.0, moment + 2 - time.monotonic())) is not None
    assert work(study, trainer, 2, until=moment + 2) == "timeout"
    assert [row.state for row in study.rows()] == ["interrupted"] and study.rows()[0].curve.keys() == {1, 2, 3, 4}
    assert work(study, Trainer(), 2, until=time.monotonic()) == "timeout" and len(study.rows()) == 1
    assert work(study, Trainer(), 2) == "done"


def test_two_processes_never_work_on_one_trial_nor_make_too_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = storage.sqlite_url(folder / "shared.db")
    one, two = study_in(folder / "one", url=url), study_in(folder / "two", url=url)
    beside = study_in(folder / "one", url=url)  # another process in the same folder
    first, second, third = one.claim(3), beside.claim(3), two.claim(3)
    assert first and second and third and {first.number, second.number, third.number} == {0, 1, 2}
    assert two.claim(3) is None and [row.state for row in two.rows()] == ["running"] * 3
    first.lock.release()  # it was killed
    assert [row.state for row in one.rows()] == ["interrupted", "running", "running"]
    assert two.claim(3) is None  # the run lies in another folder
    back = beside.claim(3)
    assert back is not None and back.number == 0 and back.resumed
    third.trial.set_user_attr("seen", time.time() - 2 * 300)
    assert [row.state for row in one.rows()] == ["running", "running", "lost"]

    real = Study._counted
    blind = iter([True])
    monkeypatch.setattr(Study, "_counted", lambda self: [] if next(blind, False) else real(self))
    assert two.claim(3) is None  # asked for at the same moment as the others
    monkeypatch.undo()
    assert len(two.rows()) == 3


def test_a_study_of_another_sweep_is_refused(folder: Path) -> None:
    study_in(folder, what={"data": "d", "tune.batch": 16})
    with pytest.raises(ConfigError, match=r"tune\.batch: 16 -> 8") as caught:
        study_in(folder, what={"data": "d", "tune.batch": 8})
    assert "--study NAME" in str(caught.value)
    with pytest.raises(ConfigError, match="another study"):
        study_in(folder, url=storage.sqlite_url(folder / "other.db"))


def test_without_optuna_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingDependency, match=r"halfbyte\[sweep\]"):
        study_in(folder)


def test_what_was_found_is_written_and_drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "JUDGED", 99)  # nothing is pruned
    study = study_in(folder)
    trainer = Trainer(fails=lambda config: "<b>broke</b>" if Path(config.out).name == "0003" else "")
    work(study, trainer, 4)
    few = Found(study, CONFIG, 14, True, study.rows())
    assert few.to_json()["importances"] is None and not few.to_json()["finished"]
    work(study, trainer, 14)
    found = Found(study, CONFIG, 14, True, study.rows(), notes=["a <note>"])
    made = found.write(folder / "sweep.json", study.rows())
    assert json.loads((folder / "sweep.json").read_text()) == made
    assert made["finished"] and made["best"]["number"] == winner(found.rows).number  # type: ignore[union-attr]
    shares = made["importances"]
    assert sum(shares.values()) == pytest.approx(1) and next(iter(shares)) == "tune.learning_rate"
    assert "mean little" in made["importances_note"]
    assert importances(study, found.rows)[0] == shares
    page = write_page(folder, made).read_text(encoding="utf-8")
    for text in ("What mattered", "Validation loss against adapter.rank", "&lt;b&gt;broke&lt;/b&gt;", "a &lt;note&gt;",
                 "The run as it stood", "default-src 'none'"):  # fmt: skip
        assert text in page, text
    assert "<script" not in page and "://" not in page.replace("sqlite://", "") and page.count("<svg") == 3
