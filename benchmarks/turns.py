"""Phases in processes of their own that take turns: memory is each one's own, and a slow moment hits all alike.

A phase is a generator function of a benchmark. What it does before its first `yield` (opening a model) is its opening,
whose figures that yield reports; every later yield ends one turn and reports the figures of that turn. A turn is told
which case it is for, a dictionary, by what `yield` returns; most phases have only one and ignore it. While one process
works, the others wait. What a phase prints goes nowhere, unless it fails: then its last lines are in the error.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import importlib
import json
import math
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common import quiet, rounds_within, say

Figures = Mapping[str, float]
Case = dict[str, Any]
Phase = Generator[Figures, Case, None]
Phases = Mapping[str, tuple[str, Mapping[str, Any]]]  # name -> "module:function" and its arguments


@dataclass
class Outcome:
    """What a phase reported of one case: of its first turn, which does not count, and of those that do."""

    first: Figures
    turns: list[Figures] = field(default_factory=list)


def phase_of(name: str, arguments: Mapping[str, Any]) -> Phase:
    """The phase that "module:function" makes."""
    module, _, function = name.partition(":")
    made: Phase = getattr(importlib.import_module(module), function)(**arguments)
    return made


class Worker:
    """A phase ("module:function") in a process of its own; the arguments are what JSON can say.

    `opened` are the figures of its opening, for which the constructor waits. After `seconds` it is killed, and whoever
    waits for it gets a RuntimeError.
    """

    def __init__(self, phase: str, arguments: Mapping[str, Any], seconds: float | None = None) -> None:
        self.phase = phase
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        command = [sys.executable, __file__, phase, json.dumps(dict(arguments))]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._log, text=True)
        self.late = False
        self._timer = threading.Timer(seconds or 0, self._end)
        if seconds is not None:
            self._timer.start()
        try:
            self.opened = self._answer()
        except BaseException:
            self.close(stop=True)
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close(stop=error is not None)

    def _end(self) -> None:
        self.late = True
        self._process.kill()

    def close(self, stop: bool = False) -> None:
        """End the process: between two turns, or (`stop`) at once."""
        self._timer.cancel()
        if stop:
            self._process.terminate()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._log.close()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def turn(self, case: Case | None = None) -> Figures:
        """Let the phase work until its next yield. Raises RuntimeError, with its last lines, when it fails."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(case or {}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Figures:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            if self.late:
                raise RuntimeError(f"{self.phase} took longer than it may")
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip().splitlines()[-25:]
            raise RuntimeError(f"{self.phase} failed ({self._process.returncode}):\n" + "\n".join(said))
        figures: Figures = json.loads(answer)
        return figures


@contextmanager
def working(phases: Phases) -> Iterator[dict[str, Worker]]:
    """A worker for each phase, opened one after another."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(Worker(*phase)) for name, phase in phases.items()}


def by_turns(
    workers: Mapping[str, Worker], rounds: int, seconds: float = math.inf, case: Case | None = None, what: str = ""
) -> dict[str, Outcome]:
    """Name -> what its phase reported of `case`: rounds in which everybody works once, of which the first does not
    count. At most `rounds` that do, and as many as fit into `seconds`; each is said on the screen as `what`."""
    outcomes: dict[str, Outcome] = {}
    for turn in rounds_within(rounds, seconds):
        took = []
        for name, worker in workers.items():
            began = time.perf_counter()
            figures = worker.turn(case)
            took.append(f"{name} {time.perf_counter() - began:.1f} s")
            if turn:
                outcomes[name].turns.append(figures)
            else:
                outcomes[name] = Outcome(figures)
        say(f"{what}, {f'turn {turn}' if turn else 'a first turn'}: {', '.join(took)}")
    return outcomes


def serve(phase: str, arguments: dict[str, Any]) -> None:
    """The worker's side: the opening's figures are a line out; then a line in is a turn's case, its figures a line
    out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print
    quiet()
    turns = phase_of(phase, arguments)

    def answer(figures: Figures) -> None:
        answers.write(json.dumps(dict(figures)) + "\n")
        answers.flush()

    answer(next(turns))
    for line in sys.stdin:
        answer(turns.send(json.loads(line)))


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
