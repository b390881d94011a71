from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from halfbyte.errors import DataError, MissingDependency
from halfbyte.evaluate import structured
from halfbyte.evaluate.scores import json_scores
from halfbyte.evaluate.structured import MISSING, allows, checker, leaves, load_schema, read_json, same, shown_path

SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 0}}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('  {"a": [1, 2.5, null]}\n', {"a": [1, 2.5, None]}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ("```\n[1]\n```", [1]),
        ("null", None),
        ('"ünï"', "ünï"),
    ],
)
def test_what_is_json(text: str, value: Any) -> None:
    assert read_json(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "{", "Here it is: {}", '{"a": 1} and more', "{'a': 1}", '{"a": NaN}', "Infinity", '{"a": 1, "a": 2}', "[1,]",
     "[" * 100_000, "1" * 10_000, '"\\ud800"', "```json\n{}"],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    assert read_json(text) is MISSING


def test_fields_lie_as_deep_as_objects_do() -> None:
    assert leaves({"a": {"b": {"c": 1}, "d": []}, "e": {}, "f": None}) == {
        ("a", "b", "c"): 1, ("a", "d"): [], ("e",): {}, ("f",): None}  # fmt: skip


def test_a_point_in_a_name_is_no_depth() -> None:
    flat, deep = {"a.b": 1}, {"a": {"b": 1}}
    assert leaves(flat).keys().isdisjoint(leaves(deep))
    assert json_scores("", flat, deep, None)[1] == {"a.b": False}
    assert json_scores("", flat, flat, None)[1] == {'"a.b"': True}
    paths = [("a", "b"), ("a.b",), ('"a', 'b"')]
    assert len(set(map(shown_path, paths))) == 3


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (1, 1.0, True),
        (True, 1, False),
        (False, 0.0, False),
        (None, None, True),
        ("a", "A", False),
        ("1", 1, False),
        ([1, 2], [2, 1], False),
        ([True], [1], False),
        ({"a": 1, "b": [{}]}, {"b": [{}], "a": 1.0}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
    ],
)
def test_when_values_are_the_same(a: Any, b: Any, equal: bool) -> None:
    assert same(a, b) is same(b, a) is equal


def schema_file(folder: Path, schema: Any) -> str:
    (folder / "s.json").write_text(json.dumps(schema))
    return str(folder / "s.json")


def test_a_schema_allows_or_does_not(tmp_path: Path) -> None:
    file = schema_file(tmp_path, SCHEMA)
    check = checker(file, load_schema(file))
    assert allows(check, {"n": 3}, file) and allows(check, {"n": 3.0, "more": 1}, file)
    assert not any(allows(check, value, file) for value in ({"n": -1}, {"n": "3"}, {}, [], MISSING))


def test_a_schema_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        load_schema(str(tmp_path / "nowhere.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match="can't be read"):
        load_schema(str(tmp_path / "broken.json"))
    with pytest.raises(DataError, match=r"(?s)no JSON Schema.*\$\.type"):
        load_schema(schema_file(tmp_path, {"type": "thing"}))


def test_a_reference_to_elsewhere_is_never_fetched(tmp_path: Path) -> None:
    file = schema_file(tmp_path, {"$ref": "https://example.org/schema.json"})
    with pytest.raises(DataError, match=r"(?s)can't be followed.*\$defs"):
        allows(checker(file, load_schema(file)), {}, file)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    structured._validators.cache_clear()
    try:
        with pytest.raises(MissingDependency, match=r"halfbyte\[json\]"):
            load_schema(schema_file(tmp_path, SCHEMA))
    finally:
        structured._validators.cache_clear()


def test_a_schema_that_changed_is_read_again(tmp_path: Path) -> None:
    file = schema_file(tmp_path, {"type": "object"})
    assert load_schema(file) == {"type": "object"}
    assert schema_file(tmp_path, {"type": "array"}) == file and load_schema(file) == {"type": "array"}
