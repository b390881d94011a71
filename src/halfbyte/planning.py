"""`halfbyte plan`: one model or several, a run, or what a run took."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from halfbyte.config import RunConfig, load_run, load_task, parse_bytes
from halfbyte.errors import ConfigError, HalfbyteError
from halfbyte.pipeline import run_folder

if TYPE_CHECKING:
    from halfbyte.data.template import Example
    from halfbyte.plan.ladder import Plan
    from halfbyte.plan.time import Length


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
    compute, device, data = "auto", options.device, dict[str, Any]()
    model, config = _planned(model)
    if config is not None:
        weights, revision = weights or config.weights, revision or config.revision
        rank = config.adapter.rank if rank is None else rank
        targets = targets or config.adapter.targets
        sequence = config.data.max_tokens if sequence is None else sequence
        memory = memory or (None if config.memory == "auto" else config.memory)
        recompute, compute = config.tune.recompute, config.compute
        device, data = device or config.device, _from_data(config)
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
        **data,
    )


_AROUND = 4  # tokens that may be learned beside a completion: the end, and what a chat template puts there


def _from_data(config: RunConfig) -> dict[str, Any]:
    """What the files of a run say of it, as `plan_model` takes it: `length`, how long the run is; `learned`, the tokens
    of an item whose loss counts, at most, since none is shorter than a byte; `items` to answer of its task.

    None of what is not here or can't be read: `tune` says better what is wrong with it.
    """
    train = _examples(config.data.train, config.data.template)
    learned = None
    if train and config.data.learn == "completion":
        learned = _AROUND + max(len((example.completion or "").encode()) for example in train)
    return {"length": _length(config, train), "learned": learned, "items": _items(config)}


def _length(config: RunConfig, train: list[Example] | None) -> Length | None:
    from halfbyte.plan.time import Length

    options, held_out = config.tune, config.data.validation
    if train is None:
        return None
    if isinstance(held_out, str):
        apart = _examples(held_out, config.data.template, split="validation")
        if apart is None:
            return None
        items, validation = len(train), len(apart)
    else:
        validation = round(len(train) * (held_out or 0.0))
        items = len(train) - validation
    return Length(max(1, items), validation, options.epochs, options.batch, options.max_steps, options.validate_every)


def _items(config: RunConfig) -> int | None:
    try:
        task = load_task(Path(config.task)) if config.task else None
    except HalfbyteError:
        return None
    if task is None or task.kind not in ("number", "exact"):
        return None
    asked = _examples(task.data, task.template, split="test")
    return None if asked is None else len(asked)


def _examples(file: str | None, template: dict[str, str] | None, *, split: str = "train") -> list[Example] | None:
    """Those of a local file; None without one, and where it can't be read."""
    from halfbyte.data.template import load_examples

    if not file or not Path(file).is_file():
        return None
    try:
        return load_examples(file, template, split=split)
    except HalfbyteError:
        return None
