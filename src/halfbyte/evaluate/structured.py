"""JSON in answers: reading it, what its fields are, when two values are the same, and checking it by a JSON Schema.

What counts as valid: the whole answer is one JSON value (RFC 8259), white space and one Markdown code fence around it
apart. NaN and Infinity, which Python would read, are no JSON; an object that names a field twice says two things and is
not taken, either. Nothing is repaired: a program that reads the answer would not do so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from halfbyte.errors import DataError, MissingDependency


class _Missing:
    """No JSON value; None is one."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()
FieldPath = tuple[str, ...]
Fields = dict[str, bool]  # path of a field, as it is shown -> whether it is right
_FENCE = re.compile(r"\A```[A-Za-z0-9]*[ \t]*\n(.*?)\n?[ \t]*```\Z", re.DOTALL)


def read_json(text: str) -> Any:
    """The JSON value that `text` is, or MISSING."""
    text = text.strip()
    fenced = _FENCE.match(text)
    try:
        found = json.loads(fenced[1] if fenced else text, parse_constant=_no_constant, object_pairs_hook=_once)
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair can't be written to a file
    except (ValueError, RecursionError):  # RecursionError: brackets nested thousands deep
        return MISSING
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name stands twice")
    return made


def leaves(value: Mapping[str, Any]) -> dict[FieldPath, Any]:
    """The fields of an object by their paths, the names from the outermost in. A list is one field, and so is an empty
    object."""
    found: dict[FieldPath, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            found |= {(name, *path): leaf for path, leaf in leaves(inner).items()}
        else:
            found[name,] = inner
    return found


def shown_path(path: FieldPath) -> str:
    """`address.city`; a name that itself holds a point or a quote stands in quotes, so that no two paths look alike."""
    return ".".join(json.dumps(name, ensure_ascii=False) if "." in name or '"' in name else name for name in path)


def same(a: Any, b: Any) -> bool:
    """Equal as JSON values: 1 is 1.0, true is not 1, texts are equal letter by letter, lists in order."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(value, b[name]) for name, value in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def load_schema(file: str) -> Any:
    """The JSON Schema in `file`, as plain data.

    Raises DataError for a file that is missing, no JSON or no schema, MissingDependency without `jsonschema`.
    """
    try:
        return _schema(file, Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError("the JSON Schema can't be read", where=file, found=found, do="check the path") from None


@lru_cache(maxsize=8)
def _schema(file: str, text: str) -> Any:
    """What `text`, which stands in `file` now, says. Checked once: the check takes longer than all the reading."""
    schema = json.loads(text)
    checker(file, schema)
    return schema


@cache
def _validators() -> Any:
    try:
        from jsonschema import exceptions, validators
    except ImportError:
        raise MissingDependency("a JSON Schema needs the library jsonschema", found="it is not installed",
                                do="pip install 'halfbyte[json]'") from None  # fmt: skip
    return validators, exceptions


def checker(file: str, schema: Any) -> Any:
    """What says by `is_valid(value)` whether `schema` allows a value, in the draft that it names (else the newest).

    A `$ref` to elsewhere is never fetched. Raises as `load_schema`.
    """
    validators, exceptions = _validators()
    from referencing import Registry

    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except exceptions.SchemaError as error:
        raise DataError("this is no JSON Schema", where=file, found=f"{error.json_path}: {error.message}"[:300],
                        do="see json-schema.org") from None  # fmt: skip
    return kind(schema, registry=Registry())


def allows(check: Any, value: Any, file: str) -> bool:
    """Whether the schema allows `value`. Raises DataError where the schema refers to what is not in it."""
    from referencing.exceptions import Unresolvable

    try:
        return value is not MISSING and bool(check.is_valid(value))
    except (Unresolvable, RecursionError) as error:
        found = str(error) if isinstance(error, Unresolvable) else "it refers to itself without end"
        raise DataError("the JSON Schema can't be followed", where=file, found=found[:300],
                        do="put what it refers to under $defs in the same file") from None  # fmt: skip
