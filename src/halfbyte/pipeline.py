"""The verbs that need more than one stage; `experiment.py` holds those that run a whole experiment."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from halfbyte.config import RunConfig, TaskConfig, load_run, load_task, parse_bytes
from halfbyte.errors import CheckpointError, ConfigError, HalfbyteError
from halfbyte.formats import Weights

if TYPE_CHECKING:
    from halfbyte.plan.ladder import Plan
    from halfbyte.plan.time import Length


@dataclass(frozen=True)
class Target:
    """What MODEL or RUN on a command line stands for."""

    model: str
    revision: str | None
    weights: Weights | None
    adapter: Path | None
    run: Path | None  # the run's folder
    compute: str = "auto"


def run_folder(path: Path) -> Path:
    """The folder of the run that `path` (that folder, or a RUN.yaml) names. Raises ConfigError when there is none."""
    if path.is_file():
        path = Path(load_run(path).out)
    if not (path / "run.yaml").is_file():
        found = "no run.yaml in it" if path.is_dir() else "no such folder"
        raise ConfigError("this is no run", where=path, found=found, do="start one: halfbyte tune RUN.yaml")
    return path


def resolve(
    target: str,
    adapter: Path | None,
    weights: Weights | None,
    revision: str | None,
    *,
    base: bool = False,
    compute: str | None = None,
) -> Target:
    """Tell a run from a model; what is named on the command line goes before what the run says. `base`: no adapter."""
    path = Path(target)
    is_run = (path / "run.yaml").is_file() or (path.is_file() and path.suffix in (".yaml", ".yml"))
    if not is_run:
        return Target(target, revision, weights, adapter, None, compute or "auto")
    folder = run_folder(path)
    config = load_run(folder / "run.yaml")
    own = folder / "adapter"
    weights, compute = weights or cast(Weights, config.weights), compute or config.compute
    if base:
        return Target(config.model, config.revision, weights, None, folder, compute)
    if adapter is None and not (own / "adapter_config.json").is_file():
        raise CheckpointError("the run has no adapter yet", where=folder, do="finish it: halfbyte tune ... --resume")
    return Target(config.model, config.revision, weights, adapter or own, folder, compute)


def plan(options: argparse.Namespace, console: Console) -> int:
    """`halfbyte plan`; returns 3 where the plan does not fit, of several models where none does, and the code of the
    error where one of several can't be planned."""
    from halfbyte.plan import check, compare, sources
    from halfbyte.plan.render import render_plan

    if options.check:
        _check_alone(options)
        check.print_check(_measured_folder(Path(options.model[0])), options.json, console)
        return 0
    if options.sources:
        asked = compare.gather(options.model, lambda model: sources.sources(_planned(model)[0], options.revision))
        if options.json:
            every = [one.to_json() if isinstance(one, compare.Failed) else one for one in asked]
            print(json.dumps(every[0] if len(every) == 1 else {"schema": 1, "sources": every}, indent=2))
        else:
            sources.render([one for one in asked if not isinstance(one, compare.Failed)], console)
        return compare.say_errors(asked, Console(stderr=True, highlight=False))
    if len(options.model) == 1:
        made = _plan_one(options, options.model[0])
        if options.json:
            print(json.dumps(made.to_json(), indent=2))
        else:
            render_plan(made, console)
        return 3 if made.fits is False else 0
    rows = compare.gather(options.model, lambda model: _plan_one(options, model))
    if options.json:
        print(json.dumps(compare.to_json(rows), indent=2))
    else:
        compare.render(rows, console)
    return compare.say_errors(rows, Console(stderr=True, highlight=False)) or compare.exit_code(rows)


_NOT_CHECKED = ("revision", "lora_rank", "lora_targets", "weights", "sequence", "batch", "memory", "sources", "device",
                "gpus", "link")  # fmt: skip


