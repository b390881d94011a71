"""Data that can't be trained on or asked."""

from __future__ import annotations

import json

from tests.bad_inputs.case import TUNE, Case, Make, Place, edit, text

_DATA = "data: {train: train.jsonl}"


def _line(number: int, line: str | bytes) -> Make:
    """train.jsonl with one line replaced."""

    def make(place: Place) -> None:
        lines = [one.encode() for one in place.lines("train.jsonl")]
        lines[number - 1] = line if isinstance(line, bytes) else line.encode()
        place.write("train.jsonl", b"\n".join(lines) + b"\n")

    return make


def _record(**columns: object) -> Make:
    """train.jsonl whose third record is another."""
    return _line(3, json.dumps(columns))


def _source(name: str, content: str | bytes, options: str = "") -> Make:
    """Another training file."""

    def make(place: Place) -> None:
        place.write(name, content)
        place.edit("run.yaml", _DATA, f"data: {{train: {name}{options}}}")

    return make


def _options(options: str) -> Make:
    return edit("run.yaml", _DATA, f"data: {{train: train.jsonl, {options}}}")


def _folder(place: Place) -> None:
    (place.folder / "data").mkdir()
    place.edit("run.yaml", _DATA, "data: {train: ./data}")


def _loop(place: Place) -> None:
    (place.folder / "loop.jsonl").symlink_to("loop.jsonl")
    place.edit("run.yaml", _DATA, "data: {train: loop.jsonl}")


def _turns(*turns: object) -> Make:
    return _record(messages=list(turns))


_USER = {"role": "user", "content": "hi"}
_SEMICOLONS = "prompt;completion\na;b\n"

