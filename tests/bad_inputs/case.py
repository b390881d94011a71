"""What a case is, and the good folder that it breaks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Place:
    """`folder`: train.jsonl, test.jsonl, run.yaml and task.yaml, all good, and nothing else; a case may break them.

    `made`: shared by all cases, so never changed: `model`, and the finished run `out` that was made of such files.
    """

    folder: Path
    made: Path

    def write(self, name: str, text: str | bytes) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace the first `old` in a file; it must be there."""
        text = (self.folder / name).read_text(encoding="utf-8")
        assert old in text, (name, old)
        self.write(name, text.replace(old, new, 1))

    def change(self, name: str, **values: Any) -> None:
        """Set keys of a JSON object; None takes the key out."""
        found = json.loads((self.folder / name).read_text(encoding="utf-8")) | values
        self.write(name, json.dumps({key: value for key, value in found.items() if value is not None}))

    def copy(self, name: str, to: str | None = None) -> Path:
        """A copy of something in `made`, to be broken."""
        target = self.folder / (to or name)
        shutil.copytree(self.made / name, target)
        return target

    def replace(self, name: str, content: str | bytes | None) -> None:
        """Make another file of one, or (None) none."""
        if content is None:
            (self.folder / name).unlink()
        else:
            self.write(name, content)

    def lines(self, name: str) -> list[str]:
        return (self.folder / name).read_text(encoding="utf-8").splitlines()


Make = Callable[[Place], None]

TUNE = "tune {folder}/run.yaml"
ASK = "evaluate {model} --task {folder}/task.yaml --out {folder}/result"
SWEEP = "sweep {folder}/run.yaml {folder}/space.yaml"


@dataclass(frozen=True)
class Case:
    """`input`: what is bad, in words; `command`: with {folder}, {made}, {model} and {run} filled in; `code` and `said`:
    the exit code and a part of the message; `done`: what halfbyte does about it, in words."""

    input: str
    make: Make
    command: str
    code: int
    said: str
    done: str


def nothing(_: Place) -> None:
    """For a command that is bad by itself."""


def text(name: str, content: str | bytes) -> Make:
    """Write a file."""
    return lambda place: place.write(name, content)


def edit(name: str, old: str, new: str) -> Make:
    return lambda place: place.edit(name, old, new)


def model(name: str, content: str | bytes | None) -> Make:
    """A copy of the model in `model`, in which a file is another, or (None) gone."""

    def make(place: Place) -> None:
        place.copy("model")
        place.replace(f"model/{name}", content)

    return make


def config(**values: Any) -> Make:
    """A copy of the model in `model`, in whose config.json keys are others."""

    def make(place: Place) -> None:
        place.copy("model")
        place.change("model/config.json", **values)

    return make
