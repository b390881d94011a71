"""`halfbyte evaluate`: a model, or a run, asked a task or tasks of EleutherAI's harness."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console

from halfbyte.config import RESERVED, TaskConfig, load_run, load_task
from halfbyte.errors import ConfigError
from halfbyte.formats import Weights
from halfbyte.pipeline import evaluate, load, resolve, say_compute, saying, with_training_median
from halfbyte.progress import items_bar


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
    scorer: str | None = None,
) -> None:
    """`halfbyte evaluate`."""
    from halfbyte.evaluate.evaluate import described
    from halfbyte.evaluate.judge import check_judge
    from halfbyte.evaluate.leaks import learned_from
    from halfbyte.evaluate.results import require_same_model
    from halfbyte.evaluate.show import print_result
    from halfbyte.evaluate.show_details import print_details
    from halfbyte.evaluate.tasks import load_task_set

    _check_count("--limit", limit, 1, "leave it away for all items")
    _check_variant(variant)
    task = load_task(task_file, scorer)
    what = resolve(target, adapter, weights, revision, compute=compute)
    seed = 0
    if what.run:  # the run's own seed and training data, so that the result compares with those that the run left
        config = load_run(what.run / "run.yaml")
        task, seed = with_training_median(task, config), config.seed
    tasks = load_task_set(task, seed=seed, limit=limit)
    check_judge(tasks)  # faults are cheap to find before the model is loaded
    own = what.run and what.adapter and what.adapter.resolve().is_relative_to(what.run.resolve())
    leaks = learned_from(tasks, config, what.run) if own else []
    model = load(what, device, console)
    say_compute(model, console)
    name = variant or ("tuned" if what.adapter else f"base-{model.weights}")
    folder = out or (what.run or Path("runs") / task.name) / "evaluations" / name
    _require_same_experiment(folder, task, seed, limit)
    if (folder / "result.json").exists():
        require_same_model(folder, described(model), adapter=adapter is not None or what.run is None)
        console.print(f"{folder} holds an earlier result of this experiment and model: it is replaced", markup=False)
    result = evaluate(model, task, folder, name, console, limit=limit, seed=seed, leaks=leaks)
    print_result(result, console)
    print_details(result, console)
    console.print(f"written to {folder}", markup=False)


def evaluate_harness(
    target: str,
    named: str,
    *,
    path: Path | None,
    shots: int | None,
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
    """`halfbyte evaluate --harness`: a folder for each task of EleutherAI's harness, written as soon as it is done."""
    from halfbyte.evaluate.evaluate import described
    from halfbyte.evaluate.harness import evaluate_harness_task
    from halfbyte.evaluate.harness_tasks import load_harness_tasks
    from halfbyte.evaluate.results import require_same_model
    from halfbyte.evaluate.show import print_result
    from halfbyte.evaluate.show_details import print_details
    from halfbyte.memory import give_back

    _check_count("--limit", limit, 1, "leave it away for all items")
    _check_count("--shots", shots, 0, "leave it away for the task's own number")
    _check_variant(variant)
    tasks = load_harness_tasks(named, path, shots)
    what = resolve(target, adapter, weights, revision, compute=compute)
    seed = load_run(what.run / "run.yaml").seed if what.run else 0
    model = load(what, device, console)
    say_compute(model, console)
    variant = variant or ("tuned" if what.adapter else f"base-{model.weights}")
    for name, task in tasks.items():
        home = what.run / "harness" / name if what.run else Path("runs") / name / "evaluations"
        folder = out / name if out else home / variant
        require_same_model(folder, described(model), adapter=adapter is not None or what.run is None)
        give_back()
        with items_bar(console, f"{name} {variant}") as progress:
            result = evaluate_harness_task(model, name, task, folder, variant=variant, seed=seed, limit=limit,
                                           progress=progress, say=saying(console, f"{name} {variant}"))  # fmt: skip
        print_result(result, console)
        print_details(result, console)
        console.print(f"written to {folder}", markup=False)


def _check_count(name: str, value: int | None, least: int, do: str) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{name} must be at least {least}", found=str(value), do=do)


def _check_variant(name: str | None) -> None:
    if name is not None and (not name or name.startswith(".") or not re.fullmatch(r"[\w.+-]+", name)):
        raise ConfigError("the variant's name is no name of a folder", where="--variant", found=repr(name),
                          do="use letters, digits, '-', '_', '+' and '.', e.g. base-nf4-long")  # fmt: skip
    if name in RESERVED:
        raise ConfigError("the variant's name is reserved for what an export writes", where="--variant", found=name,
                          do="choose another name")  # fmt: skip


def _require_same_experiment(folder: Path, task: TaskConfig, seed: int, limit: int | None) -> None:
    """Raises ConfigError when `folder` holds the result of another experiment: it is not overwritten."""
    from halfbyte.evaluate.results import FILES, other_experiment, stored_fingerprint
    from halfbyte.evaluate.tasks import load_task_set

    there = stored_fingerprint(folder)
    if there is None and folder.is_dir():
        others = sorted(path.name for path in folder.iterdir() if path.name not in FILES)
        if others:
            raise ConfigError("the result's folder holds something else", where=folder, found=", ".join(others[:8]),
                              do="name another place with --out: a result has a folder of its own")  # fmt: skip
    if there is not None and there != load_task_set(task, seed=seed, limit=limit).fingerprint:
        raise other_experiment(folder)
