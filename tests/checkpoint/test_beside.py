"""The packed folder is there completely or not at all."""

import errno
import os
import shutil
import socket
from pathlib import Path

import pytest

from halfbyte.checkpoint import writer
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
