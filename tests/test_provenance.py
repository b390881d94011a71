from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from halfbyte import provenance
from halfbyte.provenance import DIFFERS, OK, OTHER, UNCHECKED, compare_environment, compare_files, git_state


def git(folder: Path, *arguments: str) -> str:
    own = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run([*own, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_state_of_a_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
    assert git_state(folder) is None
    git(folder, "init", "-q")
    assert git_state(folder) == {"commit": None, "dirty": False}
    (folder / "a").write_text("1")
    git(folder, "add", "a")
    git(folder, "commit", "-q", "-m", "a")
    (folder / "untracked").write_text("x")
    (folder / "below").mkdir()
    assert git_state(folder / "below") == {"commit": git(folder, "rev-parse", "HEAD"), "dirty": False}
    (folder / "a").write_text("2")
    found = git_state(folder)
    assert found is not None and found["dirty"] is True


def test_a_git_that_hangs_or_is_missing_costs_no_more_than_the_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = folder / "bin" / "git"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\ncase "$*" in *status*) exec sleep 60;; *inside*) echo true;; *) echo abc;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setattr(provenance, "_PATIENCE", 0.3)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    assert git_state(folder) == {"commit": "abc", "dirty": None}
    monkeypatch.setenv("PATH", str(folder / "nothing"))
    assert git_state(folder) is None


def test_files_that_changed_or_are_gone(folder: Path) -> None:
    for name in ("same", "changed", "gone"):
        (folder / name).write_text(name)
    recorded = provenance.file_digests(folder / name for name in ("same", "changed", "gone"))
    (folder / "changed").write_text("else")
    (folder / "gone").unlink()
    assert [row.state for row in compare_files(recorded, "file")] == [OK, DIFFERS, UNCHECKED]
    assert [row.state for row in compare_files(None, "file")] == [UNCHECKED]


def test_what_is_other_now_contradicts_nothing() -> None:
    old = {"versions": {"torch": "1"}, "machine": {"cores": 2, "threads": 1}, "git": {"commit": "a", "dirty": False}}
    new = {"versions": {"torch": "2"}, "machine": {"cores": 2, "threads": 9}, "git": None}
    rows = {row.what: row.state for row in compare_environment(old, new)}
    assert rows == {"versions: torch": OTHER, "machine": OK, "git": OTHER}
    assert {row.state for row in compare_environment({}, new)} == {UNCHECKED}