CASES = [
    Case("an empty file", text("train.jsonl", ""), TUNE, 1, "holds no record", "found before the model is loaded"),
    Case("a file of blank lines", text("train.jsonl", "\n \n"), TUNE, 1, "holds no record", "as an empty one"),
    Case("a missing file", edit("run.yaml", _DATA, "data: {train: trian.jsonl}"), TUNE, 1,
         "data files there: test.jsonl, train.jsonl",
         "lists the data files beside it"),
    Case("a folder", _folder, TUNE, 1, "a folder stands where a data file is expected", "says how to name its files"),
    Case("a link that points to itself", _loop, TUNE, 1, "there is no such file", "as a missing file"),
    Case("a pattern that matches nothing", edit("run.yaml", _DATA, "data: {train: 'parts/*.jsonl'}"), TUNE, 1,
         "no file matches", "shows the pattern"),
    Case("a kind of file that is not read", _source("train.txt", "hello"), TUNE, 1, "of this kind are not read",
         "lists those that are"),
    Case("a line that is no JSON", _line(3, '{"prompt": "a", '), TUNE, 1, "line 3: Expecting",
         "every broken line is named"),
    Case("a line that is a list", _line(3, "[1, 2]"), TUNE, 1, "line 3: a list", "every such line is named"),
    Case("NaN in a line", _line(3, '{"prompt": "a", "completion": NaN}'), TUNE, 1, "NaN is no JSON number",
         "names the line"),
    Case("a key that stands twice in an object", _line(3, '{"prompt": "a", "prompt": "b", "completion": "c"}'),
         TUNE, 1,
         "'prompt' stands twice", "refused: which one counts is not guessed"),
    Case("objects nested without end", _line(3, '{"prompt": ' + "[" * 100_000), TUNE, 1,
         "line 3: it is nested too deeply",
         "refused without a deep call stack"),
    Case("a zero byte", _line(3, b'{"prompt": "a\0", "completion": "b"}'), TUNE, 1, "line 3: Invalid control character",
         "names line and column"),
    Case("half a surrogate pair", _line(3, '{"prompt": "a\\ud800", "completion": "b"}'), TUNE, 1,
         "half a surrogate pair",
         "names the record; no tokenizer takes it"),
    Case("text that is not UTF-8", _line(3, '{"prompt": "café", "completion": "b"}'.encode("latin-1")), TUNE, 1,
         "byte 0xe9 at offset", "shows the byte and its place"),
    Case("UTF-16 with a byte order mark", text("train.jsonl", '{"prompt": "a"}\n'.encode("utf-16")), TUNE, 1,
         "byte 0xff at offset 0", "shows the byte and its place"),
    Case("a record without a prompt", _record(question="a", completion="b"), TUNE, 1, "neither prompt",
         "shows the record's columns"),
    Case("an empty completion", _record(prompt="a", completion="  "), TUNE, 1, "completion is empty",
         "names the line"),
    Case("a column without a value", _record(prompt=None, completion="b"), TUNE, 1, "'prompt' has no value",
         "names the line"),
    Case("a list where text is expected", _record(prompt=["a"], completion="b"), TUNE, 1, "'prompt' holds no text",
         "names the line and the column"),
    Case("no completion anywhere", text("train.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n'), TUNE, 1,
         "has no completion, so nothing to learn",
         "there is nothing to learn"),
    Case("messages that are no list", _record(messages="hi"), TUNE, 1, "no conversation", "shows how one looks"),
    Case("a message with an unknown role", _turns(_USER, {"role": "robot", "content": "b"}), TUNE, 1,
         "has the role 'robot'",
         "lists the roles"),
    Case("a message without text", _turns(_USER, {"role": "assistant", "content": 3}), TUNE, 1,
         "has no text as content",
         "names the message"),
    Case("a record with messages and a prompt", _record(prompt="a", messages=[_USER]), TUNE, 1,
         "both messages and a prompt", "which one counts is not guessed"),
    Case("a template with a misspelt column", _options("template: {prompt: '{promtp}', completion: '{completion}'}"),
         TUNE, 1, "no column 'promtp': did you mean 'prompt'", "names the nearest column"),
    Case("a template with half a brace", _options("template: {prompt: '{prompt', completion: '{completion}'}"),
         TUNE, 1,
         "a brace in the template has no partner", "shows the text"),
    Case("a template with an expression", _options("template: {prompt: '{prompt.__class__}', completion: 'a'}"),
         TUNE, 1,
         "no column 'prompt.__class__'", "it is a column's name and never evaluated"),
    Case("a template with an unknown key", _options("template: {promt: '{prompt}'}"), TUNE, 1,
         "'promt': did you mean 'prompt'",
         "names the nearest key"),
    Case("CSV with semicolons", _source("train.csv", _SEMICOLONS), TUNE, 1, "not separated by commas",
         "shows the header"),
    Case("CSV with a row of another length", _source("train.csv", "prompt,completion\na,b,c\n"), TUNE, 1,
         "line 2: 3 fields", "every such row is named"),
    Case("CSV with two columns of one name", _source("train.csv", "prompt,prompt\na,b\n"), TUNE, 1,
         "have the same name",
         "names the column"),
    Case("CSV with a quote that is not closed", _source("train.csv", 'prompt,completion\n"a,b\n'), TUNE, 1,
         "no valid CSV", "names the line"),
    Case("JSON that is one object", _source("train.json", '{"a": 1,\n"b": 2}'), TUNE, 1, "holds no list of records",
         "asks for a list, or for JSONL"),
    Case("Parquet that is none", _source("train.parquet", b"PAR1 nonsense"), TUNE, 1, "no valid Parquet",
         "names the file"),
    Case("a validation file that is missing", _options("validation: val.jsonl"), TUNE, 1, "there is no such file",
         "found before the model is loaded"),
    Case("a limit of tokens that leaves nothing to learn", _options("max_tokens: 4"), TUNE, 1,
         "nothing would be learned",
         "says what to raise"),
    Case("a group column that is not there", _options("group: set"), TUNE, 1, "no column 'set'",
         "found before anything is trained"),
    Case("an item longer than the model's context", _record(prompt="word " * 80, completion="a"), TUNE, 1,
         "longer than the model's context",
         "names the item and the limit"),
]  # fmt: skip
