"""Options in files: a YAML file's mapping, what `--set` overrides in it, its paths made absolute, and back to YAML.

A path in a file is relative to that file; a path in `--set` is relative to the current folder.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from halfbyte import durable
from halfbyte.errors import ConfigError
from halfbyte.safe_yaml import dump_yaml, parse_yaml, read_text

_DATA_SUFFIXES = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".yaml", ".yml"}


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file's mapping; an empty file is an empty mapping."""
    try:
        values = parse_yaml(read_text(file))
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
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            "the file holds no mapping",
            where=file,
            found=_kind_of(values),
            do="write 'key: value' lines; data are named in it (data.train in a RUN.yaml, data in a TASK.yaml)",
        )
    return values


def _kind_of(values: object) -> str:
    return "plain text" if isinstance(values, str) else "a list" if isinstance(values, list) else "a single value"


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
    durable.write_text(file, dump_yaml(to_dict(config)))
