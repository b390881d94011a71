"""An experiment from end to end: score the base, train, score the tuned model, compare, report. And the demo of it."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from halfbyte.config import RunConfig, TaskConfig, load_run, load_task, parse_bytes
from halfbyte.errors import ConfigError, DoesNotFit
from halfbyte.formats import Weights
from halfbyte.pipeline import Target, evaluate, load

DEMO = Path(__file__).parent / "demo"


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
    model = load(what, config.device, console)
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
        result = evaluate(model, task, place, variant, console, seed=seed)
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
        _evaluate_once(load(what, config.device, console), task, out, f"base-{weights}", console, config.seed)
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
