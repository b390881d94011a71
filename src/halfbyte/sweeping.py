"""`halfbyte sweep`: search the options of a run, then score the winner once on the untouched test set."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from halfbyte.config import RunConfig, load_run, load_task
from halfbyte.errors import ConfigError, HalfbyteError
from halfbyte.option_files import flat, to_dict
from halfbyte.output import Output
from halfbyte.sweep.space import Space, load_space

if TYPE_CHECKING:
    from halfbyte.sweep.home import Home
    from halfbyte.sweep.show import LiveTable
    from halfbyte.sweep.study import Row, Study

# Options that may differ between the machines of a study: where things lie, and how they are cut.
_LOCAL = {"model", "data.train", "data.validation", "task", "out", "device", "memory", "stream",
          "tune.checkpoint_every", "tune.explosion", "tune.micro_batch", "tune.offload_activations", "tune.packing",
          "tune.recompute"}  # fmt: skip
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def sweep(
    run: Path,
    space_file: Path,
    overrides: Sequence[str] = (),
    *,
    trials: int,
    timeout: str | None,
    storage: str | None,
    study_name: str | None,
    out: Path | None,
    console: Console,
    scorer: str | None = None,
) -> int:
    """Work on the study until it has `trials` trials, `timeout` is over or it is interrupted; returns 0 or 130.

    Raises ConfigError, DataError or CheckpointError for what is wrong before the first trial, StorageError when the
    database goes away, and HalfbyteError when no trial was completed.
    """
    from halfbyte.sweep.home import Home
    from halfbyte.sweep.result import Found
    from halfbyte.sweep.show import LiveTable, show_result
    from halfbyte.sweep.storage import import_optuna
    from halfbyte.sweep.study import Study
    from halfbyte.sweep.worker import Worker

    until = _deadline(timeout)
    config = load_run(run, overrides)
    space = load_space(space_file, config)
    if trials < 1:
        raise ConfigError("--trials must be at least 1", found=str(trials), do="give the number of trials, e.g. 20")
    what = _what(config, space, scorer)
    import_optuna()
    home = Home((out or Path(f"{config.out}-sweep")).resolve())
    own = space.own(config)
    study = Study(storage, study_name or run.stem, space, own, what, config.seed, home)
    _same_test(config, study, scorer)
    found = Found(study, config, trials, own is not None)
    knobs = [knob.key for knob in space.knobs]
    show = LiveTable(console, knobs, trials)
    console.print(f"study {study.name}, {trials} trials; runs in {home.folder / 'trials'}", markup=False)
    if own is not None:
        console.print("trial 0 is the run as it stands")
    from halfbyte import experiment

    plain = dataclasses.replace(config, task=None)
    file = home.folder / "sweep.json"
    worker = Worker(
        study, home, space, plain, experiment.tune, show, trials, until, lambda rows: found.write(file, rows)
    )
    with show.open():
        ended = worker.work()
        rows = study.rows()
        if ended == "timeout":
            found.notes = ["The time is over before all trials are done, so nothing is scored on the test set yet."]
        elif ended != "interrupted":
            scored = _score(config, space, study, home, rows, scorer, show)
            found.test, found.notes = scored.test, [scored.note] if scored.note else []
            ended = "interrupted" if scored.interrupted else ended
    made = found.write(file, rows)
    show_result(made, found.rows, knobs, console)
    from halfbyte.report.sweep import write_page

    console.print(f"page: {write_page(home.folder, made)}", markup=False)
    if ended == "interrupted":
        console.print("interrupted; the same command goes on", markup=False)
        return 130
    if found.best is None and any(row.ended for row in found.rows):
        raise HalfbyteError("no trial was completed", where=home.folder / "logs", do="see what the trials say there")
    return 0


def _deadline(timeout: str | None) -> float:
    """time.monotonic() when `timeout` ("90", "30m", "2h") is over."""
    if timeout is None:
        return math.inf
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([smh]?)", timeout.strip())
    if not match:
        raise ConfigError("--timeout takes a time", found=repr(timeout), do="write e.g. 90s, 30m or 2h")
    return time.monotonic() + float(match[1]) * _SECONDS[match[2]]


def _what(config: RunConfig, space: Space, scorer: str | None) -> dict[str, Any]:
    """All that processes must agree on to share a study. What every trial would stumble over is an error here.

    Raises ConfigError, DataError or CheckpointError."""
    from halfbyte.checkpoint.source import open_checkpoint
    from halfbyte.data.dataset import data_digest
    from halfbyte.model.build import choose_device, origin
    from halfbyte.model.stream import require_card

    if not config.data.train:
        raise ConfigError("no training data is named", where="data.train", do="add 'data: {train: train.jsonl}'")
    if not config.data.validation:
        raise ConfigError("trials are judged by validation loss, and nothing is held out", where="data.validation",
                          found=repr(config.data.validation), do="set a share such as 0.1, or a file")  # fmt: skip
    if config.task:
        load_task(config.task, scorer)
    require_card(config, choose_device(config.device)[0])
    _check_targets(config, space)
    digest = data_digest(config.data)
    options = {key: value for key, value in flat(to_dict(config)).items() if key not in {*_LOCAL, *space.to_json()}}
    return {
        "space": space.to_json(),
        "model": origin(open_checkpoint(config.model, config.revision)),
        "data": digest,
        **options,
    }


def _same_test(config: RunConfig, study: Study, scorer: str | None) -> dict[str, Any] | None:
    """What the fingerprint of the run's task is made of; None: it names no task. Raises ConfigError where a winner was
    scored on another test set, or one that was judged otherwise: this one would be a second look.

    The run's own seed counts, though a trial may have another one, which draws other shots."""
    from halfbyte.evaluate.fingerprint import differing
    from halfbyte.evaluate.tasks import load_task_set
    from halfbyte.pipeline import with_training_median

    if config.task is None:
        return None
    task = with_training_median(load_task(config.task, scorer), config)
    asked: dict[str, Any] = json.loads(json.dumps(load_task_set(task, seed=config.seed).parts))
    before = study.tested()
    if before is not None and before != asked:
        raise ConfigError("the winner was scored on another task than this one, and a study looks at one test set once",
                          where=config.task, found="\n         ".join(differing(before, asked)),
                          do="put the task and its data back, or start another study: --out FOLDER, or --study NAME in "
                             "a shared database")  # fmt: skip
    return asked