def _check_alone(options: argparse.Namespace) -> None:
    """Raises ConfigError for what does not go with --check."""
    if len(options.model) > 1:
        raise ConfigError("one run is checked at a time", found=", ".join(options.model), do="--check RUN")
    values = {f"--{name.replace('_', '-')}": getattr(options, name) for name in _NOT_CHECKED}
    given = [name for name, value in values.items() if value is not None and value is not False]
    if given:
        raise ConfigError("--check shows what a run planned and measured: nothing of it can be set", where="--check",
                          found=", ".join(given), do="leave them away, or --check")  # fmt: skip


def _measured_folder(path: Path) -> Path:
    """As `run_folder`; a run that was killed before its training, and left nothing but measured.json, is one, too."""
    from halfbyte.plan import measured

    folder = Path(load_run(path).out) if path.is_file() else path
    return folder if (folder / measured.FILE).is_file() else run_folder(path)


def _planned(model: str) -> tuple[str, RunConfig | None]:
    """The model that is meant, and of a run its options."""
    path = Path(model)
    if path.suffix not in (".yaml", ".yml") and not (path / "run.yaml").is_file():
        return model, None
    config = load_run(path / "run.yaml" if path.is_dir() else path)
    return config.model, config


def _plan_one(options: argparse.Namespace, model: str) -> Plan:
    """The plan of one model or run; what the command line names goes before what the run says."""
    from halfbyte.plan.ladder import BATCH, SEQUENCE, plan_model

    rank, targets, weights, sequence = options.lora_rank, options.lora_targets, options.weights, options.sequence
    memory, batch, revision = options.memory, options.batch, options.revision
    recompute: int | str = "auto"
    compute, device, length, items, learned = "auto", options.device, None, None, None
    model, config = _planned(model)
    if config is not None:
        weights, revision = weights or config.weights, revision or config.revision
        rank = config.adapter.rank if rank is None else rank
        targets = targets or config.adapter.targets
        sequence = config.data.max_tokens if sequence is None else sequence
        memory = memory or (None if config.memory == "auto" else config.memory)
        recompute, compute = config.tune.recompute, config.compute
        device, length = device or config.device, _length(config)
        items, learned = _items(config), _learned(config)
        if batch is None and config.tune.micro_batch != "auto":
            batch = int(config.tune.micro_batch)
    if isinstance(targets, str) and "," in targets:
        targets = [part.strip() for part in targets.split(",") if part.strip()]
    return plan_model(
        model,
        rank=rank if rank is not None else 16,
        targets=targets or "all",
        weights=weights,
        sequence=SEQUENCE if sequence is None else sequence,
        batch=BATCH if batch is None else batch,
        recompute=recompute,
        compute=compute,
        memory=parse_bytes(memory) if memory else None,
        revision=revision,
        device=device or "auto",
        ranks=options.gpus,
        link=options.link,
        length=length,
        items=items,
        learned=learned,
    )


_AROUND = 4  # tokens that may be learned beside a completion: the end, and what a chat template puts there


def _learned(config: RunConfig) -> int | None:
    """Learned tokens of an item, at most: no token of a completion is shorter than a byte. None: all, or not known."""
    from halfbyte.data.template import load_examples

    try:
        if config.data.learn != "completion" or not config.data.train or not Path(config.data.train).is_file():
            return None
        examples = load_examples(config.data.train, config.data.template)
        return _AROUND + max(len((example.completion or "").encode()) for example in examples)
    except HalfbyteError:
        return None


def _items(config: RunConfig) -> int | None:
    """How many items the run's task asks for answers to; None without such a task, or where it can't be read."""
    from halfbyte.data.template import load_examples

    try:
        task = load_task(Path(config.task)) if config.task else None
        if task is None or task.kind not in ("number", "exact") or not Path(task.data).is_file():
            return None
        return len(load_examples(task.data, task.template, split="test"))
    except HalfbyteError:
        return None


