"""Every bad input through the command line: one error that says what, where or what was found, and what to do."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from stat import S_ISDIR

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
    """Size and time of every file, and which folders there are."""
    paths = {path: path.lstat() for folder in folders for path in folder.rglob("*")}
    return {path: (0, 0) if S_ISDIR(seen.st_mode) else (seen.st_size, seen.st_mtime_ns) for path, seen in paths.items()}


def prepared(case: Case, made: Path, folder: Path) -> tuple[dict[str, Path], dict[Path, tuple[int, int]]]:
    """The bad input in `folder`: what stands for the names in the command, and what is there before it."""
    task_files(folder, made / "model")
    case.make(Place(folder, made))
    places = {"folder": folder, "made": made, "model": made / "model", "run": made / "out"}
    return places, stamps(folder, made)


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_one_clear_error(
    name: str, made: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case: Case = CASES[name]
    places, before = prepared(case, made, folder)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    code = main([part.format(**places) for part in shlex.split(case.command)])
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == case.code and len(errors) == 1, said
    message = said[said.index("error: ") :]
    assert case.said in message, said
    assert "\n  do: " in message and ("\n  where: " in message or "\n  found: " in message), said
    assert "Traceback" not in said and "--debug" not in said and len(message) < 3000, said
    assert stamps(folder, made) == before  # nothing is changed, nothing new


@pytest.mark.parametrize("name", ["models-17", "data-08", "run-08", "command-01"])
def test_a_bad_input_ends_a_process_as_well(name: str, made: Path, folder: Path) -> None:
    case: Case = CASES[name]
    places, before = prepared(case, made, folder)
    command = [sys.executable, "-m", "halfbyte", *(part.format(**places) for part in shlex.split(case.command))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == case.code, done.stderr
    assert done.stderr.startswith("error: ") and case.said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "error: " not in done.stdout
    assert stamps(folder, made) == before


def test_what_a_case_wants_to_be_said_fits_no_other_failure() -> None:
    """No echo of the command line, and no word or number that any message could hold."""
    weak = {name for name, case in CASES.items() if len(case.said) < 9 or case.said in case.command}
    assert weak == set()


def test_no_case_stands_twice() -> None:
    assert len(CASES) >= 60
    assert len({(case.input, case.command) for case in CASES.values()}) == len(CASES)


def test_the_table_in_the_document_is_that_of_the_cases() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_table(text) == text, "run python -m tests.bad_inputs"
