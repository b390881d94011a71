"""The one place where an option is declared: its name, type, default, unit, meaning and check.

`RUN.yaml`, `TASK.yaml`, the command line's `--set key=value` and Python all build the dataclasses below through
`build`, so an option that is unknown, of the wrong type or out of range is refused in the same words everywhere.
A path in a file is relative to that file; a path in `--set` is relative to the current folder.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from halfbyte import durable
from halfbyte.errors import ConfigError, nearest
from halfbyte.formats import COMPUTE, WEIGHTS
from halfbyte.safe_yaml import parse_yaml

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_BYTES = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(|[KMGT]?B|[KMGT]iB)\s*", re.IGNORECASE)

MOST_RANK = 4096
LEAST_TOKENS = 4  # of an item that is trained on

T = TypeVar("T")
Check = Callable[[Any], str | None]  # returns what is wrong, or None


def _one_of(*choices: object) -> Check:
    return lambda value: None if value in choices else f"must be one of {', '.join(map(str, choices))}"


def _between(low: float, high: float = float("inf"), *, above: bool = False) -> Check:
    def check(value: Any) -> str | None:
        if isinstance(value, str) or value is None:
            return None
        if value < low or value > high or (above and value == low):
            return f"must be {'above' if above else 'at least'} {low:g}" + (
                "" if high == float("inf") else f" and at most {high:g}"
            )
        return None

    return check


def _number_or(word: str, low: float) -> Check:
    def check(value: Any) -> str | None:
        return f"must be a number or '{word}'" if isinstance(value, str) and value != word else _between(low)(value)

    return check


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


def option(default: Any, text: str, *, unit: str = "", check: Check | None = None, path: bool = False) -> Any:
    """Declare an option. `path` marks a value that is resolved against the file that names it."""
    metadata = {"help": text, "unit": unit, "check": check, "path": path}
    if isinstance(default, (list, dict)) or (isinstance(default, type) and is_dataclass(default)):
        return field(default_factory=default if isinstance(default, type) else lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class AdapterConfig:
    """LoRA (Hu et al. 2021, arXiv:2106.09685): W x + scale B A x, with A of rank x in and B of out x rank."""

    rank: int = option(16, "rank of the two small matrices", check=_between(1, MOST_RANK))
    alpha: float = option(32, "the update is scaled by alpha / rank", check=_between(0, above=True))
    dropout: float = option(0.0, "share of the adapter's inputs that is zeroed while training", check=_between(0, 0.99))
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
        0.05, "share of train that is held out for validation, or a file; 0: none", path=True, check=_between(0, 0.9)
    )
    template: dict[str, str] | None = option(
        None, "prompt and completion, made of columns: {prompt: 'Set {Name}', ...}"
    )
    group: str | None = option(
        None, "column; a group is never both trained on and validated on; null: that of the TASK.yaml in train"
    )
    learn: str = option("completion", "what the loss counts", check=_one_of("completion", "all"))
    max_tokens: int = option(
        1024, "longest item; what is cut is counted and reported", unit="tokens", check=_between(LEAST_TOKENS)
    )
    chat: str = option(
        "auto", "auto: the model's chat template where it has one; off: never", check=_one_of("auto", "off")
    )


@dataclass(frozen=True)
class TuneConfig:
    epochs: float = option(3, "passes over the training data", check=_between(0, above=True))
    max_steps: int | None = option(None, "ends the run earlier", unit="optimiser steps", check=_between(1))
    batch: int = option(16, "items in an optimiser step", unit="items", check=_between(1))
    micro_batch: int | str = option(
        "auto", "items that are computed at once", unit="items", check=_number_or("auto", 1)
    )
    learning_rate: float = option(2.0e-4, "at the end of the warm-up", check=_between(0, above=True))
    schedule: str = option(
        "cosine", "how the rate falls after the warm-up", check=_one_of("cosine", "linear", "constant")
    )
    warmup: float = option(0.05, "share of all steps in which the rate rises from 0", check=_between(0, 1))
    optimiser: str = option(
        "adamw", "adamw: moments in fp32; adamw8bit: in 8 bits, by bitsandbytes", check=_one_of("adamw", "adamw8bit")
    )
    weight_decay: float = option(0.0, "AdamW's (Loshchilov and Hutter 2019)", check=_between(0))
    clip: float = option(1.0, "largest norm of the gradient; 0: no clipping", check=_between(0))
    validate_every: float = option(
        0.1, "how often the validation loss is taken", unit="epochs", check=_between(0, above=True)
    )
    checkpoint_every: float = option(300, "how often the state is saved", unit="seconds", check=_between(0))
    explosion: float = option(
        3.0,
        "ends the run when the loss of 5 steps in a row is above this times the median of the first 10, plus 1 nat; "
        "0: never",
        check=_between(0),
    )
    recompute: int | str = option(
        "auto",
        "layers whose activations are computed again in the backward pass",
        unit="layers",
        check=_number_or("auto", 0),
    )


@dataclass(frozen=True)
class RunConfig:
    model: str = option("", "a local folder or a hub id; packed or not", path=True)
    revision: str | None = option(None, "branch, tag or commit of a hub model")
    weights: str = option("nf4", "format of the frozen linear layers", check=_one_of(*WEIGHTS))
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
    compute: str = option(
        "auto",
        "type that is computed in; auto: bf16 unless a measurement finds fp32 faster, and never int8",
        check=_one_of(*COMPUTE),
    )
    task: str | None = option(None, "TASK.yaml that is evaluated before and after", path=True)
    seed: int = option(0, "of everything that is random", check=_between(0, 2**63 - 1))
    out: str = option("", "folder of the run; default: runs/NAME beside the file", path=True)


@dataclass(frozen=True)
class DecodingConfig:
    """Greedy decoding."""

    max_new_tokens: int = option(
        16, "longest answer; of json, text and python 256 unless it is set", unit="tokens", check=_between(1)
    )
    stop: list[str] = option(
        ["\n"], "an answer ends before the first of these; of json, text and python none unless it is set"
    )


@dataclass(frozen=True)
class ToleranceConfig:
    relative: float | None = option(0.2, "share of the reference within which a number is a hit", check=_between(0))
    absolute: float | None = option(
        None, "distance from the reference within which a number is a hit", check=_between(0)
    )


@dataclass(frozen=True)
class SplitConfig:
    """Which part of the data is the test set: by a hash of the group, else the id, else the prompt."""

    share: float | None = option(
        None, "share of the data that is the test set, the rest is for training; null: all", check=_between(0, 0.99)
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
    kind: str = option("exact", "what an answer is", check=_one_of(*KINDS))
    options: list[str] | str | None = option(None, "choice: the list of options, or the column that holds it")
    answer: str = option(
        "likelihood",
        "choice: the option of the largest likelihood, or the one that the generated answer names",
        check=_one_of("likelihood", "generated"),
    )
    normalise: str = option(
        "none",
        "choice: the likelihood that decides: none, of the whole option; tokens or bytes, of one of them",
        check=_one_of("none", "tokens", "bytes"),
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
    shots: int = option(0, "examples from `train` put before each prompt", check=_between(0, 64))
    chat: str = option("auto", "as data.chat of a run", check=_one_of("auto", "off"))

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


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file's mapping; an empty file is an empty mapping."""
    try:
        values = parse_yaml(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("there is no such file", where=file, do="check the path") from None
    except IsADirectoryError:
        raise ConfigError("a folder stands where a YAML file is expected", where=file, do="name the file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the file can't be read", where=file, found=str(error),
                          do="make it readable, and UTF-8 text") from None  # fmt: skip
    except ValueError as error:
        raise ConfigError("the file is no valid YAML", where=file, found=str(error),
                          do="write 'key: value' lines; put text with ': ' or '#' in quotes") from None  # fmt: skip
    except RecursionError:
        raise ConfigError("the file is no valid YAML", where=file, found="it is nested too deep",
                          do="write 'key: value' lines") from None  # fmt: skip
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            "the file holds no mapping", where=file, found=type(values).__name__, do="write 'key: value' lines"
        )
    return values


