"""The folder of a sweep: who it is, whose trials' runs lie in it, and which of them are being worked on.

trials/0007/    the run of trial 7
logs/0007.txt   what `tune` said of it
study.db        the study, unless it is in a database elsewhere
locks/          one file a trial: locked while a process works on it, whichever way that process ends
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.errors import ConfigError
from halfbyte.evaluate.results import write_json

if TYPE_CHECKING:
    from filelock import FileLock


class Home:
    """The sweep's folder: an identity, and the locks of the trials whose runs lie in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            (folder / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("the sweep's folder can't be made", where=folder, found=str(error)) from None
        with self.alone():
            note = folder / "home.json"
            if not note.exists():
                write_json(note, {"id": uuid.uuid4().hex})
            self.id = str(json.loads(note.read_text(encoding="utf-8"))["id"])

    def keep_to(self, study: str) -> None:
        """Raises ConfigError when the runs in this folder are of another study than `study`."""
        note = self.folder / "home.json"
        with self.alone():
            known = json.loads(note.read_text(encoding="utf-8"))
            if known.setdefault("study", study) != study:
                found = f"{known['study']}, not {study}"
                raise ConfigError("the folder's runs are of another study", where=self.folder, found=found,
                                  do="choose another: --out FOLDER")  # fmt: skip
            write_json(note, known)

    def alone(self) -> FileLock:
        """Held while this folder's trials are handed out."""
        from filelock import FileLock

        return FileLock(self.folder / "locks" / "sweep")

    def lock(self, number: int) -> FileLock | None:
        """The lock of a trial, taken; None where another process holds it."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / "locks" / f"{number:04}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock

    def run(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04}"