def _length(config: RunConfig) -> Length | None:
    """How long a run is; None where its data are not here or can't be read, which `tune` says better."""
    from halfbyte.data.template import load_examples
    from halfbyte.plan.time import Length

    train, held_out = config.data.train, config.data.validation
    if not train or not Path(train).is_file() or (isinstance(held_out, str) and not Path(held_out).is_file()):
        return None
    try:
        items = len(load_examples(train, config.data.template))
        if isinstance(held_out, str):
            validation = len(load_examples(held_out, config.data.template, split="validation"))
        else:
            validation = round(items * (held_out or 0.0))
            items -= validation
    except HalfbyteError:
        return None
    options = config.tune
    return Length(max(1, items), validation, options.epochs, options.batch, options.max_steps, options.validate_every)


def calibrate_machine(console: Console) -> None:
    """`halfbyte doctor --calibrate`: measure, and keep it in the cache."""
    from halfbyte.calibrate import calibrate
    from halfbyte.plan.calibration import store

    console.print("measuring this machine; leave it alone for about a minute")
    made = calibrate(lambda line: console.print(f"  {line}", markup=False))
    console.print(f"kept in {store(made)}", markup=False)


def pack_model(model: str, out: Path, weights: Weights, revision: str | None, console: Console) -> None:
    """`halfbyte pack`."""
    from halfbyte.checkpoint.pack import pack
    from halfbyte.checkpoint.source import open_checkpoint

    checkpoint = open_checkpoint(model, revision)
    with _bytes_bar(console) as progress:
        report = pack(checkpoint, out, weights, progress=progress)
    if report.already:
        console.print(f"{out} holds this checkpoint in {weights} already: nothing was done", markup=False)
        return
    memory = f", peak memory {report.peak_bytes / 1e9:.2f} GB" if report.peak_bytes else ""
    console.print(f"{out}: {report.nbytes:,} bytes in {report.seconds:.1f} s{memory}", markup=False)
    if report.quantised:
        console.print(f"{report.quantised} linear layers in {weights}: {report.quantised_nbytes:,} bytes", markup=False)
    for left in report.left:
        console.print(f"in 16 bits: {left.name}, {left.nbytes:,} bytes ({left.reason})", markup=False)


def evaluate_model(
    target: str,
    task_file: Path,
    *,
    adapter: Path | None,
    weights: Weights | None,
    revision: str | None,
    device: str,
    compute: str | None,
    variant: str | None,
    limit: int | None,
    out: Path | None,
    console: Console,
) -> None:
    """`halfbyte evaluate`."""
    from halfbyte.evaluate.show import print_result

    if limit is not None and limit < 1:
        raise ConfigError("--limit must be at least 1", found=str(limit))
    task = load_task(task_file)
    what = resolve(target, adapter, weights, revision, compute=compute)
    seed = 0
    if what.run:  # the run's own seed and training data, so that the result compares with those that the run left
        config = load_run(what.run / "run.yaml")
        task, seed = with_training_median(task, config), config.seed
    model = load(what, device, console)
    say_compute(model, console)
    name = variant or ("tuned" if what.adapter else f"base-{model.weights}")
    folder = out or (what.run or Path("runs") / task.name) / "evaluations" / name
    _spare_others(folder, task, seed, limit)
    result = evaluate(model, task, folder, name, console, limit=limit, seed=seed)
    print_result(result, console)
    console.print(f"written to {folder}", markup=False)


def _spare_others(folder: Path, task: TaskConfig, seed: int, limit: int | None) -> None:
    """Raises ConfigError when `folder` holds the result of another experiment: it is not overwritten."""
    from halfbyte.evaluate.tasks import load_task_set

    there = stored_fingerprint(folder)
    if there is not None and there != load_task_set(task, seed=seed, limit=limit).fingerprint:
        raise ConfigError(
            "the folder holds a result on other items, prompts or decoding",
            where=folder,
            do="choose another: --out FOLDER or --variant NAME",
        )


def stored_fingerprint(folder: Path) -> str | None:
    """Of the evaluation in `folder`; None where there is none."""
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)


def with_training_median(task: TaskConfig, config: RunConfig) -> TaskConfig:
    """A number task that names no training data takes the run's: an answer without a number counts as its median."""
    if task.kind != "number" or task.fallback is not None or task.train is not None or not config.data.train:
        return task
    from halfbyte.data.dataset import training_median
    from halfbyte.data.template import load_examples

    return dataclasses.replace(task, fallback=training_median(load_examples(config.data.train, config.data.template)))


