"""The verbs that need more than one stage, in the order in which the stages follow each other."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from halfbyte.config import RunConfig, TaskConfig, load_run, load_task, parse_bytes
from halfbyte.errors import CheckpointError, ConfigError, DoesNotFit
from halfbyte.formats import Weights

DEMO = Path(__file__).parent / "demo"


@dataclass(frozen=True)
class Target:
    """What MODEL or RUN on a command line stands for."""

    model: str
    revision: str | None
    weights: Weights | None
    adapter: Path | None
    run: Path | None  # the run's folder


def run_folder(path: Path) -> Path:
    """The folder of the run that `path` (that folder, or a RUN.yaml) names. Raises ConfigError when there is none."""
    if path.is_file():
        path = Path(load_run(path).out)
    if not (path / "run.yaml").is_file():
        found = "no run.yaml in it" if path.is_dir() else "no such folder"
        raise ConfigError("this is no run", where=path, found=found, do="start one: halfbyte tune RUN.yaml")
    return path


def resolve(target: str, adapter: Path | None, weights: Weights | None, revision: str | None) -> Target:
    """Tell a run from a model; what is named on the command line goes before what the run says."""
    path = Path(target)
    is_run = (path / "run.yaml").is_file() or (path.is_file() and path.suffix in (".yaml", ".yml"))
    if not is_run:
        return Target(target, revision, weights, adapter, None)
    folder = run_folder(path)
    config = load_run(folder / "run.yaml")
    own = folder / "adapter"
    if adapter is None and not (own / "adapter_config.json").is_file():
        raise CheckpointError("the run has no adapter yet", where=folder, do="finish it: halfbyte tune ... --resume")
    return Target(config.model, config.revision, weights or cast(Weights, config.weights), adapter or own, folder)


# ---------------------------------------------------------------- plan and pack


def plan(options: argparse.Namespace, console: Console) -> int:
    """`halfbyte plan`; returns 3 where the plan does not fit."""
    from halfbyte.plan.ladder import plan_model
    from halfbyte.plan.render import render_plan

    rank, targets, weights, model = options.lora_rank, options.lora_targets, options.weights, options.model
    path = Path(model)
    if path.suffix in (".yaml", ".yml") or (path / "run.yaml").is_file():
        config = load_run(path / "run.yaml" if path.is_dir() else path)
        model, weights = config.model, weights or config.weights
        rank = config.adapter.rank if rank is None else rank
        targets = targets or config.adapter.targets
        options.sequence = config.data.max_tokens if options.sequence is None else options.sequence
    if isinstance(targets, str) and "," in targets:
        targets = [part.strip() for part in targets.split(",") if part.strip()]
    made = plan_model(
        model,
        rank=rank if rank is not None else 16,
        targets=targets or "all",
        weights=weights or "nf4",
        sequence=512 if options.sequence is None else options.sequence,
        batch=1 if options.batch is None else options.batch,
        memory=parse_bytes(options.memory) if options.memory else None,
    )
    if options.json:
        print(json.dumps(made.to_json(), indent=2))
    else:
        render_plan(made, console)
    return 3 if made.fits is False else 0


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
    console.print(f"{report.quantised} linear layers in {weights}: {report.quantised_nbytes:,} bytes", markup=False)
    for left in report.left:
        console.print(f"{left.name} stays in 16 bits: {left.nbytes:,} bytes ({left.reason})", markup=False)


# ---------------------------------------------------------------- evaluate, compare, generate


def evaluate_model(
    target: str,
    task_file: Path,
    *,
    adapter: Path | None,
    weights: Weights | None,
    revision: str | None,
    device: str,
    variant: str | None,
    limit: int | None,
    out: Path | None,
    console: Console,
) -> None:
    """`halfbyte evaluate`."""
    from halfbyte.evaluate.show import print_result

    task = load_task(task_file)
    what = resolve(target, adapter, weights, revision)
    model = _load(what, device, console)
    name = variant or ("tuned" if what.adapter else f"base-{model.weights}")
    folder = out or (what.run or Path("runs") / task.name) / "evaluations" / name
    result = _evaluate(model, task, folder, name, console, limit=limit)
    print_result(result, console)
    console.print(f"written to {folder}", markup=False)


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

    what = resolve(options.model, options.adapter, options.weights, options.revision)
    if options.base:
        what = dataclasses.replace(what, adapter=None)
    if options.max_new_tokens < 1:
        raise ConfigError("--max-new-tokens must be at least 1", found=str(options.max_new_tokens))
    model = _load(what, options.device, console)
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


def _load(what: Target, device: str, console: Console, adapter: bool = True) -> Any:
    from halfbyte.model.build import load_model

    with _bytes_bar(console) as progress:
        return load_model(
            what.model,
            revision=what.revision,
            weights=what.weights,
            adapter=what.adapter if adapter else None,
            device=device,
            progress=progress,
        )


def _evaluate(
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


# ---------------------------------------------------------------- tune


def tune(config: RunConfig, *, resume: bool, force: bool, console: Console) -> int:
    """`halfbyte tune`: plan, evaluate the base, train, evaluate the tuned model, compare, report.

    Returns 0, or 130 when the run was stopped; raises DoesNotFit (exit 3) before anything is loaded.
    """
    from halfbyte.data.dataset import load_training
    from halfbyte.data.show import first_example
    from halfbyte.data.template import load_examples
    from halfbyte.model.adapter import load_adapter
    from halfbyte.tune.run import prepare_folder, run_training

    task = load_task(Path(config.task)) if config.task else None
    if not config.data.train:
        raise ConfigError("no training data is named", where="data.train", do="add 'data: {train: train.jsonl}'")
    load_examples(config.data.train, config.data.template)  # its faults are cheap to find before the model is loaded
    config = prepare_folder(config, resume)
    folder = Path(config.out)
    what = Target(config.model, config.revision, cast(Weights, config.weights), None, folder)
    model = _load(what, config.device, console)
    _say_choices(model, console)
    data = load_training(config.data, model.tokenizer, config.seed)
    console.print(data.describe(), markup=False)
    console.print(first_example(data.train[0], model.tokenizer))
    planner = _Planner(model, data, force, console)
    config = planner.choose(config)
    task = _with_training_median(task, config)
    if task is not None:
        _evaluate_once(model, task, folder, f"base-{config.weights}", console, config.seed)
    outcome = run_training(model, data, config, planner.plan_json, resume=resume, console=console)
    planner.show(outcome.peak_bytes, outcome.mapped_bytes)
    console.print(f"{outcome.steps} steps in {outcome.seconds:,.0f} s; adapter in {folder / 'adapter'}", markup=False)
    if not outcome.finished:
        return 130
    if task is not None:
        load_adapter(model.net, folder / "adapter", model.fingerprint)
        model.recompute(0)
        _prove(model, task, folder, f"base-{config.weights}", console, config.seed)
    from halfbyte.report.page import report

    console.print(f"report: {report(folder)}", markup=False)
    return 0


def _with_training_median(task: TaskConfig | None, config: RunConfig) -> TaskConfig | None:
    """A number task that names no training data takes the run's: an answer without a number counts as its median."""
    if task is None or task.kind != "number" or task.fallback is not None or task.train is not None:
        return task
    from halfbyte.data.dataset import training_median
    from halfbyte.data.template import load_examples

    assert config.data.train is not None
    return dataclasses.replace(task, fallback=training_median(load_examples(config.data.train, config.data.template)))


