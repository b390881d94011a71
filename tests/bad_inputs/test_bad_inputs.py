"""Every bad input through the command line: one error that says what, where or what was found, and what to do."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from halfbyte.cli import main
from tests.bad_inputs.case import Case, Place
from tests.bad_inputs.table import DOCUMENT, every_case, with_table
from tests.test_cli import task_files
from tests.tiny import tiny_checkpoint

CASES = every_case()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    assert main(["tune", str(task_files(folder, tiny_checkpoint("llama", folder / "model")))]) == 0
    return folder


def stamps(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_one_clear_error(
    name: str, made: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case: Case = CASES[name]
    task_files(folder, made / "model")
    case.make(Place(folder, made))
    monkeypatch.chdir(folder)
    places = {"folder": folder, "made": made, "model": made / "model", "run": made / "out"}
    before = stamps(folder, made)
    capsys.readouterr()
    code = main([part.format(**places) for part in shlex.split(case.command)])
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == case.code and len(errors) == 1, said
    message = said[said.index("error: ") :]
    assert case.said in message, said
    assert "\n  do: " in message and ("\n  where: " in message or "\n  found: " in message), said
    assert "Traceback" not in said and "--debug" not in said and len(message) < 3000, said
    after = stamps(folder, made)
    assert {file: stamp for file, stamp in before.items() if after.get(file) != stamp} == {}


def test_no_case_stands_twice() -> None:
    assert len(CASES) >= 60
    assert len({(case.input, case.command) for case in CASES.values()}) == len(CASES)


def test_the_table_in_the_document_is_that_of_the_cases() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_table(text) == text, "run python -m tests.bad_inputs"
