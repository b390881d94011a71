"""The one place where an option is declared: its name, type, default, unit, meaning and check.

`RUN.yaml`, `TASK.yaml`, the command line's `--set key=value` and Python all build the dataclasses below through
`options.build`, so an option that is unknown, of the wrong type or out of range is refused in the same words
everywhere.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.errors import ConfigError
from halfbyte.formats import COMPUTE, WEIGHTS
from halfbyte.option_files import expanded, override, read_yaml, resolve_paths
from halfbyte.options import between, build, number_or, one_of, option, parse_bytes

MOST_RANK = 4096
LEAST_TOKENS = 4  # of an item that is trained on


def _memory(value: Any) -> str | None:
    if value == "auto":
        return None
    try:
        parse_bytes(value)
    except ConfigError as error:
        return f"is not understood: {error.what}; write auto, or {(error.do or '').removeprefix('write ')}"
    return None


def _named(value: Any) -> str | None:
    parts = value.split(",") if isinstance(value, str) else value
    return (
        None if any(part.strip() for part in parts) else "names no layer: write all, attention, or names and patterns"
    )


@dataclass(frozen=True)
class AdapterConfig:
    """LoRA (Hu et al. 2021, arXiv:2106.09685): W x + scale B A x, with A of rank x in and B of out x rank."""

    rank: int = option(16, "rank of the two small matrices", check=between(1, MOST_RANK))
    alpha: float = option(32, "the update is scaled by alpha / rank", check=between(0, above=True))
    dropout: float = option(0.0, "share of the adapter's inputs that is zeroed while training", check=between(0, 0.99))
    targets: str | list[str] = option(
        "all", "linear layers that get an adapter: all, attention, or names and patterns", check=_named
    )
    rslora: bool = option(False, "scale by alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv:2312.03732)")

    @property
    def scaling(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclass(frozen=True)
class DataConfig:
    train: str | None = option(
        None, "JSONL, CSV or Parquet file, a glob, the id of a hub data set, or a TASK.yaml that has a split", path=True
    )
    validation: float | str | None = option(
        0.05, "share of train that is held out for validation, or a file; 0: none", path=True, check=between(0, 0.9)
    )
    template: dict[str, str] | None = option(
        None, "prompt and completion, made of columns: {prompt: 'Set {Name}', ...}"
    )
    group: str | None = option(
        None, "column; a group is never both trained on and validated on; null: that of the TASK.yaml in train"
    )
    learn: str = option("completion", "what the loss counts", check=one_of("completion", "all"))
    max_tokens: int = option(
        1024, "longest item; what is cut is counted and reported", unit="tokens", check=between(LEAST_TOKENS)
    )
    chat: str = option(
        "auto", "auto: the model's chat template where it has one; off: never", check=one_of("auto", "off")
    )


@dataclass(frozen=True)
class TuneConfig:
    epochs: float = option(3, "passes over the training data", check=between(0, above=True))
    max_steps: int | None = option(None, "ends the run earlier", unit="optimiser steps", check=between(1))
    batch: int = option(16, "items in an optimiser step", unit="items", check=between(1))
    micro_batch: int | str = option("auto", "items that are computed at once", unit="items", check=number_or("auto", 1))
    packing: str = option(
        "auto",
        "on: the items of a micro-batch stand end to end in one row, without padding; auto: on where the model can",
        check=one_of("auto", "on", "off"),
    )
    learning_rate: float = option(2.0e-4, "at the end of the warm-up", check=between(0, above=True))
    schedule: str = option(
        "cosine", "how the rate falls after the warm-up", check=one_of("cosine", "linear", "constant")
    )
    warmup: float = option(0.05, "share of all steps in which the rate rises from 0", check=between(0, 1))
    optimiser: str = option(
        "adamw", "adamw: moments in fp32; adamw8bit: in 8 bits, by bitsandbytes", check=one_of("adamw", "adamw8bit")
    )
    weight_decay: float = option(0.0, "AdamW's (Loshchilov and Hutter 2019)", check=between(0))
    clip: float = option(1.0, "largest norm of the gradient; 0: no clipping", check=between(0))
    validate_every: float = option(
        0.1, "how often the validation loss is taken", unit="epochs", check=between(0, above=True)
    )
    checkpoint_every: float = option(300, "how often the state is saved", unit="seconds", check=between(0))
    explosion: float = option(
        3.0,
        "ends the run when the loss of 5 steps in a row is above this times the median of the first 10, plus 1 nat; "
        "0: never",
        check=between(0),
    )
    recompute: int | str = option(
        "auto",
        "layers whose activations are computed again in the backward pass",
        unit="layers",
        check=number_or("auto", 0),
    )
    offload_activations: bool = option(
        False, "on a card, what layers keep for the backward pass lies in the host's memory meanwhile"
    )


@dataclass(frozen=True)
class RunConfig:
    where_listed = "halfbyte tune --options lists every option"  # no option: what an error points to

    model: str = option("", "a local folder or a hub id; packed or not", path=True)
    revision: str | None = option(None, "branch, tag or commit of a hub model")
    weights: str = option("nf4", "format of the frozen linear layers", check=one_of(*WEIGHTS))
    adapter: AdapterConfig = option(AdapterConfig, "the matrices that are trained")
    data: DataConfig = option(DataConfig, "what is learned")
    tune: TuneConfig = option(TuneConfig, "how it is learned")
    memory: int | str = option(
        "auto",
        "memory that the run may take, mapped weights included, e.g. 8GB; auto: what is free",
        unit="bytes",
        check=_memory,
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N; to plan, also a card (T4) or its memory (24GB)")
    stream: str = option(
        "auto",
        "on: the layers' weights stay in the host's memory and come to the card one ahead of use; "
        "auto: on where the card has no room for them",
        check=one_of("auto", "on", "off"),
    )
    compute: str = option(
        "auto",
        "type that is computed in; auto: bf16 unless a measurement finds fp32 faster, and never int8",
        check=one_of(*COMPUTE),
    )
    task: str | None = option(None, "TASK.yaml that is evaluated before and after", path=True)
    seed: int = option(0, "of everything that is random", check=between(0, 2**63 - 1))
    out: str = option("", "folder of the run; default: runs/NAME beside the file", path=True)


@dataclass(frozen=True)
class DecodingConfig:
    """Greedy decoding."""

    max_new_tokens: int = option(
        16, "longest answer; of json, text and python 256 unless it is set", unit="tokens", check=between(1)
    )
    stop: list[str] = option(
        ["\n"], "an answer ends before the first of these; of json, text and python none unless it is set"
    )


@dataclass(frozen=True)
class ToleranceConfig:
    relative: float | None = option(0.2, "share of the reference within which a number is a hit", check=between(0))
    absolute: float | None = option(
        None, "distance from the reference within which a number is a hit", check=between(0)
    )


@dataclass(frozen=True)
class SplitConfig:
    """Which part of the data is the test set: by a hash of the group, else the id, else the prompt."""

    share: float | None = option(
        None, "share of the data that is the test set, the rest is for training; null: all", check=between(0, 0.99)
    )
    salt: int = option(0, "another number is another split")


@dataclass(frozen=True)
class ContainsConfig:
    """What `contains` takes for the same text. Unicode is normalised (NFKC) in any case."""

    case: bool = option(False, "contains: whether upper and lower case differ")
    space: bool = option(False, "contains: whether white space counts as written; else runs of it are one space")
    words: bool = option(False, "contains: whether letters and digits may not touch the reference: no 5 in 15")


RESERVED = ("merged", "exported")  # variants that are no model beside an adapter: the names of what `export` writes
KINDS = ("number", "choice", "exact", "contains", "json", "text", "python", "loss")
_LONG_ANSWERS = ("json", "text", "python")
_LONG_DECODING = {"max_new_tokens": 256, "stop": []}  # what these kinds start from where the file says nothing


@dataclass(frozen=True)
class TaskConfig:
    name: str = option("", "default: the file's name")
    data: str = option("", "the test set: as data.train of a run", path=True)
    split: SplitConfig = option(SplitConfig, "which part of the data is the test set")
    template: dict[str, str] | None = option(None, "as data.template of a run")
    kind: str = option("exact", "what an answer is", check=one_of(*KINDS))
    options: list[str] | str | None = option(None, "choice: the list of options, or the column that holds it")
    answer: str = option(
        "likelihood",
        "choice: the option of the largest likelihood, or the one that the generated answer names",
        check=one_of("likelihood", "generated"),
    )
    normalise: str = option(
        "none",
        "choice: the likelihood that decides: none, of the whole option; tokens or bytes, of one of them",
        check=one_of("none", "tokens", "bytes"),
    )
    contains: ContainsConfig = option(ContainsConfig, "contains: what counts as the same text")
    schema: str | None = option(None, "json: a file with the JSON Schema that answers are checked against", path=True)
    scorer: str | None = option(
        None, "python: file.py:function that scores an answer; runs only if --scorer names it, too"
    )
    decoding: DecodingConfig = option(DecodingConfig, "how answers are generated (greedy)")
    tolerance: ToleranceConfig = option(ToleranceConfig, "number: what counts as a hit")
    fallback: float | None = option(
        None, "number: what an answer without a number counts as; null: the training median"
    )
    train: str | None = option(
        None,
        "training data: the examples of `shots` and the training median come from it; null: that of the split",
        path=True,
    )
    id: str | None = option(None, "column of the item's id; null: a hash of all that is asked and the reference")
    group: str | None = option(None, "column; items of a group are not independent")
    shots: int = option(0, "examples from `train` put before each prompt", check=between(0, 64))
    chat: str = option("auto", "as data.chat of a run", check=one_of("auto", "off"))

    @property
    def generates(self) -> bool:
        """Whether answers are generated, not scored by their likelihood."""
        return self.kind != "loss" and not (self.kind == "choice" and self.answer == "likelihood")


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read RUN.yaml, apply `key=value` overrides, check everything, resolve paths.

    Raises ConfigError for a missing or malformed file, an unknown key, a wrong type or a value out of range.
    """
    file = Path(path)
    values = read_yaml(file)
    if "kind" in values and "model" not in values:
        raise ConfigError("this is a task, and a run is asked for", where=file, found="the key 'kind', and no 'model'",
                          do="name the RUN.yaml, which names its task: 'task: TASK.yaml'")  # fmt: skip
    resolve_paths(RunConfig, values, file.resolve().parent)
    overridden = [override(RunConfig, values, text) for text in overrides]
    run = build(RunConfig, values, str(file), overridden)
    if not run.model:
        raise ConfigError("no model is named", where=file, do="add 'model: a folder or a hub id'")
    if not run.out:
        run = dataclasses.replace(run, out=str(file.resolve().parent / "runs" / file.stem))
    return run


