from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import yaml

from halfbyte.safe_yaml import LIMIT, dump_yaml, parse_yaml, read_text


def test_plain_data_is_read() -> None:
    text = "a: [1, 2.5, 2e-4, true, null, 'x']\nb: {c: 2001-01-02, d: &d [1], e: *d}\n"
    assert parse_yaml(text) == {
        "a": [1, 2.5, 2e-4, True, None, "x"],
        "b": {"c": "2001-01-02", "d": [1], "e": [1]},
    }
    assert parse_yaml("") is None


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("12", 12), ("-7", -7), ("+7", 7), ("010", 10), ("0o17", 15), ("0x1F", 31),
        ("0.5", 0.5), (".5", 0.5), ("5.", 5.0), ("1e-3", 1e-3), ("-1E3", -1e3), (".inf", float("inf")),
        ("-.INF", -float("inf")), ("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None),
        ("!!float 3", 3.0), ("'1'", "1"),
        *((word, word) for word in ("yes", "No", "on", "off", "y", "1:30", "1_000", "0b11", "0o8", "1e", ".", "+",
                                    "2001-01-02", "nan", "inf", "tRue", "1:" * 180 + "1.5", "1:" * 95_000 + "1")),
    ],
)  # fmt: skip
def test_a_word_is_what_the_core_schema_of_yaml_1_2_says(word: str, value: object) -> None:
    started = time.process_time()
    read = parse_yaml(f"a: {word}")["a"]
    assert (read, type(read)) == (value, type(value))
    assert time.process_time() - started < 2


def test_not_a_number_is_one() -> None:
    assert math.isnan(parse_yaml(".nan"))


def test_what_is_written_is_read_as_the_same_by_readers_of_either_yaml() -> None:
    values = ["0o17", "1e5", "yes", "on", "1:30", "010", "1_000", "", ".5", "true", "~", "2001-01-01", "=", "a: b", "ä",
              1, 2.5, 1e-5, 1e300, float("inf"), True, None, {"b": 1, "a": [2]}]  # fmt: skip
    for read in (parse_yaml, yaml.safe_load):
        assert read(dump_yaml(values)) == values


def test_of_a_file_no_more_is_read_than_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)  # a hole
    assert len(read_text(file)) == LIMIT + 1


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "aliases stand for more than"),
        ("&a [*a]", "within what it names"),
        ("a: &a {b: *a}", "within what it names"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("!!timestamp x", "could not determine a constructor"),
        ("!!binary eA==", "could not determine a constructor"),
        ("a: !!int 0x_", "can't be read as int"),
        ("a: " + "9" * 5000, "can't be read as int"),
        ("a: 0x" + "f" * 5000, "can't be read as int"),
        ("a: 1." + "1" * 190_000, "can't be read as float"),
        ("a: !!bool x", "can't be read as bool"),
        ("a: !!bool yes", "can't be read as bool"),
        ("a: !!int 1_000", "can't be read as int"),
        ("a: !!float x", "can't be read as float"),
        ("a: !!map [b]", "expected a mapping"),
        ('a: !!int ""', "can't be read as int"),
        ("a: 1\na: 2", "stands twice"),
        ("? [a]\n: 1", "unhashable"),
        ("[" * 3000, "nested too deeply"),
        ("- " * 3000, "nested too deeply"),
        ("a: " + "x" * 200_000, "over the limit"),
        ("a: \0", "special characters are not allowed"),
    ],
)
def test_all_else_is_one_kind_of_error_at_once(text: str, said: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=said):
        parse_yaml(text)
    assert time.process_time() - started < 2


def test_many_keys_take_no_time() -> None:
    started = time.process_time()
    assert len(parse_yaml("".join(f"k{i}: 1\n" for i in range(15_000)))) == 15_000
    assert time.process_time() - started < 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: x\n  data: 3\n", "line 2, column 7: mapping values are not allowed here: data: 3"),
        ("a: {b: c\nd: e\n", "line 2, column 2: expected ',' or '}', but got ':': d: e (while parsing a flow mapping"),
        ("a: {b: c\nd: e\n", "that begins on line 1)"),
        ("a: 1\na: 2\n", "line 2, column 1: the key 'a' stands twice: a: 2"),
        ('a: "x', "line 1, column 6: found unexpected end of stream: a: \"x (while scanning a quoted scalar"),
        ("a: ]" + "x" * 100, "x..."),
    ],
)  # fmt: skip
def test_a_fault_is_told_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_yaml(text)
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 200