def override(cls: type, values: dict[str, Any], text: str) -> str:
    """Apply one `key.key=value` and return its key; the value is YAML, a path is relative to the current folder."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError("--set takes key=value", found=repr(text), do="e.g. --set tune.epochs=1")
    parsed: dict[str, Any] = {}
    target, inner = values, parsed
    names = key.strip().split(".")
    for name in names[:-1]:
        if not isinstance(target.setdefault(name, {}), dict):
            target[name] = {}
        target, inner = target[name], inner.setdefault(name, {})
    try:
        inner[names[-1]] = parse_yaml(value)
    except ValueError as error:
        raise ConfigError(
            "the value is no valid YAML",
            where=f"--set {key}",
            found=str(error),
            do="quote it, twice: once for YAML and once for the shell",
        ) from None
    resolve_paths(cls, parsed, Path.cwd())
    target[names[-1]] = inner[names[-1]]
    return key.strip()


def resolve_paths(cls: type, values: dict[str, Any], base: Path) -> None:
    """Make the relative paths among `values` absolute, in place. What exists nowhere (a hub id) stays as it is."""
    hints = typing.get_type_hints(cls)
    for item in fields(cls):
        value = values.get(item.name)
        if is_dataclass(hints[item.name]) and isinstance(value, dict):
            resolve_paths(typing.cast(type, hints[item.name]), value, base)
        elif item.metadata.get("path") and isinstance(value, str) and value:
            path = expanded(value)
            looks_local = (
                item.name == "out" or value.startswith((".", "~", "/")) or any(letter in value for letter in "*?[")
            )
            looks_local = looks_local or path.suffix.lower() in _DATA_SUFFIXES
            if looks_local or _exists(base / path):
                values[item.name] = str(path if path.is_absolute() else (base / path))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name longer than the system takes
        return False


def expanded(text: str) -> Path:
    """`text` as a path, with the home folder for `~`; as it is where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


