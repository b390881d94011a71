"""`halfbyte evaluate`: a model, or a run, asked a task or tasks of EleutherAI's harness."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from halfbyte.config import RESERVED, load_run, load_task
from halfbyte.errors import ConfigError
from halfbyte.formats import Weights
from halfbyte.pipeline import Target, evaluate, load, resolve, say_compute, saying, with_training_median
from halfbyte.progress import items_bar


@dataclass(frozen=True)
class Asked:
    """What `evaluate` is told of the model and of where the result goes, whatever it is asked; None: by default."""

    target: str  # MODEL or RUN
    adapter: Path | None
    weights: Weights | None
    revision: str | None
    device: str
    compute: str | None
    variant: str | None
    limit: int | None
    out: Path | None

    def check(self) -> None:
        _check_count("--limit", self.limit, 1, "leave it away for all items")
        _check_variant(self.variant)

    def resolve(self) -> Target:
        return resolve(self.target, self.adapter, self.weights, self.revision, compute=self.compute)

    def load(self, what: Target, console: Console) -> tuple[Any, str]:
        """The model, and the name of its variant."""
        model = load(what, self.device, console)
        say_compute(model, console)
        return model, self.variant or ("tuned" if what.adapter else f"base-{model.weights}")

    def require_same_model(self, folder: Path, what: Target, model: Any) -> None:
        """Raises ConfigError where `folder` has the result of another model. A run's own adapter may be another one by
        now."""
        from halfbyte.evaluate.evaluate import described
        from halfbyte.evaluate.results import require_same_model

        require_same_model(folder, described(model), adapter=self.adapter is not None or what.run is None)


def evaluate_model(asked: Asked, task_file: Path, *, console: Console, scorer: str | None = None) -> None:
    """`halfbyte evaluate --task`."""
    from halfbyte.evaluate.judge import check_judge
    from halfbyte.evaluate.leaks import learned_from
    from halfbyte.evaluate.tasks import load_task_set

    asked.check()
    task, what, seed = load_task(task_file, scorer), asked.resolve(), 0
    if what.run:  # the run's own seed and training data, so that the result compares with those that the run left
        config = load_run(what.run / "run.yaml")
        task, seed = with_training_median(task, config), config.seed
    tasks = load_task_set(task, seed=seed, limit=asked.limit)
    check_judge(tasks)  # faults are cheap to find before the model is loaded
    own = what.run and what.adapter and what.adapter.resolve().is_relative_to(what.run.resolve())
    leaks = learned_from(tasks, config, what.run) if own else []
    model, name = asked.load(what, console)
    folder = asked.out or (what.run or Path("runs") / task.name) / "evaluations" / name
    _require_same_experiment(folder, tasks.fingerprint)
    if (folder / "result.json").exists():
        asked.require_same_model(folder, what, model)
        console.print(f"{folder} holds an earlier result of this experiment and model: it is replaced", markup=False)
    result = evaluate(model, task, folder, name, console, limit=asked.limit, seed=seed, leaks=leaks)
    _say_result(result, folder, console)


def evaluate_harness(asked: Asked, named: str, *, path: Path | None, shots: int | None, console: Console) -> None:
    """`halfbyte evaluate --harness`: a folder for each task of EleutherAI's harness, written as soon as it is done."""
    from halfbyte.evaluate.harness import evaluate_harness_task
    from halfbyte.evaluate.harness_tasks import load_harness_tasks
    from halfbyte.memory import give_back

    asked.check()
    _check_count("--shots", shots, 0, "leave it away for the task's own number")
    tasks = load_harness_tasks(named, path, shots)
    what = asked.resolve()
    seed = load_run(what.run / "run.yaml").seed if what.run else 0
    model, variant = asked.load(what, console)
    for name, task in tasks.items():
        home = what.run / "harness" / name if what.run else Path("runs") / name / "evaluations"
        folder = asked.out / name if asked.out else home / variant
        asked.require_same_model(folder, what, model)
        give_back()
        with items_bar(console, f"{name} {variant}") as progress:
            result = evaluate_harness_task(model, name, task, folder, variant=variant, seed=seed, limit=asked.limit,
                                           progress=progress, say=saying(console, f"{name} {variant}"))  # fmt: skip
        _say_result(result, folder, console)


def _say_result(result: dict[str, Any], folder: Path, console: Console) -> None:
    from halfbyte.evaluate.show import print_result
    from halfbyte.evaluate.show_details import print_details

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


def _require_same_experiment(folder: Path, fingerprint: str) -> None:
    """Raises ConfigError when `folder` holds the result of another experiment: it is not overwritten."""
    from halfbyte.evaluate.results import FILES, other_experiment, stored_fingerprint

    there = stored_fingerprint(folder)
    if there is None and folder.is_dir():
        others = sorted(path.name for path in folder.iterdir() if path.name not in FILES)
        if others:
            raise ConfigError("the result's folder holds something else", where=folder, found=", ".join(others[:8]),
                              do="name another place with --out: a result has a folder of its own")  # fmt: skip
    if there not in (None, fingerprint):
        raise other_experiment(folder)
