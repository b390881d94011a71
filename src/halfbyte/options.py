"""How an option is declared, and how values are checked against declarations.

An option is a field of a dataclass, made by `option`, with its default, unit, meaning and check; `config.py` has them
all, and nothing here knows one of them. `build` makes such a dataclass of a mapping, wherever the mapping came from.
"""

from __future__ import annotations

import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any, TypeVar

from halfbyte.errors import ConfigError, nearest

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_BYTES = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(|[KMGT]?B|[KMGT]iB)\s*", re.IGNORECASE)

_WRONG = object()
_LARGEST = sys.float_info.max
_HINTS = 20  # unknown keys that the nearest known one is looked for

T = TypeVar("T")
Check = Callable[[Any], str | None]  # returns what is wrong, or None


class OneOf:
    """A check that also says what it allows."""

    def __init__(self, choices: tuple[object, ...]) -> None:
        self.choices = choices

    def __call__(self, value: Any) -> str | None:
        return None if value in self.choices else f"must be one of {', '.join(map(str, self.choices))}"


def one_of(*choices: object) -> Check:
    return OneOf(choices)


def between(low: float, high: float = float("inf"), *, above: bool = False) -> Check:
    def check(value: Any) -> str | None:
        if isinstance(value, str) or value is None:
            return None
        if value < low or value > high or (above and value == low):
            return f"must be {'above' if above else 'at least'} {low:g}" + (
                "" if high == float("inf") else f" and at most {high:g}"
            )
        return None

    return check


def number_or(word: str, low: float) -> Check:
    def check(value: Any) -> str | None:
        return f"must be a number or '{word}'" if isinstance(value, str) and value != word else between(low)(value)

    return check


def option(default: Any, text: str, *, unit: str = "", check: Check | None = None, path: bool = False) -> Any:
    """Declare an option. `path` marks a value that is resolved against the file that names it."""
    metadata = {"help": text, "unit": unit, "check": check, "path": path}
    if isinstance(default, (list, dict)) or (isinstance(default, type) and is_dataclass(default)):
        return field(default_factory=default if isinstance(default, type) else lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


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
    raise_faults(texts, only, getattr(cls, "where_listed", "docs/files.md lists every key"))
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
                          do="give a value that is allowed")  # fmt: skip


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


def describe(cls: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key, default, unit, meaning) of every option, depth first: the table that --help and the documents show. The
    meaning ends with the values that are allowed where these are a few words, unless it explains each ("off: never").
    """
    hints = typing.get_type_hints(cls)
    for item in fields(cls):
        if is_dataclass(hints[item.name]):
            yield from describe(typing.cast(type, hints[item.name]), f"{prefix}{item.name}.")
            continue
        default = item.default if item.default is not MISSING else typing.cast(Any, item.default_factory)()
        yield (
            prefix + item.name,
            "null" if default is None else json.dumps(default),
            item.metadata["unit"],
            item.metadata["help"] + _allowed(item.metadata),
        )


def _allowed(metadata: Mapping[str, Any]) -> str:
    check = metadata["check"]
    choices = [str(choice) for choice in check.choices] if isinstance(check, OneOf) else []
    told = all(f"{choice}: " in metadata["help"] for choice in choices)
    return "" if told else f" ({', '.join(choices)})"


def parse_bytes(text: str | int) -> int:
    """'8GB' (decimal), '8GiB' (binary) or 8000000000 as bytes. Raises ConfigError."""
    match = _BYTES.fullmatch(str(text))
    if not match:
        raise ConfigError("this is no amount of memory", found=repr(text), do="write e.g. 8GB, 7.5GiB or 8000000000")
    nbytes = int(float(match[1]) * _UNITS[match[2].upper()])
    if not match[2] and nbytes < 1_000_000:
        raise ConfigError(
            "a number of bytes needs its unit", found=f"{text} bytes", do=f"write e.g. {text if nbytes else 8}GB"
        )
    return nbytes
