"""An experiment from end to end: score the base, train, score the tuned model, compare, report. And the demo of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from halfbyte import durable
from halfbyte.checking import prepare_check, write_check
from halfbyte.config import LEAST_TOKENS, RunConfig, TaskConfig, load_run, load_task
from halfbyte.errors import CheckpointError, ConfigError, DoesNotFit, HalfbyteError
from halfbyte.formats import Weights
from halfbyte.ledger import Ledger
from halfbyte.option_files import write_yaml
from halfbyte.pipeline import Target, evaluate, load, prepare, require_model, say_compute, with_training_median
from halfbyte.plan.prose import prose
from halfbyte.run_plan import RunPlan

if TYPE_CHECKING:
    from halfbyte.data.check_report import Report
    from halfbyte.data.dataset import TrainingData
    from halfbyte.tune.ranks import Ranks
    from halfbyte.tune.run import Watch

DEMO = Path(__file__).parent / "demo"


def tune_by_ranks(config: RunConfig, *, console: Console, **options: Any) -> int:
    """`halfbyte tune`, in one process or in each of those that `torchrun` started; `options` as `tune` has them."""
    from halfbyte.tune.ranks import joined

    with joined(config.device) as ranks:
        return tune(config, console=console if ranks.leads else Console(quiet=True), ranks=ranks, **options)


def tune(
    config: RunConfig,
    *,
    resume: bool,
    force: bool,
    console: Console,
    watch: Watch | None = None,
    scorer: str | None = None,
    ranks: Ranks | None = None,
) -> int:
    """`halfbyte tune`: check the data, plan, evaluate the base, train, evaluate the tuned model, compare, report.

    `scorer`: the scoring function that a task of kind `python` may run (see `config.load_task`). Of several `ranks` the
    first one does it all and the others train with it.
    Returns 0, or 130 when the run was stopped (by a signal, or by `watch`: see `run_training`); raises DoesNotFit
    (exit 3) before anything is loaded. Whatever is wrong with options, data or model is raised before the run's folder
    is made.
    """
    from halfbyte.data.show import first_example
    from halfbyte.data.template import load_examples
    from halfbyte.evaluate.evaluate import largest_batch
    from halfbyte.evaluate.judge import check_judge
    from halfbyte.evaluate.tasks import load_task_set
    from halfbyte.memory import give_back
    from halfbyte.model.adapter import load_adapter
    from halfbyte.model.build import choose_device
    from halfbyte.model.stream import require_card
    from halfbyte.tune.folder import alone_in, prepare_folder
    from halfbyte.tune.loop import ALONE
    from halfbyte.tune.optimiser import require
    from halfbyte.tune.run import run_training

    ranks = ranks or ALONE
    give_back()  # what an earlier model of this process held is free for this one
    require_model(config.model)
    device = ranks.device(config.device)
    require_card(config, choose_device(device)[0])
    require(config.tune.optimiser)
    task = load_task(Path(config.task), scorer) if config.task else None
    if not config.data.train:
        raise ConfigError("no training data is named", where="data.train", do="add 'data: {train: train.jsonl}'")
    load_examples(config.data.train, config.data.template)  # their faults are cheap to find before anything else
    if task is not None:
        check_judge(load_task_set(task, seed=config.seed))
    if not force:
        _foreseen(config, LEAST_TOKENS, console, force)
    read = functools.cache(lambda: _checked_data(config, task, console))
    begun = resume and (Path(config.out) / "run.yaml").is_file()
    config = prepare_folder(config, resume, lambda: read()[1])
    data, _, checked = read()
    asked = {} if task is None or force or begun or ranks.count > 1 else _asked_for_sure(task, config)
    planned = _foreseen(config, data.counts.longest, console, force, asked)
    stream = ranks.from_first(lambda: planned)
    folder = Path(config.out)
    what = Target(config.model, config.revision, cast(Weights, config.weights), None, folder, config.compute,
                  "settled when the run began" if begun else "as asked", stream)  # fmt: skip
    ledger = Ledger(folder, console)
    ranks.wait()  # before anything is written, all have found the folder as it was
    with contextlib.ExitStack() as held:
        if ranks.leads and resume:
            held.enter_context(alone_in(folder))  # if another process trains there, that is said at once
        model = _open(what, device, ledger, console, ranks)
        if config.stream == "auto" and model.stream_reason:
            model.stream_reason = "as planned"
        model.targeted(config.adapter)  # a target that matches nothing is an error at once
        _say_choices(model, console)
        config = dataclasses.replace(config, compute=model.compute)
        console.print(data.describe(), markup=False)
        console.print(first_example(data.train[0], model.tokenizer))
        planner = RunPlan(model, data, force, console, ranks.count, begun=begun)
        settled = config
        config = ranks.from_first(lambda: planner.choose(settled))
        model.packs_with = ranks.from_first(lambda: model.packs_with)
        if not ranks.leads:
            outcome = run_training(model, data, config, planner.plan_json, resume=resume, console=console, ranks=ranks)
            return 0 if outcome.finished else 130
        held.enter_context(alone_in(folder))  # from here on the run is worth one
        if not resume:
            prepare_folder(config, resume)  # a run that was begun here meanwhile is not written over
        ledger.begin(model, with_task=task is not None)
        write_check(checked, folder)
        if task is not None:
            task = with_training_median(task, config)
            if not _same_file(config.task, folder / "task.yaml"):  # a resume may name the run's own copy
                write_yaml(task, folder / "task.yaml")
            planner.asked = largest_batch(model, task, config.seed)
            result = _evaluate_once(model, task, folder, f"base-{config.weights}", console, config.seed)
            ledger.evaluated("evaluate_before", result)
        outcome = run_training(
            model, data, config, planner.plan_json, resume=resume, console=console, watch=watch, ranks=ranks
        )
        ledger.trained(outcome, model.net)
        where = f"; adapter in {folder / 'adapter'}" * (folder / "adapter").is_dir()
        console.print(f"{outcome.in_words()}{where}", markup=False)
        if not outcome.finished:
            ledger.end(planner.plan, finished=False)
            if outcome.stopped:  # the last line, where it is seen
                console.print(f"go on with: halfbyte tune {folder / 'run.yaml'} --resume", markup=False, soft_wrap=True)
            return 130
        if task is not None:
            load_adapter(model.net, folder / "adapter", model.fingerprint)
            model.recompute(0)
            result = _prove(model, task, folder, f"base-{config.weights}", console, config.seed, checked.test_leaks())
            ledger.evaluated("evaluate_after", result)
        ledger.end(planner.plan, finished=True)
        from halfbyte.report.page import in_words, report

        if task is not None:
            prose(console, " ".join(in_words(folder)), "bold")
        console.print(f"report: {report(folder)}", markup=False)
        return 0


def _same_file(one: str | None, other: Path) -> bool:
    return one is not None and Path(one).resolve() == other.resolve()


def _open(what: Target, device: str, ledger: Ledger, console: Console, ranks: Ranks) -> Any:
    """The model, packed first where it is not yet, by one rank for all; both are measured."""
    if not ranks.leads:  # `compute: auto` may be settled by a measurement, which is one for all
        compute = ranks.from_first(lambda: what.compute)
        return load(dataclasses.replace(what, compute=compute), device, console)
    with ledger.phase("pack") as packing:
        packing.counts = prepare(what, device, console)
    with ledger.phase("open"):
        model = load(what, device, console)
    ranks.from_first(lambda: model.compute)
    return model


def _checked_data(
    config: RunConfig, task: TaskConfig | None, console: Console
) -> tuple[TrainingData, dict[str, str], Report]:
    """The items of the run, by the model's tokenizer, what the run is made of, and what the check says of the items.
    No weights are loaded. Raises DataError for what must not be trained on."""
    from halfbyte.data.check_report import NOTE, WARNING
    from halfbyte.data.dataset import load_training
    from halfbyte.model.build import origin
    from halfbyte.tune.inputs import inputs_of

    prepared = prepare_check(config, task)
    data = load_training(config.data, prepared.tokenizer, config.seed, prepared.check.add)
    report = prepared.check.report()
    if text := report.findings_text(WARNING, NOTE):
        console.print(text, soft_wrap=True)
    report.raise_errors()
    return data, inputs_of(origin(prepared.checkpoint), prepared.checkpoint.path, data), report


def _asked_for_sure(task: TaskConfig, config: RunConfig) -> dict[str, Any]:
    """What a plan has to know of the task; nothing where its lengths would be a guess."""
    from halfbyte.planning import asked_of

    try:
        return asked_of(task, config)
    except HalfbyteError:  # what is wrong with it is said when it is asked
        return {}


def _foreseen(
    config: RunConfig, longest: int, console: Console, force: bool, asked: Mapping[str, Any] | None = None
) -> str:
    """Whether the run's weights are streamed to a card, before anything is packed or loaded.

    Raises DoesNotFit, unless `force`, for a run that can't fit, however it is cut, if its longest item has `longest`
    tokens, and for a task whose answers can't (`asked`: see `_asked_for_sure`). What is not known yet is left to the
    check after loading, and that is said."""
    from halfbyte.plan.budget import amount
    from halfbyte.plan.ladder import plan_model

    options = config.tune
    try:
        made = plan_model(
            config.model,
            rank=config.adapter.rank,
            targets=config.adapter.targets,
            weights=config.weights,
            sequence=longest,
            batch=1 if options.micro_batch == "auto" else int(options.micro_batch),
            recompute=options.recompute,
            optimiser=options.optimiser,
            memory=config.memory,
            compute=config.compute,
            device=config.device,
            revision=config.revision,
            stream=config.stream,
            offload=options.offload_activations,
            **(asked or {}),
        )
    except CheckpointError as error:  # what is really wrong is said when it opens
        if not force:
            console.print(f"whether it fits is not known before the model is here: {error.what}", markup=False)
        return config.stream
    fit, phases = made.fit, made.phases
    there = f"{amount(fit['memory_bytes'] or 0)} are there"
    if fit["fits"] is False and not force:
        found = f"{amount(fit['needed_bytes'])} needed for one pass over items of {longest} tokens, "
        found += f"{there}: {amount(-fit['spare_bytes'])} too much"
        do = f"{fit['advice']['tune']}; or start anyway with --force"
        if longest == LEAST_TOKENS:
            do = f"at the least (longer items need more: halfbyte plan): {do}"
        raise DoesNotFit("the run does not fit", where=config.out, found=found, do=do)
    if asked and "evaluate" in fit["advice"]:
        found = f"{amount(phases['evaluate'].peak_bytes or 0)} needed for {made.settings['evaluation_batch']} items at "
        found += f"once, {there}"
        do = f"{fit['advice']['evaluate']}; or start anyway with --force"
        raise DoesNotFit("the evaluation does not fit", where=config.out, found=found, do=do)
    return str(made.settings["stream"])


def _evaluate_once(
    model: Any, task: TaskConfig, folder: Path, variant: str, console: Console, seed: int, leaks: Sequence[str] = ()
) -> dict[str, Any]:
    """Evaluate, unless the very result is there already (after an interruption); returns the result. `leaks`: see
    `evaluate_task`."""
    from halfbyte.evaluate.evaluate import described
    from halfbyte.evaluate.results import stored_fingerprint
    from halfbyte.evaluate.show import print_result
    from halfbyte.evaluate.tasks import load_task_set

    place = folder / "evaluations" / variant
    result: dict[str, Any] = {}
    if stored_fingerprint(place) == load_task_set(task, seed=seed).fingerprint:
        result = json.loads((place / "result.json").read_text(encoding="utf-8"))
    said = described(model)  # by their fingerprints: other weights may lie at the same place by now
    same = {key: said[key] for key in ("model", "weights", "compute", "fingerprints")}
    same |= {"seed": seed, "variant": variant}
    if any(result.get(key) != value for key, value in same.items()) or result.get("leaks", []) != list(leaks):
        result = evaluate(model, task, place, variant, console, seed=seed, leaks=leaks)
    print_result(result, console)
    return result


def _prove(
    model: Any, task: TaskConfig, folder: Path, base: str, console: Console, seed: int, leaks: list[str]
) -> dict[str, Any]:
    """Score the tuned model and compare it with the base and, for numbers, with the constant guess; its result.

    `leaks`: how the training data give test items away, which stands beside every verdict.
    """
    from halfbyte.evaluate.compare import compare_folders
    from halfbyte.evaluate.evaluate import constant_folder
    from halfbyte.evaluate.show import print_comparison
    from halfbyte.evaluate.tasks import load_task_set

    evaluations = folder / "evaluations"
    result = _evaluate_once(model, task, folder, "tuned", console, seed, leaks)
    comparison = compare_folders(evaluations / base, evaluations / "tuned", seed=seed)
    durable.write_text(folder / "comparison.json", json.dumps(comparison, indent=2) + "\n")
    print_comparison(comparison, console)
    if task.kind == "number":
        told = load_task_set(task, seed=seed).warnings
        constant_folder(evaluations / "tuned", evaluations / "median", told=told)
        against = compare_folders(evaluations / "median", evaluations / "tuned", seed=seed)
        (folder / "comparisons").mkdir(exist_ok=True)
        durable.write_text(folder / "comparisons" / "median-tuned.json", json.dumps(against, indent=2) + "\n")
        print_comparison(against, console)
    return result


def _say_choices(model: Any, console: Console) -> None:
    from halfbyte import kernels

    kernel = kernels.choose(model.device)
    console.print(f"device {model.device}: {model.device_reason}", markup=False)
    if model.stream_reason:
        console.print(f"stream {'off' if model.streamer is None else 'on'}: {model.stream_reason}", markup=False)
    say_compute(model, console)
    console.print(f"kernels {kernel.name}: {kernel.reason}", markup=False)
    parts = "; ".join(map(str, model.replaced)) or "no norm or gated MLP that halfbyte computes itself"
    console.print(f"parts of the model: {parts}", markup=False)


def demo(out: Path, console: Console) -> int:
    """`halfbyte demo`: the whole story on what the package ships. One that was interrupted goes on."""
    from halfbyte.plan.ladder import plan_model
    from halfbyte.plan.render import render_plan

    started = time.monotonic()
    begun = (out / "run.yaml").is_file()
    unfinished = (begun or (out / "evaluations").is_dir()) and not (out / "report.html").exists()
    if unfinished:
        console.print(f"the demo in {out} was interrupted: it goes on", markup=False)
    elif (kept := _make_room(out)) is not None:
        console.print(f"the demo that was in {out} is now in {kept}", markup=False)
    console.rule("1. The ladder: what the smallest Llama 3.1 weighs")
    render_plan(plan_model("llama-3.1-8b", rank=32, targets="attention"), console)
    console.rule("2. Out of the box: what does a LEGO set cost?")
    config = load_run(DEMO / "run.yaml", [f"out={json.dumps(str(out.resolve()))}"])
    assert config.task is not None
    task = load_task(Path(config.task))
    whole = load(Target(config.model, None, "bf16", None, None), config.device, console)
    _evaluate_once(whole, task, out, "base-bf16", console, config.seed)
    del whole
    console.rule("3. Tune it in 4 bits, and prove whether it got better")
    code = tune(config, resume=begun and unfinished, force=False, console=console)
    if code == 0:
        what = "the rest of the story" if unfinished else "the whole story"
        console.print(f"{what} took {time.monotonic() - started:,.0f} s; open {out / 'report.html'}", markup=False)
    if code == 130:
        console.print("or with the whole story, from where it is: halfbyte demo", markup=False)
    return code


def _make_room(out: Path) -> Path | None:
    """Move an earlier demo aside; returns its new place."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not out.is_dir() or not ((out / "run.yaml").exists() or (out / "evaluations").is_dir()):
        raise ConfigError("this is no folder of an earlier demo", where=out, do="choose another: --out FOLDER")
    number = 1
    while (place := out.with_name(f"{out.name}-{number}")).exists():
        number += 1
    return out.rename(place)
