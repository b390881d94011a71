"""What every benchmark shares: how contenders take turns in one process, what a figure is, and how it is written.

A figure is a list of values, one a turn that counts; its name ends with its unit (`seconds`, `peak_bytes`,
`tokens_per_second`). A row of the CSV is one figure of one contender: least, quartiles and most over the turns, with
machine and versions. Who competes: "halfbyte" (and what follows it, as in "halfbyte cpu-avx2"), "peer" (transformers,
bitsandbytes and PEFT; for a single op, torch), "limit" (what the machine allows), and whatever else a benchmark names.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NAMES = ("op", "shape", "case", "who", "figure")
QUANTILES = ("least", "p25", "median", "p75", "most")
FIELDS = (*NAMES, "turns", *QUANTILES, "machine", "versions")
_PEER_LIBRARIES = ("bitsandbytes", "peft", "accelerate")
_BEGAN = time.perf_counter()

Key = TypeVar("Key")


@dataclass(frozen=True)
class Row:
    """One figure: what was done (`op`, `shape`, `case`), by whom, and its values over the turns that count."""

    op: str
    shape: str
    case: str
    who: str
    figure: str
    values: tuple[float, ...]

    def cells(self) -> dict[str, str]:
        numbers = zip(QUANTILES, quantiles(self.values), strict=True)
        names = {name: str(getattr(self, name)) for name in NAMES}
        return {**names, "turns": str(len(self.values)), **{name: f"{value:.6g}" for name, value in numbers}}


def quantiles(values: Iterable[float]) -> tuple[float, float, float, float, float]:
    """Least, first quartile, median, third quartile and most of at least one value."""
    known = sorted(values)
    if len(known) == 1:
        return (known[0],) * 5
    p25, median, p75 = statistics.quantiles(known, n=4, method="inclusive")
    return known[0], p25, median, p75, known[-1]


def rounds_within(rounds: int, seconds: float = math.inf) -> Iterator[int]:
    """0 for the round that does not count, then 1 to `rounds`; ends earlier when, by the length of the last one, the
    next would not end within `seconds` of the first that counts. One always counts."""
    yield 0
    began = last = time.perf_counter()
    for turn in range(1, rounds + 1):
        yield turn
        now = time.perf_counter()
        if now - began + now - last > seconds:
            return
        last = now


def in_turns(
    work: Mapping[Key, Callable[[], object]], rounds: int, seconds: float = math.inf
) -> dict[Key, list[float]]:
    """Seconds of each round in which everybody works once, so that a slow moment of the machine hits all alike; a first
    round does not count. At most `rounds`, and as many as fit into `seconds`."""
    found: dict[Key, list[float]] = {key: [] for key in work}
    for turn in rounds_within(rounds, seconds):
        for key, run in work.items():
            began = time.perf_counter()
            run()
            if turn:
                found[key].append(time.perf_counter() - began)
    return found


def rows_of(op: str, shape: str, case: str, who: str, figures: Iterable[Mapping[str, float]]) -> list[Row]:
    """A row a figure, of what each turn reported."""
    values: dict[str, list[float]] = {}
    for turn in figures:
        for name, value in turn.items():
            values.setdefault(name, []).append(float(value))
    return [Row(op, shape, case, who, name, tuple(found)) for name, found in values.items()]


@functools.cache
def about() -> dict[str, str]:
    """Machine and versions, each as JSON; the peer's versions too, and torch's threads."""
    import torch  # so that the machine's entry says how many threads torch uses

    from halfbyte.environment import environment

    found = environment()
    assert torch.get_num_threads() == found["machine"]["threads"]
    for library in _PEER_LIBRARIES:
        try:
            found["versions"][library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return {"machine": json.dumps(found["machine"]), "versions": json.dumps(found["versions"])}


class Table:
    """A CSV file of rows with machine and versions, begun anew; rows are in it, and on the screen, once added."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="", encoding="utf-8") as out:
            csv.DictWriter(out, FIELDS).writeheader()

    def add(self, rows: Iterable[Row]) -> None:
        with self.file.open("a", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, FIELDS)
            for row in rows:
                cells = row.cells()
                writer.writerow(cells | about())
                out.flush()
                say(f"{row.op:13} {row.shape:10} {row.case:44} {row.who:22} {cells['median']:>12} {row.figure}")


def say(text: str) -> None:
    """A line on the screen, after the seconds since the program began."""
    print(f"{time.perf_counter() - _BEGAN:7.1f} s  {text}", flush=True)


def arguments(
    doc: str | None, given: Sequence[str] | None, *, rounds: int, seconds: float, **options: dict[str, object]
) -> argparse.Namespace:
    """The options that benchmarks share, and further ones as `add_argument` takes them, from `given` or the command
    line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="turns that count (%(default)s)")
    parser.add_argument("--seconds", type=float, default=seconds, help="what the turns of one case may take; "
                        "there are fewer where they would take longer, but always one (%(default)s)")  # fmt: skip
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files (%(default)s)")
    for name, settings in options.items():
        parser.add_argument(f"--{name}", **settings)  # type: ignore[arg-type]
    return parser.parse_args(given)


def quiet() -> None:
    """Keep the libraries' progress bars, warnings and advice off the screen; call it before they are imported."""
    logging.disable(logging.WARNING)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error",
                   "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}  # fmt: skip
