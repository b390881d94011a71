"""Are two results of the same experiment? And if not, what differs.

A result keeps the parts that its fingerprint is made of (`tasks.py` gathers them): small things as they are, the
items (column by column) and the examples before the prompts as hashes. Two results compare when all parts are equal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from halfbyte.errors import ConfigError
from halfbyte.evaluate.results import Evaluation

_HASHED = {
    "data.ids": "the items' ids differ",
    "data.groups": "the items' groups differ",
    "data.system": "the items' system texts differ",
    "data.prompts": "what the items ask differs",
    "data.references": "the items' references differ",
    "data.options": "the items' options differ",
    "data": "the items differ, or one result is from an earlier version: evaluate it again",
    "columns": "the items' columns, which the scoring function sees, differ",
    "shots": "the examples before the prompts differ",
}
_COLUMNS = {name for name in _HASHED if name.startswith("data.")} | {"columns"}  # a hash over all items each
_SHOWN = 3
_LONGEST = 60  # characters of a value
_HASH = re.compile("[0-9a-f]{32,}")


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """A line for each field of the parts `a` and `b` that differs: its name and both values, or what a hash is of.

    Of another number of items every column has another hash, which says nothing more.
    """
    fields = _fields(a, b)
    if a.get("items") != b.get("items"):
        fields = (field for field in fields if field[0] not in _COLUMNS)
    return [f"{name}: {_told(name, one, other)}" for name, one, other in fields]


def require_same(one: Evaluation, other: Evaluation, across: Collection[str] = ()) -> None:
    """Raises ConfigError, naming each field that differs with both values, unless both are of the same experiment.

    The parts that `across` names may differ: they are what is compared.
    """
    if one.result["fingerprint"] == other.result["fingerprint"]:
        return
    mine, theirs = ({key: value for key, value in found.result["fingerprint_parts"].items() if key not in across}
                    for found in (one, other))  # fmt: skip
    if across and mine == theirs:
        return
    lines = differing(mine, theirs)
    if mine.get("data") != theirs.get("data"):
        lines += _items(one, other)
    raise ConfigError("the two evaluations are not of the same experiment", where=f"{one.folder} and {other.folder}",
                      found="\n         ".join(lines) or "other fingerprints",
                      do="evaluate both with the same task file, data and limit")  # fmt: skip


def _fields(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, a's value, b's value) of what differs, depth first."""
    for key in dict.fromkeys([*a, *b]):
        one, other = a.get(key), b.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _fields(one, other, f"{prefix}{key}.")
        elif one != other:
            yield f"{prefix}{key}", one, other


def _told(name: str, one: Any, other: Any) -> str:
    if name in _HASHED and any(isinstance(value, str) and _HASH.fullmatch(value) for value in (one, other)):
        return _HASHED[name]
    return f"{_short(one)} against {_short(other)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _items(one: Evaluation, other: Evaluation) -> Iterator[str]:
    """Which items differ, as far as the predictions show it."""
    mine, theirs = ({line["id"]: line for line in found.predictions} for found in (one, other))
    for found, lacks, where in ((mine, theirs, one.folder), (theirs, mine, other.folder)):
        only = [name for name in found if name not in lacks]
        if only:
            yield f"{len(only)} items only in {where}: {_some(only)}"
    for field in ("group", "reference", "prompt"):
        changed = [name for name in mine if name in theirs and mine[name][field] != theirs[name][field]]
        if changed:
            yield f"{len(changed)} items with another {field}: {_some(changed)}"


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