def compare(folders: list[Path], metric: str | None, out: Path | None, as_json: bool, console: Console) -> None:
    """`halfbyte compare A B ...`: each of B ... against A."""
    from halfbyte.evaluate.compare import compare_folders
    from halfbyte.evaluate.show import print_comparison

    if len(folders) < 2:
        raise ConfigError("a comparison needs two results", found=str(folders[0]), do="halfbyte compare A B")
    made = [compare_folders(folders[0], other, metric=metric) for other in folders[1:]]
    for comparison in made:
        if not as_json:
            print_comparison(comparison, console)
    whole = made[0] if len(made) == 1 else made
    if as_json:
        print(json.dumps(whole, indent=2))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def generate_text(options: argparse.Namespace, prompt: str, console: Console) -> str:
    """`halfbyte generate`: the answer to one prompt."""
    from halfbyte.config import DecodingConfig
    from halfbyte.data.encode import Encoder
    from halfbyte.data.template import Example
    from halfbyte.evaluate.generate import end_tokens, generate

    what = resolve(options.model, options.adapter, options.weights, options.revision, base=options.base,
                   compute=options.compute)  # fmt: skip
    if options.max_new_tokens < 1:
        raise ConfigError("--max-new-tokens must be at least 1", found=str(options.max_new_tokens))
    model = load(what, options.device, console)
    chat = "off" if options.raw else "auto"
    if what.run and not options.raw:
        chat = load_run(what.run / "run.yaml").data.chat
    encoder = Encoder(model.tokenizer, chat)
    ids = encoder.prompt(Example.of_prompt(prompt))
    decoding = DecodingConfig(max_new_tokens=options.max_new_tokens, stop=options.stop)
    made = generate(model, [ids], decoding, ends=encoder.stops | end_tokens(model))
    speed = f", {made.tokens_per_second:.1f} tokens/s" if made.tokens_per_second else ""
    console.print(f"{len(made.ids[0])} tokens in {made.seconds:.2f} s{speed}", style="dim")
    return made.texts[0]


def say_compute(model: Any, console: Console) -> None:
    """The compute type and why."""
    console.print(f"compute {model.compute}: {model.dtype_reason}", markup=False)


def prepare(what: Target, device: str, console: Console) -> bool:
    """Pack the model into the cache if it is not in the wanted format yet; whether anything was packed.

    Raises ConfigError for a device that is not here, before anything is packed."""
    from halfbyte.model.build import choose_device, open_packed

    choose_device(device)
    packed = False
    with _bytes_bar(console) as bar:

        def progress(name: str, done: int, total: int) -> None:
            nonlocal packed
            packed = True
            bar(name, done, total)

        open_packed(what.model, what.revision, what.weights, progress=progress)
    return packed


def load(what: Target, device: str, console: Console) -> Any:
    from halfbyte.model.build import load_model

    with _bytes_bar(console) as progress:
        return load_model(
            what.model,
            revision=what.revision,
            weights=what.weights,
            adapter=what.adapter,
            device=device,
            compute=what.compute,
            progress=progress,
        )


def evaluate(
    model: Any,
    task: TaskConfig,
    folder: Path,
    variant: str,
    console: Console,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    from halfbyte.evaluate.evaluate import evaluate_task
    from halfbyte.memory import give_back

    give_back()
    columns = (
        TextColumn(f"evaluate {variant}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task("evaluate", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(line, completed=done, total=total)

        return evaluate_task(model, task, folder, variant=variant, seed=seed, limit=limit, progress=progress)


@contextmanager
def _bytes_bar(console: Console) -> Iterator[Any]:
    """A progress callback (what, bytes done, bytes in all) that shows a bar once it is called."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        lines: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in lines:
                lines[what] = bar.add_task(what, total=total)
            bar.update(lines[what], completed=done, total=total)

        yield progress
