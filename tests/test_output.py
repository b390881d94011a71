"""Escape sequences of data, and of what a model writes, don't reach the terminal; everything else does as it was."""

from __future__ import annotations

import ast
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Group
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

import halfbyte
from halfbyte import pipeline
from halfbyte.cli import main
from halfbyte.data.encode import Encoder
from halfbyte.data.records import Record
from halfbyte.data.show import first_example
from halfbyte.data.template import to_example
from halfbyte.errors import DataError, printable
from halfbyte.evaluate.show_details import render_details
from halfbyte.output import Output
from tests.tiny import tiny_checkpoint, tiny_tokenizer

EVIL = "\x1b]0;owned\x07 a\x1b[31m\x9b2J\u202eb"
PLAIN = "Combien ?\u00a0» 万\u3000円 é 👩\u200d🔧 می\u200cخواهم"
PACKAGE = Path(halfbyte.__file__).parent


def printed(what: object, **options: object) -> str:
    file = io.StringIO()
    Output(file=file, width=200, **options).print(what)
    return file.getvalue()


def clean(text: str) -> bool:
    return not set(text) & set("\x1b\x07\x9b\u202e")


def table() -> Table:
    made = Table("column")
    made.add_row(Text(EVIL))
    return made


@pytest.mark.parametrize("what", [EVIL, Text(EVIL), Group(Text(EVIL)), table()], ids=["str", "text", "group", "table"])
def test_what_is_printed_is_spelt_out(what: object) -> None:
    said = printed(what)
    assert clean(said) and "\\x1b[31m" in said and "\\x9b2J" in said and "\\u202eb" in said


def test_colours_and_progress_are_rich_s_own() -> None:
    said = printed(Text(EVIL, style="red"), force_terminal=True, color_system="standard", no_color=False)
    assert said.startswith("\x1b[31m") and said.count("\x1b") == 2
    file = io.StringIO()
    with Progress(console=Output(file=file, force_terminal=True, color_system="standard", _environ={})) as bar:
        bar.add_task("work", total=1)
        bar.console.print(Text(EVIL))
    assert "\x1b[2K" in file.getvalue() and "\x1b[31m\x9b" not in file.getvalue() and "\\x1b[31m" in file.getvalue()


def test_letters_and_spaces_of_all_the_world_stay() -> None:
    assert printable(PLAIN) == PLAIN and PLAIN in printed(Text(PLAIN))
    assert printable("a\tb\nc") == "a\tb\nc" and printable("a\rb\u2028\u00ad") == "a\\rb\\u2028\\xad"


def test_errors_are_spelt_out() -> None:
    assert clean(str(DataError(EVIL, where=EVIL, found=EVIL, do=EVIL)))


def test_the_first_example_and_the_details_are_spelt_out() -> None:
    tokenizer = tiny_tokenizer()
    item = Encoder(tokenizer).item(to_example(Record({"prompt": EVIL, "completion": EVIL}, "a.jsonl:1")))
    row = {"prompt": EVIL, "reference": EVIL, "answer": EVIL, "score": 1.0}
    for what in (first_example(item, tokenizer), render_details({"details": {"worst": [row]}})):
        assert clean(printed(what)) and "\\x1b[31m" in printed(what)


def test_check_spells_out_labels_and_places(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_checkpoint("llama", folder / "model")
    lines = [json.dumps({"prompt": f"item {at} {EVIL}", "completion": f"{EVIL} {at % 2}"}) for at in range(40)]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "run.yaml").write_text("model: ./model\ndata: {train: train.jsonl}\n", encoding="utf-8")
    assert main(["check", str(folder / "run.yaml")]) == 0
    said = capsys.readouterr().out
    assert "answers of the training items (2 different)" in said and "\\x1b[31m" in said and clean(said)


def test_an_answer_is_spelt_out_on_a_terminal_and_as_it_is_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "generate_text", lambda *_: EVIL)
    assert main(["generate", "model", "hi"]) == 0
    assert capsys.readouterr().out == EVIL + "\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["generate", "model", "hi"]) == 0
    assert capsys.readouterr().out == printable(EVIL) + "\n"


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_other_console_is_made(file: Path) -> None:
    """But one that prints nothing."""
    if file.name == "output.py":
        return
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console":
            assert [word.arg for word in node.keywords] == ["quiet"], f"line {node.lineno}: use Output()"
