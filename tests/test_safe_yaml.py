from __future__ import annotations

import time

import pytest

from halfbyte.safe_yaml import parse_yaml


def test_plain_data_is_read() -> None:
    text = "a: [1, 2.5, 2e-4, true, null, 'x']\nb: {c: 2001-01-02, d: &d [1], e: *d}\n"
    assert parse_yaml(text) == {
        "a": [1, 2.5, 2e-4, True, None, "x"],
        "b": {"c": "2001-01-02", "d": [1], "e": [1]},
    }
    assert parse_yaml("") is None


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
        ("a: 0x_", "can't be read as int"),
        ("a: " + "9" * 5000, "can't be read as int"),
        ("a: 0x" + "f" * 5000, "can't be read as int"),
        ("a: !!bool x", "can't be read as bool"),
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
