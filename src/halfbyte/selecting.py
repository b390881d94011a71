"""`halfbyte select`: each candidate is looked at, scored where it fits, and the best of them are tuned for some steps.

What is finished lies in the selection's folder and is not done again: an evaluation is taken as it is if it is of the
same checkpoint, items, prompts and decoding; a probe that was interrupted goes on at its last checkpoint. A candidate
that fails is told with its reason, stops no other, and is tried again the next time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from halfbyte.config import TaskConfig, load_task
from halfbyte.errors import ConfigError, DataError, HalfbyteError
from halfbyte.formats import Weights
from halfbyte.output import Output
from halfbyte.pipeline import Target, evaluate, load, with_training_median

if TYPE_CHECKING:
    from halfbyte.select.evidence import Evidence, Probe, Variant
    from halfbyte.select.ranking import Entry, Ranking
    from halfbyte.select.record import Selection

PROBED = 3  # variants that are probed, where nothing else is asked for


def select(options: argparse.Namespace, console: Console) -> int:
    """`halfbyte select`; returns 0 where something was scored (or planned, of names of the catalogue), 3 where nothing
    fits into the budget, 1 where nothing else came of any candidate. Raises ConfigError and DataError for bad input."""
    from halfbyte.evaluate.results import plain
    from halfbyte.report.selection import FILE as PAGE
    from halfbyte.report.selection import write_page
    from halfbyte.select.evidence import look_at
    from halfbyte.select.show import print_selection

    _check(options)
    console = Output(works=True, stderr=True) if options.json else console
    selection = _begin(options)
    for leak in selection.leaks:
        console.print(f"warning: {leak}", style="yellow", markup=False, soft_wrap=True)
    try:
        for candidate in selection.look.asked.candidates:
            found = look_at(candidate, selection.look)
            selection.evidence.append(found)
            _score(selection, found, console)
            selection.write(finished=False)
        _rank(selection)
        if options.probe is not None and selection.base is not None:
            _probe(selection, options.probe, options.probe_best or PROBED, console)
        _recommend(selection, options.probe)
        file = selection.write(finished=True)
        empty = selection.leave_nothing()
        page = selection.folder / PAGE if selection.kept or empty else write_page(selection)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on where it was", markup=False)
        raise
    print_selection(selection, console)
    if not empty:
        console.print(f"page: {page}; data: {file}", markup=False, soft_wrap=True)
    if options.json:
        print(json.dumps(plain(selection.to_json(finished=True)), indent=2))
    return selection.exit_code


def _check(options: argparse.Namespace) -> None:
    for name in ("probe", "probe_best", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1", found=str(value))
    if options.probe_best is not None and options.probe is None:
        raise ConfigError("--probe-best is of a probe", found=f"--probe-best {options.probe_best} without --probe",
                          do="say how many steps: --probe 200")  # fmt: skip


def _begin(options: argparse.Namespace) -> Selection:
    """Everything that can be wrong with the request is found here, before any model is looked at."""
    from halfbyte.evaluate.judge import check_judge
    from halfbyte.evaluate.leaks import learned_from
    from halfbyte.evaluate.tasks import load_task_set
    from halfbyte.model.build import choose_device
    from halfbyte.plan.devices import find_device
    from halfbyte.select.candidates import read_request
    from halfbyte.select.evidence import Look
    from halfbyte.select.record import FILE, Selection
    from halfbyte.select.tuning import read_tuning

    task = load_task(options.task, options.scorer)
    asked = read_request(options.candidates, options.weights, options.shots, options.budget, own=task.shots)
    tuning = read_tuning(options.run, task, probing=options.probe is not None)
    task, seed = with_training_median(task, tuning.config), tuning.config.seed
    choose_device(options.device)
    tasks = {shots: load_task_set(dataclasses.replace(task, shots=shots), seed=seed, limit=options.limit)
             for shots in asked.shots}  # fmt: skip
    check_judge(next(iter(tasks.values())))
    folder = options.out or Path("runs") / task.name / "select"
    earlier = _earlier(folder, task)
    look = Look(asked, tasks, tuning, find_device(options.device), options.device)
    made = tuple(path for path in (folder, *folder.parents) if not path.exists())
    leaks = learned_from(look.task_set, tuning.config) if options.probe is not None else []
    selection = Selection(folder, look, seed, options.limit, earlier, made, leaks)
    if not (folder / FILE).exists():
        selection.write(finished=False)
    return selection


def _earlier(folder: Path, task: TaskConfig) -> dict[str, Any] | None:
    """What select.json in `folder` says, where an earlier selection recommends something. Raises ConfigError where the
    folder holds something else than a selection for this task."""
    from halfbyte.select.record import FILE

    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        there, recommended = found["task"], (found.get("recommendation") or {}).get("variant")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError("the folder holds something else than a selection", where=folder,
                          do="choose another: --out FOLDER") from None  # fmt: skip
    if there != task.name:
        raise ConfigError("the folder holds the selection for another task", where=folder, found=str(there),
                          do="choose another: --out FOLDER")  # fmt: skip
    return dict(found) if recommended else None


@contextmanager
def _going_on() -> Iterator[list[str]]:
    """What goes wrong within is noted in the list that this gives, and stops nothing."""
    from halfbyte.select.evidence import said

    faults: list[str] = []
    try:
        yield faults
    except HalfbyteError as error:
        faults.append(said(error))
    except MemoryError:
        faults.append("memory ran out")
    except Exception as error:  # of transformers or torch, which raise whatever they like; the others go on
        faults.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _score(selection: Selection, found: Evidence, console: Console) -> None:
    """Score every variant of a candidate that is to be scored; a model is loaded once for each format."""
    from halfbyte.provenance import digest

    for weights in dict.fromkeys(variant.weights for variant in found.variants):
        waiting = [v for v in found.variants if v.weights == weights and v.status == "to score"]
        for variant in waiting:
            own = digest([found.identity, selection.look.tasks[variant.shots].fingerprint, selection.seed])
            variant.folder = selection.folder / "evaluations" / f"{variant.name}-{own[:8]}"
            _take(selection, variant)
        waiting = [variant for variant in waiting if variant.result is None]
        with _going_on() as faults:
            if waiting:
                _ask(selection, found, waiting, console)
        _fail(waiting, faults)
    for variant in found.variants:  # why one does not fit stands at the end; what failed may have an end before that
        why = f": {variant.reason}" if variant.status == "failed" else ""
        console.print(f"{variant.name}: {variant.status}{why}", markup=False, soft_wrap=True)


def _fail(variants: list[Variant], faults: list[str]) -> None:
    for variant in variants:
        if faults and variant.status == "to score":
            variant.status, variant.reason = "failed", faults[0]


def _take(selection: Selection, variant: Variant) -> None:
    """The result that lies there already, if it is the very one."""
    assert variant.folder is not None
    tasks, compute = selection.look.tasks[variant.shots], selection.look.tuning.config.compute
    same = {"fingerprint": tasks.fingerprint, "weights": variant.weights, "seed": selection.seed,
            "variant": variant.name}  # fmt: skip
    result = _stored(variant.folder, same if compute == "auto" else same | {"compute": compute})
    if result is not None:
        variant.result, variant.status = result, "scored"


def _stored(folder: Path, same: dict[str, Any]) -> dict[str, Any] | None:
    """The complete result in `folder` whose keys are as in `same`; None: there is none."""
    from halfbyte.evaluate.results import read_evaluation

    try:
        result = read_evaluation(folder).result
    except DataError:
        return None
    return result if all(result.get(key) == value for key, value in same.items()) else None


def _ask(selection: Selection, found: Evidence, variants: list[Variant], console: Console) -> None:
    """Load a candidate in one format and ask it every item in each of `variants`."""
    candidate, config = found.candidate, selection.look.tuning.config
    weights = cast(Weights, variants[0].weights)
    what = Target(candidate.model, candidate.revision, weights, None, None, config.compute)
    model = load(what, selection.look.place, console)
    for variant in variants:
        assert variant.folder is not None
        with _going_on() as faults:
            task = selection.look.tasks[variant.shots].task
            variant.result = evaluate(model, task, variant.folder, variant.name, console, limit=selection.limit,
                                      seed=selection.seed)  # fmt: skip
            variant.status = "scored"
        _fail([variant], faults)


def _rank(selection: Selection) -> None:
    from halfbyte.select.ranking import rank

    entries = [_entry(variant, variant.folder, variant.result) for variant in selection.variants if variant.result]
    selection.base = rank(entries, selection.look.kind, seed=selection.seed)


def _entry(variant: Variant, folder: Path | None, result: dict[str, Any]) -> Entry:
    from halfbyte.select.ranking import Entry

    assert folder is not None
    return Entry(variant.name, folder, result, variant.planned.tune_bytes if variant.planned else None)


def _probe(selection: Selection, steps: int, most: int, console: Console) -> None:
    """Tune the best variant of each of the best `most` candidates, and rank them by what they score then."""
    from halfbyte.select.evidence import Probe
    from halfbyte.select.ranking import rank

    assert selection.base is not None
    owners = {variant.name: (one, variant) for one in selection.evidence for variant in one.variants}
    chosen: dict[str, Variant] = {}
    for entry in selection.base.order:
        found, variant = owners[entry.name]
        if found.candidate.label not in chosen and len(chosen) < most:
            chosen[found.candidate.label] = variant
    for variant in chosen.values():
        variant.probe = Probe(steps, "failed")
        with _going_on() as faults:
            _probe_one(selection, owners[variant.name][0], variant, variant.probe, console)
        variant.probe.reason = "".join(faults)
        selection.write(finished=False)
    entries = [_entry(variant, variant.probe.folder, variant.probe.result) for variant in chosen.values()
               if variant.probe is not None and variant.probe.result is not None]  # fmt: skip
    selection.probed = rank(entries, selection.look.kind, seed=selection.seed, among=len(selection.base.order))


def _probe_one(selection: Selection, found: Evidence, variant: Variant, probe: Probe, console: Console) -> None:
    """One probe: trained, or what is left of it, and scored with as few shots as any variant has."""
    from halfbyte.experiment import tune
    from halfbyte.provenance import digest

    look, model, tuning = selection.look, found.candidate, selection.look.tuning
    config = tuning.probe(model.model, model.revision, variant.weights, probe.steps, look.asked.budget,
                          look.place, selection.folder)  # fmt: skip
    settings = dataclasses.asdict(config) | {"memory": None, "device": None, "out": None, "model": found.identity}
    name = f"{variant.name}-probe-{digest([settings, tuning.digest])[:8]}"
    tasks, run = look.tasks[min(look.tasks)], selection.folder / "probes" / name
    probe.folder = selection.folder / "evaluations" / f"{name}-{tasks.fingerprint[:8]}"
    probe.result = _stored(probe.folder, {"fingerprint": tasks.fingerprint, "seed": selection.seed, "variant": name,
                                          "leaks": selection.leaks or None})  # fmt: skip
    if probe.result is None:
        console.rule(f"probe: {variant.name}, {probe.steps} steps")
        config = dataclasses.replace(config, out=str(run))
        if tune(config, resume=(run / "run.yaml").is_file(), force=False, console=console) == 130:
            raise KeyboardInterrupt
        weights = cast(Weights, variant.weights)
        what = Target(model.model, model.revision, weights, run / "adapter", None, config.compute)
        net = load(what, look.place, console)
        probe.result = evaluate(net, tasks.task, probe.folder, name, console, limit=selection.limit,
                                seed=selection.seed, leaks=selection.leaks)  # fmt: skip
    probe.status = "scored"


def _recommend(selection: Selection, steps: int | None) -> None:
    from halfbyte.select.words import recommend

    beaten = None
    decisive = selection.probed or selection.base
    if decisive is not None and selection.look.kind == "number":
        beaten = _beside_guess(selection, decisive)
    selection.recommendation = recommend(selection.evidence, selection.base, selection.probed, guess=selection.guess,
                                         beaten=beaten, chance=selection.look.task_set.chance_level, steps=steps,
                                         tuned=_tuned(selection), leaks=selection.leaks)  # fmt: skip


def _tuned(selection: Selection) -> dict[str, Any] | None:
    """The chosen one after its probe against itself out of the box; None without a probe."""
    from halfbyte.evaluate.compare import compare_several

    if selection.probed is None:
        return None
    chosen = selection.probed.chosen
    before = next(variant.folder for variant in selection.variants if variant.name == chosen.name)
    assert before is not None
    (found,) = compare_several([before, chosen.folder], metric=selection.probed.metric.name, seed=selection.seed,
                               across=("shots",))  # fmt: skip
    return found


def _beside_guess(selection: Selection, ranking: Ranking) -> bool:
    """Whether the chosen one is better than always answering the training median, whose result is kept. Corrected for
    the number of those that it was chosen from."""
    from halfbyte.evaluate.compare import compare_several
    from halfbyte.evaluate.evaluate import constant_folder

    place = selection.folder / "evaluations" / "median"
    selection.guess = constant_folder(ranking.best.folder, place, told=selection.look.task_set.warnings)
    (found,) = compare_several([place, ranking.chosen.folder], metric=ranking.metric.name, seed=selection.seed,
                               across=("shots",), among=ranking.among)  # fmt: skip
    return bool(found["verdict"] == "better")
