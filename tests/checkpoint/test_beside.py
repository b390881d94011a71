"""The packed folder is there completely or not at all."""

import errno
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from halfbyte.checkpoint import source, writer
from halfbyte.errors import CheckpointError
from tests.checkpoint.conftest import Make
from tests.checkpoint.packing import packed


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_was_not_finished(
    fault: BaseException, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    def fail(file: writer._File, offset: int, data: memoryview) -> None:
        nonlocal written
        written += 1
        if written > 20:
            raise fault

    monkeypatch.setattr(writer._File, "write", fail)
    with pytest.raises(CheckpointError if isinstance(fault, OSError) else KeyboardInterrupt) as caught:
        packed(tiny("llama"), tmp_path / "out", "nf4")
    assert list(tmp_path.iterdir()) == []
    if isinstance(fault, OSError):
        assert "the disk is full" in str(caught.value)


def test_everything_is_on_disk_before_it_takes_its_place(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the rename must not leave a folder that looks whole and holds empty files."""
    model, flushed, when = tiny("llama"), list[int](), list[int]()
    fsync, replace = os.fsync, Path.replace

    def noted(descriptor: int) -> None:
        flushed.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        when.append(len(flushed))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(writer, "SHARD", 20_000)
    packed(model, tmp_path / "out", "nf4")
    (last,) = when
    files = {file.name: file.stat().st_ino for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "halfbyte.json", "tokenizer.json", "model.safetensors.index.json"} <= files.keys()
    assert set(files.values()) <= set(flushed[: last - 1])
    assert flushed[last - 1 :] == [(tmp_path / "out").stat().st_ino, tmp_path.stat().st_ino]


@pytest.mark.parametrize("what", ["a small file", "the weights"])
def test_what_can_not_be_read_is_not_blamed_on_the_disk_that_is_written(
    what: str, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(tiny("llama"), folder)
    read = Path.read_bytes

    def bad(file: Path, *_: Any) -> bytes:
        if what == "a small file" and file.name != "tokenizer.json":
            return read(file)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(*((Path, "read_bytes", bad) if what == "a small file" else (source, "_sample", bad)))
    with pytest.raises(CheckpointError, match="a file of the checkpoint can't be read") as caught:
        packed(folder, tmp_path / "out", "nf4")
    assert "Input/output error" in str(caught.value) and str(folder) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_room_is_asked_for_first(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 50_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="not enough room"):
        packed(tiny("llama"), tmp_path / "out", "nf4")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tiny: Make, tmp_path: Path) -> None:
    host = socket.gethostname()
    for pid, stays in (("999999999", False), (str(os.getpid()), True)):
        stale = tmp_path / f".out.{host}-{pid}-0123.partial"
        stale.mkdir()
        (stale / "model.safetensors").touch()
        packed(tiny("llama"), tmp_path / "out", "nf4")
        shutil.rmtree(tmp_path / "out")
        assert stale.exists() is stays
