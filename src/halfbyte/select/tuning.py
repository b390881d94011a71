"""How the chosen model would be tuned: what the plan needs to know of it, and what a probe does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from halfbyte.config import DataConfig, RunConfig, TaskConfig, load_run
from halfbyte.data.dataset import data_digest
from halfbyte.data.template import Example, load_examples
from halfbyte.errors import ConfigError
from halfbyte.plan.time import Length


@dataclass(frozen=True)
class Tuning:
    """The run that each candidate is planned for; `train` None: no training data are known."""

    config: RunConfig
    train: Sequence[Example] | None
    validation: int  # items that are held out
    source: str  # where it comes from, in words

    @property
    def length(self) -> Length | None:
        if self.train is None:
            return None
        options = self.config.tune
        items = max(1, len(self.train) - (0 if isinstance(self.config.data.validation, str) else self.validation))
        return Length(items, self.validation, options.epochs, options.batch, options.max_steps, options.validate_every)

    @cached_property
    def digest(self) -> str:
        """Of all data that a probe trains and validates on."""
        return data_digest(self.config.data)

    def probe(self, model: str, revision: str | None, weights: str, steps: int, memory: int | None, device: str,
              out: Path) -> RunConfig:  # fmt: skip
        """The run of a probe: as the whole run would be, but of `steps` steps, and without a task of its own."""
        options = dataclasses.replace(self.config.tune, max_steps=steps)
        room = self.config.memory if memory is None else str(memory)
        return dataclasses.replace(self.config, model=model, revision=revision, weights=weights, tune=options,
                                   task=None, memory=room, device=device, out=str(out))  # fmt: skip


def read_tuning(run: Path | None, task: TaskConfig, *, probing: bool) -> Tuning:
    """The tuning that `run` (RUN.yaml) describes, or without one the defaults on the task's own training data.

    Raises ConfigError, and DataError for training data that can't be read; also where a probe (`probing`) would have
    nothing to train on.
    """
    if run is not None:
        config, source = load_run(run), str(run)
    else:
        data = DataConfig(train=task.train, template=task.template, chat=task.chat, group=task.group)
        config, source = RunConfig(data=data), "the defaults of RUN.yaml" + (", on the task's train" * bool(task.train))
    if not config.data.train:
        if probing:
            raise ConfigError("a probe needs training data", where=run or f"task {task.name}",
                              found="neither a run nor the task names some",
                              do="name the run: --run RUN.yaml, or add 'train: train.jsonl' to the task")  # fmt: skip
        return Tuning(config, None, 0, source)
    train = load_examples(config.data.train, config.data.template)
    return Tuning(config, train, _held_out(config, len(train)), source)


def _held_out(config: RunConfig, items: int) -> int:
    share = config.data.validation
    if isinstance(share, str):
        return len(load_examples(share, config.data.template, split="validation"))
    return round(items * (share or 0.0))
