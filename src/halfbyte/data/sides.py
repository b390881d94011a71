"""One file, two sides: which records of a task's data are for testing, and which may be trained on.

A record's side is settled by a hash of its group, else its id, else its prompt: it keeps its side when records join,
leave or change places. A group is never on both, and neither is a prompt: records with one prompt go where the smallest
of their groups or ids goes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from halfbyte.config import DataConfig, TaskConfig, load_task
from halfbyte.data.records import Record, files_of, load_records
from halfbyte.data.template import Example, to_examples
from halfbyte.data.units import joined
from halfbyte.errors import ConfigError, DataError, nearest


def asked_examples(task: TaskConfig, faults: list[DataError] | None = None) -> list[Example]:
    """The examples that `task` is scored on: all of its data, or the testing side of it.

    What is wrong with records that are no example is added to `faults`; without that list it is raised.
    """
    if task.split.share is None:
        return to_examples(load_records(task.data, split="test"), task.template, faults)
    return [example for example, test in _sides(task, faults) if test]


def training_examples(file: Path, template: Mapping[str, str] | None = None) -> list[Example]:
    """The training side of the task in `file`, by `template`, else by the task's own.

    Raises ConfigError for a task without a split.
    """
    task = load_task(file, runs=False)
    if task.split.share is None:
        raise ConfigError("the task keeps all of its data for testing, so there is nothing to train on", where=file,
                          do="split it: 'split: {share: 0.2}', or name training data of its own")  # fmt: skip
    kept = [example for example, test in _sides(task) if not test]
    return kept if template is None else to_examples([example.record for example in kept], template)


def run_files(data: DataConfig) -> list[Path]:
    """The files that a run's data lie in; of hub data sets none. Raises ConfigError for a broken TASK.yaml."""
    sources = [source for source in (data.train, data.validation) if isinstance(source, str)]
    return [file for source in sources for file in _files_behind(source)]


def task_files(task: TaskConfig) -> list[Path]:
    """The files that a task's items, examples and rules lie in."""
    found = files_of(task.data) + (_files_behind(task.train) if task.train else [])
    found += [Path(task.schema)] if task.schema else []
    found += [Path(task.scorer.rpartition(":")[0])] if task.scorer else []
    return list(dict.fromkeys(found))


def _files_behind(source: str) -> list[Path]:
    """Of a TASK.yaml itself and its data."""
    files = files_of(source)
    if Path(source).suffix.lower() in (".yaml", ".yml"):
        files += files_of(load_task(source, runs=False).data)
    return files


def _sides(task: TaskConfig, faults: list[DataError] | None = None) -> list[tuple[Example, bool]]:
    """(example, whether it is for testing), in the order of the data. Raises DataError where a side is empty."""
    share, salt = task.split.share, task.split.salt
    assert share is not None
    examples = to_examples(load_records(task.data), task.template, faults)
    made = [(example, _rank(key, salt) < share) for example, key in zip(examples, _keys(examples, task), strict=True)]
    tests = sum(test for _, test in made)
    if not 0 < tests < len(made) and not faults:
        side = "testing" if tests == 0 else "training"
        raise DataError(f"the split leaves nothing for {side}", where=f"task {task.name}: split",
                        found=f"{len(made)} records, share {share:g}, salt {salt}",
                        do="change the share or the salt, or name more data")  # fmt: skip
    return made


def _keys(examples: Sequence[Example], task: TaskConfig) -> list[str]:
    """What settles the side of each example."""
    prompts = [" ".join(f"{example.system or ''} {example.prompt}".split()).casefold() for example in examples]
    column = task.group or task.id
    if column is None:
        return [prompt or (example.completion or "") for prompt, example in zip(prompts, examples, strict=True)]
    return joined([value_of(example.record, column) for example in examples], prompts)


def value_of(record: Record, column: str) -> str:
    """The text in `column`, by which records are split. Raises DataError where there is none."""
    if column not in record.values:
        hint = nearest(column, map(str, record.values), "columns")
        raise DataError(f"there is no column '{column}' to split by", where=record.origin, do=hint)
    value = record.values[column]
    if value is None or value == "" or isinstance(value, (list, dict)):
        raise DataError(f"the column '{column}' holds nothing to split by", where=record.origin, found=repr(value))
    return str(value)


def _rank(key: str, salt: int) -> float:
    """A number in [0, 1) that depends on the key and the salt alone. Validation is chosen by another one: the same
    would be high for all that is left for training."""
    digest = hashlib.blake2b(f"test\n{salt}\n{key}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
