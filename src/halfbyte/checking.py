"""`halfbyte check`: the data of a run, before anything of its model but the tokenizer and config.json is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from halfbyte import durable
from halfbyte.config import RunConfig, TaskConfig, load_run, load_task
from halfbyte.errors import DataError, MissingDependency
from halfbyte.formats import check_int8
from halfbyte.pipeline import require_model
from halfbyte.progress import items_bar

if TYPE_CHECKING:
    from halfbyte.checkpoint.source import Checkpoint
    from halfbyte.data.check import Check
    from halfbyte.data.check_report import Report


@dataclass(frozen=True)
class Prepared:
    """A check for the data of a run, with the tokenizer and the checkpoint of its model."""

    check: Check
    tokenizer: Any
    checkpoint: Checkpoint


def check(run: Path, overrides: list[str], *, as_json: bool, console: Console) -> int:
    """`halfbyte check`; returns 1 where something stops a run, else 0."""
    with items_bar(console, "check", disable=as_json) as progress:
        report = check_data(load_run(run, overrides), progress)
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        console.print(report, soft_wrap=True)
    return 0 if report.ok else DataError.exit_code


def check_data(config: RunConfig, progress: Any = lambda done, total: None) -> Report:
    """What there is to say of the data of a run; what stops it is an error in the report, not one that is raised.

    `progress` is called with items done and items in all (None: not known yet). Raises ConfigError and CheckpointError,
    and DataError for a file that can't be read.
    """
    from halfbyte.data.check import check_run

    task = load_task(Path(config.task), runs=False) if config.task else None
    return check_run(config.data, config.seed, prepare_check(config, task).check, progress)


def prepare_check(config: RunConfig, task: TaskConfig | None) -> Prepared:
    """What checks the data of a run. Of its model no weights are read."""
    from halfbyte.checkpoint.skeleton import read_config
    from halfbyte.checkpoint.source import open_checkpoint
    from halfbyte.data.check import Check
    from halfbyte.data.encode import Encoder
    from halfbyte.evaluate.tasks import load_task_set
    from halfbyte.model.build import load_tokenizer

    require_model(config.model)
    if config.compute == "int8":  # whether this machine can is left to `tune`: data may be checked anywhere
        check_int8("", config.weights)
    checkpoint = open_checkpoint(config.model, config.revision)
    text = read_config(checkpoint).get_text_config()
    tokenizer = load_tokenizer(checkpoint, text.vocab_size)
    items, fault = list[Any](), None
    try:
        items = load_task_set(task, seed=config.seed).items if task is not None else []
    except (DataError, MissingDependency) as error:
        fault = error
    made = Check(
        Encoder(tokenizer, config.data.chat),
        config.data,
        task=task,
        asked=[item.example for item in items],
        options=frozenset(option.strip() for item in items for option in item.options),
        context=getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None),
        vocabulary=text.vocab_size,
    )
    if fault is not None:
        made.fault(fault)
    return Prepared(made, tokenizer, checkpoint)


def write_check(report: Report, folder: Path) -> None:
    """Write `report` into the run's folder. Raises OSError."""
    from halfbyte.data.check_report import FILE

    durable.write_text(folder / FILE, json.dumps(report.to_json(), indent=2) + "\n")
