"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfbyte import durable


def test_a_text_takes_the_place_of_the_old_one_and_leaves_nothing_beside_it(folder: Path) -> None:
    for text in ("one", "two"):
        durable.write_text(folder / "a.yaml", text)
        assert (folder / "a.yaml").read_text() == text and [path.name for path in folder.iterdir()] == ["a.yaml"]


def test_what_was_there_stays_where_the_new_one_can_not_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable.write_text(folder / "a.yaml", "one")

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "flush", full)
    with pytest.raises(OSError, match="No space left") as caught:
        durable.write_text(folder / "a.yaml", "two")
    assert caught.value.filename == str(folder / "a.yaml")
    assert (folder / "a.yaml").read_text() == "one" and [path.name for path in folder.iterdir()] == ["a.yaml"]


def test_file_and_folder_are_flushed_in_the_order_that_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    replace = Path.replace

    def noted(self: Path, target: Path) -> Path:
        done.append(("rename", self.name))
        return replace(self, target)

    monkeypatch.setattr(durable, "flush", lambda path: done.append(("flush", path.name)))
    monkeypatch.setattr(Path, "replace", noted)
    durable.write_text(folder / "a", "text")
    assert done == [("flush", ".a.part"), ("rename", ".a.part"), ("flush", folder.name)]
