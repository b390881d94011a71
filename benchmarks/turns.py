"""Phases in processes of their own that take turns: memory is each one's own, and a slow moment hits all alike.

A phase is a generator function of a benchmark. What it does before its first `yield` is not counted (opening,
warming up), though that yield may report figures of it; from then on every yield ends one turn and reports the figures
of that turn. While one process works, the others wait for their turn. What a phase prints goes nowhere, unless it
fails: then its last lines are in the error.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import importlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from benchmarks.common import quiet

Figures = Mapping[str, float]
Phase = Iterator[Figures]
Phases = Mapping[str, tuple[str, Mapping[str, Any]]]  # name -> "module:function" and its arguments


@dataclass
class Outcome:
    """What a phase reported: once before the turns, and of each turn."""

    first: Figures
    turns: list[Figures] = field(default_factory=list)


class Worker:
    """A phase ("module:function") in a process of its own; the arguments are what JSON can say."""

    def __init__(self, phase: str, arguments: Mapping[str, Any]) -> None:
        self.phase = phase
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        command = [sys.executable, __file__, phase, json.dumps(dict(arguments))]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._log, text=True)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def turn(self) -> Figures:
        """Let the phase work until its next yield. Raises RuntimeError, with its last lines, when it fails."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip().splitlines()[-25:]
            raise RuntimeError(f"{self.phase} failed ({self._process.returncode}):\n" + "\n".join(said))
        figures: Figures = json.loads(answer)
        return figures


def race(phases: Phases, turns: int, *, together: bool = True) -> dict[str, Outcome]:
    """Name -> what its phase reported. `together`: all processes live at once and take turns; else one after another,
    for models that do not fit beside each other."""
    outcomes: dict[str, Outcome] = {}
    groups = [list(phases)] if together else [[name] for name in phases]
    for names in groups:
        with ExitStack() as stack:
            workers = {name: stack.enter_context(Worker(*phases[name])) for name in names}
            for name, worker in workers.items():  # one at a time: even opening is a figure
                outcomes[name] = Outcome(worker.turn())
            for _ in range(turns):
                for name, worker in workers.items():
                    outcomes[name].turns.append(worker.turn())
    return outcomes


def serve(phase: str, arguments: dict[str, Any]) -> None:
    """The worker's side: a line in is a turn, its figures are a line out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print
    quiet()
    module, _, function = phase.partition(":")
    turns: Phase = getattr(importlib.import_module(module), function)(**arguments)
    for _ in sys.stdin:
        answers.write(json.dumps(dict(next(turns))) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
