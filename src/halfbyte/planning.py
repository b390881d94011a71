"""`halfbyte plan`: one model or several, a run, or what a run took."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from halfbyte.config import AdapterConfig, DataConfig, RunConfig, TaskConfig, TuneConfig, load_run, load_task
from halfbyte.errors import ConfigError, HalfbyteError
from halfbyte.options import check_option, parse_bytes
from halfbyte.output import Output
from halfbyte.pipeline import run_folder

if TYPE_CHECKING:
    from halfbyte.plan.ladder import Plan


def plan(options: argparse.Namespace, console: Console) -> int:
    """`halfbyte plan`; returns 3 where the plan does not fit, of several models where none does, and the code of the
    error where one of several can't be planned."""
    from halfbyte.plan import check, compare, sources
    from halfbyte.plan.render import render_plan

    if options.list:
        _list(options, console)
        return 0
    if not options.model:
        what, do = "no model is named", "name one, e.g. halfbyte plan llama-3.1-8b; --list shows the catalogue"
        if options.check:
            what, do = "no run is named", "name its folder, e.g. halfbyte plan --check runs/demo"
        raise ConfigError(what, where="halfbyte plan", do=do)
    if options.check:
        if len(options.model) > 1:
            raise ConfigError("one run is checked at a time", found=", ".join(options.model), do="--check RUN")
        _alone(options, "check")
        check.print_check(_measured_folder(Path(options.model[0])), options.json, console)
        return 0
    if options.sources:
        asked = compare.gather(options.model, lambda model: sources.sources(_planned(model)[0], options.revision))
        if options.json:
            every = [one.to_json() if isinstance(one, compare.Failed) else one for one in asked]
            print(json.dumps(every[0] if len(every) == 1 else {"schema": 1, "sources": every}, indent=2))
        else:
            sources.render([one for one in asked if not isinstance(one, compare.Failed)], console)
        return compare.say_errors(asked, Output(stderr=True))
    if len(options.model) == 1:
        made = _plan_one(options, options.model[0])
        if options.json:
            print(json.dumps(made.to_json(), indent=2))
        else:
            render_plan(made, console)
        return 3 if made.fits is False else 0
    if options.gpus is not None:
        raise ConfigError("several devices are planned for one model", where="--gpus", found=", ".join(options.model),
                          do="name one of the models, or leave --gpus away")  # fmt: skip
    rows = compare.gather(options.model, lambda model: _plan_one(options, model))
    if options.json:
        print(json.dumps(compare.to_json(rows), indent=2))
    else:
        if any(not isinstance(row, compare.Failed) for row in rows):
            compare.render(rows, console)
    return compare.say_errors(rows, Output(stderr=True)) or compare.exit_code(rows)


def _list(options: argparse.Namespace, console: Console) -> None:
    """`halfbyte plan --list`: the catalogue, or what of it has one of the given words in its name."""
    from halfbyte.plan import listing

    _alone(options, "list")
    rows = listing.listed(options.model)
    if options.json:
        print(json.dumps(listing.to_json(rows), indent=2))
    else:
        listing.render(rows, console)


_SETTINGS = ("revision", "lora_rank", "lora_targets", "weights", "sequence", "batch", "memory", "sources", "device",
             "gpus", "link", "check")  # fmt: skip
_WHY = {"check": "--check shows what a run planned and measured", "list": "--list shows the catalogue"}


def _alone(options: argparse.Namespace, mode: str) -> None:
    """Raises ConfigError for what does not go with --check or --list."""
    values = {f"--{name.replace('_', '-')}": getattr(options, name) for name in _SETTINGS if name != mode}
    given = [name for name, value in values.items() if value is not None and value is not False]
    if given:
        raise ConfigError(f"{_WHY[mode]}: nothing of it can be set", where=f"--{mode}", found=", ".join(given),
                          do=f"leave them away, or --{mode}")  # fmt: skip


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
    from halfbyte.plan.devices import find_device
    from halfbyte.plan.ladder import BATCH, SEQUENCE, plan_model
    from halfbyte.plan.streaming import for_a_card, no_card

    _check_options(options)
    rank, targets, weights, sequence = options.lora_rank, options.lora_targets, options.weights, options.sequence
    if targets is not None and "," in targets:
        targets = [part.strip() for part in targets.split(",") if part.strip()]
    memory, batch, revision = options.memory, options.batch, options.revision
    recompute: int | str = "auto"
    optimiser, stream, offload = TuneConfig.optimiser, RunConfig.stream, TuneConfig.offload_activations
    compute, device, data, why, guesses = "auto", options.device, dict[str, Any](), list[str](), list[str]()
    model, config = _planned(model)
    if config is None:
        sequence, batch = SEQUENCE if sequence is None else sequence, BATCH if batch is None else batch
    else:
        weights, revision = weights or config.weights, revision or config.revision
        rank = config.adapter.rank if rank is None else rank
        targets = config.adapter.targets if targets is None else targets
        memory = config.memory if memory is None else memory
        recompute, compute, optimiser = config.tune.recompute, config.compute, config.tune.optimiser
        stream, offload = config.stream, config.tune.offload_activations
        device, (data, why, guesses) = device or config.device, _from_data(config, sequence)
        sequence = data.pop("sequence")
        if batch is None and config.tune.micro_batch != "auto":
            batch = int(config.tune.micro_batch)
    option = for_a_card(stream, offload)
    if option is not None and (where := find_device(device or "auto")).kind != "cuda":
        raise no_card(option, where.name)
    made = plan_model(
        model,
        rank=AdapterConfig.rank if rank is None else rank,
        targets=AdapterConfig.targets if targets is None else targets,
        weights=weights,
        sequence=sequence,
        batch=batch,
        recompute=recompute,
        compute=compute,
        memory=None if memory is None or memory == "auto" else parse_bytes(memory),
        revision=revision,
        device=device or "auto",
        optimiser=optimiser,
        stream=stream,
        offload=offload,
        ranks=options.gpus,
        link=options.link,
        **data,
    )
    notes = [f"{guess}; halfbyte check says more" for guess in guesses]
    return dataclasses.replace(made, reasons=[*made.reasons, *why, *guesses], notes=[*made.notes, *notes])