def _check_targets(config: RunConfig, space: Space) -> None:
    """Raises ConfigError for targets in the space that match no layer of the model; nothing is loaded for it."""
    from halfbyte.plan.ladder import plan_model

    for knob in space.knobs:
        for choice in knob.choices if knob.key == "adapter.targets" else ():
            plan_model(config.model, targets=choice, weights=config.weights, device=config.device,
                       revision=config.revision)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Scored:
    """What came of scoring the winner: `test` of sweep.json, or why there is none."""

    test: dict[str, Any] | None = None
    note: str = ""
    interrupted: bool = False


def _score(
    config: RunConfig,
    space: Space,
    study: Study,
    home: Home,
    rows: Sequence[Row],
    scorer: str | None,
    show: LiveTable,
) -> _Scored:
    """Score the winner on the task's test set. It is the first and only look at that set: the choice is made by then,
    and a winner that was scored before is not scored again."""
    from halfbyte import experiment
    from halfbyte.sweep.result import winner

    best = winner(list(rows))
    if best is None:
        return _Scored()
    if config.task is None:
        return _Scored(note="The run names no task, so the winner is not scored on a test set: add 'task: TASK.yaml'.")
    if any(row.state == "running" for row in rows):
        return _Scored(note="Others still work on trials, so nothing is scored on the test set yet.")
    if not best.here:
        where = f"{best.folder} on {best.host}"
        return _Scored(note=f"The winner's run lies in {where}: the sweep there scores it on the test set.")
    folder = home.run(best.number)
    if best.number in study.scored() and (folder / "comparison.json").is_file():
        return _Scored(_test(folder, best.number, study.scored()))
    lock = home.lock(best.number)
    if lock is None:
        return _Scored(note="Another process scores the winner on the test set just now.")
    log_file = home.folder / "logs" / f"{best.number:04}.txt"
    show.scores(best.number, log_file)
    try:
        asked = _same_test(config, study, scorer)  # its files may have changed while trials ran
        with log_file.open("a", encoding="utf-8") as lines:
            run = dataclasses.replace(space.apply(config, best.values), out=str(folder))
            log = Output(file=lines, width=120)
            code = experiment.tune(run, resume=True, force=True, console=log, scorer=scorer)
        if code != 0:
            return _Scored(
                note="Scoring the winner on the test set was interrupted; the same command goes on.", interrupted=True
            )
        study.note_scored(best.number, asked)
    finally:
        lock.release()
    return _Scored(_test(folder, best.number, study.scored()))


def _test(folder: Path, number: int, scored: list[int]) -> dict[str, Any]:
    result = json.loads((folder / "evaluations" / "tuned" / "result.json").read_text(encoding="utf-8"))
    comparison = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    note = "The winner was chosen by validation loss; the test set had no part in it and was looked at once."
    earlier = [one for one in scored if one != number]
    if earlier:
        names = ", ".join(f"trial {one}" for one in earlier)
        note = (
            f"The winner was chosen by validation loss. The test set was looked at before, for the winner of fewer "
            f"trials ({names}): if anything was decided by that score, this one is not untouched."
        )
    return {"trial": number, "used_for_choosing": False, "scored": scored, "note": note, "metrics": result["metrics"],
            "comparison": comparison}  # fmt: skip