_DATA_SUFFIXES = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".yaml", ".yml"}


def build(cls: type[T], values: Mapping[str, Any], where: str, overridden: Sequence[str] = ()) -> T:
    """Make the dataclass `cls` of a mapping, with every fault named in one ConfigError; those of keys that `--set`
    gave (`overridden`) are blamed on it, not on the file `where`."""
    faults: list[tuple[str, str]] = []
    made = _build(cls, values, "", faults)
    givers = [next((f"--set {given}" for given in overridden if _touches(given, key)), "") for key, _ in faults]
    texts = [text + f" (by {giver})" * bool(giver) for (_, text), giver in zip(faults, givers, strict=True)]
    if len(faults) == 1:
        texts = [faults[0][1]]
    only = givers[0] if givers and givers[0] and len(set(givers)) == 1 else where
    lists = "halfbyte tune --options lists every option" if cls is RunConfig else "docs/files.md lists every key"
    raise_faults(texts, only, lists)
    return typing.cast(T, made)


def raise_faults(faults: Sequence[str], where: str, hint: str) -> None:
    """Raises one ConfigError that names all `faults` of `where`, with a `hint`; does nothing where there are none."""
    if faults:
        raise ConfigError(
            faults[0] if len(faults) == 1 else f"{len(faults)} faults in the options",
            where=where,
            found=None if len(faults) == 1 else "\n         " + "\n         ".join(faults),
            do=f"put {'it' if len(faults) == 1 else 'them'} right; {hint}",
        )


def _touches(given: str, key: str) -> bool:
    """Whether the value at `key` came, whole or in part, with `--set given=...`."""
    return f"{key}.".startswith(f"{given}.") or f"{given}.".startswith(f"{key}.")


def check_option(cls: type, name: str, value: Any, where: str) -> None:
    """Raises ConfigError where `value` can't be the option `name` of `cls`: for the command line's own options, whose
    limits are those of the file. `where` is the option's name there."""
    faults: list[tuple[str, str]] = []
    _build(cls, {name: value}, "", faults)
    if faults:
        raise ConfigError(faults[0][1].replace(f"'{name}'", where, 1), where=where,
                          do="give what a RUN.yaml could say, too")  # fmt: skip