def _check_options(options: argparse.Namespace) -> None:
    """Raises ConfigError for what a RUN.yaml could not say either."""
    known: tuple[tuple[str, type, str], ...] = (
        ("--lora-rank", AdapterConfig, "rank"),
        ("--lora-targets", AdapterConfig, "targets"),
        ("--sequence", DataConfig, "max_tokens"),
        ("--batch", TuneConfig, "micro_batch"),
        ("--memory", RunConfig, "memory"),
    )
    for flag, cls, name in known:
        value = getattr(options, flag.strip("-").replace("-", "_"))
        if value is not None:
            check_option(cls, name, value, flag)


def _from_data(config: RunConfig, sequence: int | None) -> tuple[dict[str, Any], list[str], list[str]]:
    """What the files of a run say of it, as `plan_model` takes it, the reasons for it, and what is guessed and why:
    `sequence`, unless it is given; `learned`, tokens of an item whose loss counts, at most; `length`, how long the run
    is; `step_items`; of its task `items`, `evaluation_sequence`, `evaluation_new` and `scored`.

    What is not here or can't be read is left out: `tune` says better what is wrong with it.
    """
    from halfbyte.data.lengths import training_lengths
    from halfbyte.plan.time import Length

    options = config.tune
    found: dict[str, Any] = {"step_items": options.batch, "sequence": sequence or config.data.max_tokens}
    if not _is_local(config.data.train) or (isinstance(config.data.validation, str)
                                            and not _is_local(config.data.validation)):  # fmt: skip
        names = ", ".join(str(name) for name in (config.data.train, config.data.validation) if isinstance(name, str))
        return found, [], [f"sequence: data.max_tokens, {found['sequence']}, as the data are not here: {names}"]
    try:
        data = training_lengths(config.data, _tokenizer_folder(config), config.seed)
    except HalfbyteError as error:
        return found, [], [f"sequence: data.max_tokens, {found['sequence']}, as the data can't be read: {error.what}"]
    found |= {"sequence": sequence or data.longest, "learned": data.learned}
    found["length"] = Length(max(1, data.items), data.validation_items, options.epochs, options.batch,
                             options.max_steps, options.validate_every)  # fmt: skip
    fault = ""
    if config.task:
        try:
            task = load_task(Path(config.task), runs=False)
            fault = "" if _is_local(task.data) else f"are not here: {task.data}"
            found |= asked_of(task, config, config.data.max_tokens)
        except HalfbyteError as error:
            fault = f"can't be read: {error.what}"
    guesses = [f"evaluation: as if of 16 items like those of training, as the data {fault}"] if fault else []
    return found, [f"sequence: {'as asked' if sequence else data.reason}"], guesses


def asked_of(task: TaskConfig, config: RunConfig, bound: int | None = None) -> dict[str, Any]:
    """What `plan_model` has to know of the run's `task`: `items`, `evaluation_sequence` (where the lengths are not
    known, `bound`), `evaluation_new` and `scored`; nothing where its data are not here, or no length is known. Raises
    HalfbyteError for a task that can't be asked."""
    from halfbyte.data.lengths import task_lengths
    from halfbyte.evaluate.options import rendered_options
    from halfbyte.plan.answering import Scored

    if not _is_local(task.data):
        return {}
    asked = task_lengths(task, _tokenizer_folder(config), lambda example: rendered_options(example, task)[0])
    if asked is None or (longest := asked.longest or bound) is None:
        return {}
    return {
        "items": asked.items,
        "evaluation_sequence": longest,
        "evaluation_new": task.decoding.max_new_tokens if task.generates else 0,
        "scored": None if asked.scored is None else Scored(asked.scored.options, asked.scored.own),
    }


def _is_local(source: str | None) -> bool:
    """Whether the data lie in files here."""
    return bool(source) and (Path(str(source)).is_file() or glob.has_magic(str(source)))


def _tokenizer_folder(config: RunConfig) -> Path | None:
    """The folder of the run's model, if it is here: its own, or the copy of a hub model that was fetched once."""
    from halfbyte.checkpoint.hub import download

    path = Path(config.model).expanduser()
    if path.is_dir():
        return path
    try:
        return download(config.model, config.revision, local_only=True) if config.model.count("/") == 1 else None
    except HalfbyteError:
        return None