def load_task(path: str | Path, scorer: str | None = None, *, runs: bool = True) -> TaskConfig:
    """Read TASK.yaml; raises ConfigError as `load_run` does.

    `scorer` is what the command line allows a task of kind `python` to run (`file.py:function`, relative to the current
    folder). A task that names another one, or any while the command line names none, is refused, unless `runs` says
    that nothing of the task is going to run.
    """
    file = Path(path)
    values = read_yaml(file)
    if "model" in values and "kind" not in values:
        raise ConfigError("this is a run, and a task is asked for", where=file, found="the key 'model', and no 'kind'",
                          do="name the TASK.yaml, which says what a good answer is")  # fmt: skip
    resolve_paths(TaskConfig, values, file.resolve().parent)
    if values.get("kind") in _LONG_ANSWERS and isinstance(values.get("decoding", {}), dict | None):
        values["decoding"] = _LONG_DECODING | (values.get("decoding") or {})
    task = build(TaskConfig, values, str(file))
    if not task.data:
        raise ConfigError("no test data is named", where=file, do="add 'data: test.jsonl'")
    if not task.name:
        task = dataclasses.replace(task, name=file.stem)
    if task.split.share is not None and task.train is None:
        task = dataclasses.replace(task, train=str(file.resolve()))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", task.name):
        raise ConfigError(
            "the task's name can't be a folder's name",
            where=f"{file}: name",
            found=repr(task.name),
            do="use letters, digits, '.', '_' and '-'",
        )
    _check_kind(task, file)
    return _with_scorer(task, scorer, file, runs)


