"""`halfbyte demo` a second time: what was interrupted goes on, what was finished is kept, nothing else is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from halfbyte import experiment
from halfbyte.errors import ConfigError


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What `tune` is asked, whose work is left out here."""
    calls: list[bool] = []

    def tune(config: Any, *, resume: bool, **_: Any) -> int:
        calls.append(resume)
        return 130

    monkeypatch.setattr(experiment, "tune", tune)
    monkeypatch.setattr(experiment, "load", lambda *_: None)
    monkeypatch.setattr(experiment, "_evaluate_once", lambda *_: {})
    return calls


def made(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text("x")
    return folder


def test_an_interrupted_demo_goes_on_where_it_was(tmp_path: Path, resumed: list[bool]) -> None:
    out = made(tmp_path / "demo", "run.yaml", "metrics.jsonl")
    assert experiment.demo(out, Console(quiet=True)) == 130
    assert resumed == [True] and [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_what_was_scored_before_training_began_is_kept(tmp_path: Path, resumed: list[bool]) -> None:
    out = made(tmp_path / "demo")
    (out / "evaluations" / "base-bf16").mkdir(parents=True)
    assert experiment.demo(out, Console(quiet=True)) == 130
    assert resumed == [False] and [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_finished_demo_is_moved_aside_and_an_empty_folder_is_used(tmp_path: Path, resumed: list[bool]) -> None:
    out = made(tmp_path / "demo", "run.yaml", "report.html")
    experiment.demo(out, Console(quiet=True))
    assert (tmp_path / "demo-1" / "report.html").exists()
    experiment.demo(made(tmp_path / "empty"), Console(quiet=True))
    experiment.demo(tmp_path / "new", Console(quiet=True))
    assert resumed == [False] * 3 and not (tmp_path / "empty-1").exists()


def test_a_strangers_folder_is_refused(tmp_path: Path, resumed: list[bool]) -> None:
    out = made(tmp_path / "thesis", "chapter1.tex")
    with pytest.raises(ConfigError, match="no folder of an earlier demo"):
        experiment.demo(out, Console(quiet=True))
    assert resumed == [] and (out / "chapter1.tex").exists()