def _build(cls: type, values: Mapping[str, Any], prefix: str, faults: list[tuple[str, str]]) -> Any:
    hints = typing.get_type_hints(cls)
    known = {item.name: item for item in fields(cls)}
    for name in values:
        if name not in known:
            hint = nearest(str(name)[:100], known, "keys") if len(faults) < _HINTS else "it is no option"
            faults.append((f"{prefix}{name}", f"unknown key '{prefix}{name}': {hint}"))
    arguments: dict[str, Any] = {}
    for name, item in known.items():
        if name not in values:
            continue
        value, hint, key = values[name], hints[name], f"{prefix}{name}"
        if is_dataclass(hint):
            if value is None:
                continue
            if not isinstance(value, Mapping):
                faults.append((key, f"'{key}' must be a mapping, not {value!r}"))
                continue
            arguments[name] = _build(typing.cast(type, hint), value, f"{key}.", faults)
            continue
        value = _coerce(value, hint)
        if value is _WRONG:
            faults.append((key, f"'{key}' must be {describe_type(hint)}, not {values[name]!r}"))
            continue
        check = item.metadata.get("check")
        wrong = check(value) if check and value is not None else None
        if wrong:
            faults.append((key, f"'{key}' {wrong}; it is {value!r}"))
            continue
        arguments[name] = value
    return cls(**arguments)


_WRONG = object()
_LARGEST = sys.float_info.max
_HINTS = 20  # unknown keys that the nearest known one is looked for


def _coerce(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`, or `_WRONG`. An int serves as a float, a whole float as an int; no more is bent."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    for choice in typing.get_args(hint) if union else (hint,):
        origin = typing.get_origin(choice) or choice
        if choice is type(None) and value is None:
            return None
        if origin is bool and isinstance(value, bool):
            return value
        if isinstance(value, bool):
            continue
        finite = isinstance(value, (int, float)) and -_LARGEST <= value <= _LARGEST
        if origin is float and finite:
            return value
        if origin is int and finite and value == int(value):
            return int(value)
        if origin is str and isinstance(value, str):
            return value
        if origin is list and isinstance(value, list):
            return [item if isinstance(item, str) else json.dumps(item) for item in value]
        if origin is dict and isinstance(value, dict) and all(isinstance(v, str) for v in value.values()):
            return {str(key): item for key, item in value.items()}
    return _WRONG


def option_type(cls: type, key: str) -> Any:
    """The type that the option `key` ("tune.epochs") is declared with; None where it is no option."""
    hint: Any = cls
    for name in key.split("."):
        hint = typing.get_type_hints(hint).get(name) if is_dataclass(hint) else None
    return None if is_dataclass(hint) else hint


def option_value(cls: type, key: str, value: Any) -> Any:
    """`value` as the option `key` takes it. Raises ConfigError in the words of `build`."""
    made: Any = build(cls, nested(key, value), key)
    for name in key.split("."):
        made = getattr(made, name)
    return made


def nested(key: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} of the key "a.b"."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return typing.cast(dict[str, Any], value)


def describe_type(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    names |= {type(None): "null", list: "a list", dict: "a mapping of texts"}
    choices = (
        typing.get_args(hint) if not isinstance(hint, type) and typing.get_origin(hint) not in (list, dict) else (hint,)
    )
    return " or ".join(names.get(typing.get_origin(choice) or choice, str(choice)) for choice in choices)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain data, for YAML and JSON."""
    return dataclasses.asdict(config)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options of groups under their whole keys: {"tune.epochs": 3}. A template stays in one piece."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and key != "template"
        found |= flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return found


def write_yaml(config: Any, file: Path) -> None:
    """Write a configuration, whole or not at all. Raises OSError."""
    durable.write_text(file, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def describe(cls: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key, default, unit, meaning) of every option, depth first: the table that --help and the documents show."""
    hints = typing.get_type_hints(cls)
    for item in fields(cls):
        if is_dataclass(hints[item.name]):
            yield from describe(typing.cast(type, hints[item.name]), f"{prefix}{item.name}.")
            continue
        default = item.default if item.default is not dataclasses.MISSING else typing.cast(Any, item.default_factory)()
        yield (
            prefix + item.name,
            "null" if default is None else json.dumps(default),
            item.metadata["unit"],
            item.metadata["help"],
        )


def parse_bytes(text: str | int) -> int:
    """'8GB' (decimal), '8GiB' (binary) or 8000000000 as bytes. Raises ConfigError."""
    match = _BYTES.fullmatch(str(text))
    if not match:
        raise ConfigError("this is no amount of memory", found=repr(text), do="write e.g. 8GB, 7.5GiB or 8000000000")
    nbytes = int(float(match[1]) * _UNITS[match[2].upper()])
    if not match[2] and nbytes < 1_000_000:
        raise ConfigError("a number of bytes needs its unit", found=f"{text} bytes", do=f"write e.g. {text}GB")
    return nbytes