def _evaluate_once(model: Any, task: TaskConfig, folder: Path, variant: str, console: Console, seed: int) -> None:
    """Evaluate, unless a result is there already (after an interruption)."""
    from halfbyte.evaluate.show import print_result

    place = folder / "evaluations" / variant
    if (place / "result.json").is_file():
        result = json.loads((place / "result.json").read_text(encoding="utf-8"))
    else:
        result = _evaluate(model, task, place, variant, console, seed=seed)
    print_result(result, console)


def _prove(model: Any, task: TaskConfig, folder: Path, base: str, console: Console, seed: int) -> None:
    """Score the tuned model and compare it with the base and, for numbers, with the constant guess."""
    from halfbyte.evaluate.compare import compare_folders
    from halfbyte.evaluate.evaluate import constant_folder
    from halfbyte.evaluate.show import print_comparison

    evaluations = folder / "evaluations"
    _evaluate_once(model, task, folder, "tuned", console, seed)
    comparison = compare_folders(evaluations / base, evaluations / "tuned", seed=seed)
    (folder / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n", encoding="utf-8")
    print_comparison(comparison, console)
    if task.kind == "number":
        constant_folder(evaluations / "tuned", evaluations / "median")
        against = compare_folders(evaluations / "median", evaluations / "tuned", seed=seed)
        (folder / "comparisons").mkdir(exist_ok=True)
        text = json.dumps(against, indent=2) + "\n"
        (folder / "comparisons" / "median-tuned.json").write_text(text, encoding="utf-8")
        print_comparison(against, console)


def _say_choices(model: Any, console: Console) -> None:
    from halfbyte import kernels

    kernel = kernels.choose(model.device)
    console.print(f"device {model.device}: {model.device_reason}", markup=False)
    console.print(f"kernels {kernel.name}: {kernel.reason}", markup=False)


class _Planner:
    """What the plan says of a run: the automatic choices, plan.json, and the figures beside the measured ones."""

    def __init__(self, model: Any, data: Any, force: bool, console: Console) -> None:
        self.model, self.data, self.force, self.console = model, data, force, console
        self.plan: dict[str, Any] = {}

    def choose(self, config: RunConfig) -> RunConfig:
        """Settle micro-batch and recomputation where they are open. Raises DoesNotFit unless `force`."""
        from halfbyte.plan.activations import RUNTIME_BYTES, choose, shape_info

        if "auto" not in (config.tune.micro_batch, config.tune.recompute):
            return config
        shape = shape_info(self.model.net.config.to_dict(), rank=config.adapter.rank, targets=config.adapter.targets)
        adapter = self.model.adapter_parameters(config.adapter)
        chosen = choose(
            shape,
            batch=config.tune.batch,
            longest_tokens=self.data.counts.longest,
            memory_bytes=self._memory(config),
            # parameters, gradients, AdamW; the runtime is part of a given budget, and otherwise it is there already
            fixed_bytes=16 * adapter + self._scratch_bytes() + (RUNTIME_BYTES if config.memory != "auto" else 0),
            dtype_bytes=self.model.dtype.itemsize,
        )
        if chosen.fits is False and not self.force:
            raise DoesNotFit(
                "the run does not fit",
                where=config.out,
                found=chosen.reason,
                do="lower data.max_tokens or adapter.rank, raise memory, or start anyway with --force",
            )
        options = config.tune
        micro_batch = chosen.micro_batch if options.micro_batch == "auto" else options.micro_batch
        recompute = chosen.recompute if options.recompute == "auto" else options.recompute
        self.console.print(f"micro-batch {micro_batch}, {recompute} layers recomputed: {chosen.reason}", markup=False)
        options = dataclasses.replace(options, micro_batch=micro_batch, recompute=recompute)
        return dataclasses.replace(config, tune=options)

    def _scratch_bytes(self) -> int:
        """Of the buffer that weights are decoded into: the largest packed layer."""
        from halfbyte.model.adapter import quant_linears

        layers = quant_linears(self.model.net).values()
        return max(layer.in_features * layer.out_features for layer in layers) * int(self.model.dtype.itemsize)

    def _memory(self, config: RunConfig) -> int:
        """Bytes that the run may take."""
        from halfbyte.plan.machine import this_machine

        if config.memory != "auto":
            return parse_bytes(config.memory)
        if self.model.device.type == "cuda":
            import torch

            return int(torch.cuda.mem_get_info(self.model.device)[0])
        available = this_machine(cuda=False).available_bytes
        if available is None:
            raise ConfigError("this system does not say how much memory is free", where="memory", do="set memory: 8GB")
        return available

    def plan_json(self, config: RunConfig) -> dict[str, Any]:
        from halfbyte.plan.ladder import plan_model

        made = plan_model(
            str(self.model.path),
            rank=config.adapter.rank,
            targets=config.adapter.targets,
            weights=config.weights,
            sequence=self.data.counts.longest,
            batch=int(config.tune.micro_batch),
            recompute=int(config.tune.recompute),
        )
        self.plan = made.to_json()
        return self.plan

    def show(self, peak: int | None, mapped: int | None) -> None:
        """The plan beside what was measured."""
        planned = self.plan["phases"]["tune"]["peak_bytes"]
        if peak is not None and planned is not None:
            self.console.print(
                f"peak memory: planned {planned / 1e9:.2f} GB, measured {peak / 1e9:.2f} GB, "
                f"and {(mapped or 0) / 1e9:.2f} GB mapped from files"
            )


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


# ---------------------------------------------------------------- demo


def demo(out: Path, console: Console) -> int:
    """`halfbyte demo`: the whole story on what the package ships."""
    from halfbyte.plan.ladder import plan_model
    from halfbyte.plan.render import render_plan

    started = time.monotonic()
    kept = _make_room(out)
    if kept is not None:
        console.print(f"the demo that was in {out} is now in {kept}", markup=False)
    console.rule("1. The ladder: what the smallest Llama 3.1 weighs, and what is trained beside it")
    render_plan(plan_model("llama-3.1-8b", rank=32, targets="attention"), console)
    console.rule("2. Out of the box: a tiny base model, asked what a LEGO set costs")
    config = load_run(DEMO / "run.yaml", [f"out={json.dumps(str(out.resolve()))}"])
    assert config.task is not None
    task = load_task(Path(config.task))
    for weights in ("bf16",):
        what = Target(config.model, None, weights, None, None)
        _evaluate_once(_load(what, config.device, console), task, out, f"base-{weights}", console, config.seed)
    console.rule("3. Tune it in 4 bits, and prove whether it got better")
    code = tune(config, resume=False, force=False, console=console)
    if code == 0:
        console.print(
            f"the whole story took {time.monotonic() - started:,.0f} s; open {out / 'report.html'}", markup=False
        )
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