def _check_kind(task: TaskConfig, file: Path) -> None:
    """Raises ConfigError for an option that the task's kind needs and lacks, or has no use for."""
    if task.kind == "choice" and not task.options:
        raise ConfigError(
            "kind 'choice' needs options", where=file, do='add \'options: ["yes", "no"]\' or the name of a column'
        )
    if task.answer == "generated" and task.normalise != "none":
        do = "leave it out, or set answer: likelihood"
        raise ConfigError(
            "a generated answer has no likelihood to normalise",
            where=file,
            found=f"normalise: {task.normalise}",
            do=do,
        )
    for key, kind in (("schema", "json"), ("scorer", "python")):
        if getattr(task, key) is not None and task.kind != kind:
            raise ConfigError(f"'{key}' is for kind '{kind}'", where=file, found=f"kind: {task.kind}",
                              do=f"set kind: {kind}, or leave it out")  # fmt: skip


def _with_scorer(task: TaskConfig, allowed: str | None, file: Path, runs: bool) -> TaskConfig:
    """The task with the absolute path of its scoring function, which the command line has to name as well."""
    if task.kind != "python":
        if allowed is not None:
            raise ConfigError("--scorer is for a task of kind 'python'", where=file, found=f"kind: {task.kind}")
        return task
    own = None if task.scorer is None else _scorer(task.scorer, file.resolve().parent, f"{file}: scorer")
    named = None if allowed is None else _scorer(allowed, Path.cwd(), "--scorer")
    if runs and named is None:
        raise ConfigError("the task runs Python code, and that is done only when the command line names it", where=file,
                          found=f"scorer: {own or 'none'}",
                          do=f"read it, then add --scorer {own or 'file.py:function'}")  # fmt: skip
    if named is not None and own is not None and named != own:
        found = f"scorer: {own}; --scorer {named}"
        raise ConfigError("the command line names another scoring function than the task", where=file, found=found,
                          do="name the same one, or take it out of the task")  # fmt: skip
    return dataclasses.replace(task, scorer=named or own)


def _scorer(text: str, base: Path, where: str) -> str:
    """`file.py:function` with the absolute path of the file."""
    name, colon, function = text.rpartition(":")
    if not colon or not name or not function.isidentifier():
        raise ConfigError("this names no function", where=where, found=repr(text), do="write e.g. scorer.py:score")
    return f"{(base / expanded(name)).resolve()}:{function}"
