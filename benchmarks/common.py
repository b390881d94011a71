"""What every benchmark shares: how contenders take turns in one process, what a figure is, and how it is written.

A figure is a list of values, one a turn that counts; its name ends with its unit (`seconds`, `peak_bytes`,
`tokens_per_second`). A row of the CSV is one figure of one contender: least, quartiles and most over the turns, with
machine and versions. Who competes: "halfbyte" (and what follows it, as in "halfbyte cpu-avx2"), "peer" (transformers,
bitsandbytes and PEFT), "limit" (what the machine allows), and whatever else a benchmark names.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
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


def in_turns(work: Mapping[Key, Callable[[], object]], rounds: int) -> dict[Key, list[float]]:
    """Seconds of each of `rounds` rounds in which everybody works once, so that a slow moment of the machine hits all
    alike; a first round does not count."""
    seconds: dict[Key, list[float]] = {key: [] for key in work}
    for turn in range(rounds + 1):
        for key, run in work.items():
            began = time.perf_counter()
            run()
            if turn:
                seconds[key].append(time.perf_counter() - began)
    return seconds


def rows_of(op: str, shape: str, case: str, who: str, figures: Iterable[Mapping[str, float]]) -> list[Row]:
    """A row a figure, of what each turn reported."""
    values: dict[str, list[float]] = {}
    for turn in figures:
        for name, value in turn.items():
            values.setdefault(name, []).append(float(value))
    return [Row(op, shape, case, who, name, tuple(found)) for name, found in values.items()]


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


def write(rows: Iterable[Row], file: Path) -> None:
    """The rows as CSV with machine and versions, and in short on the screen."""
    rows, environment = list(rows), about()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, FIELDS)
        writer.writeheader()
        for row in rows:
            cells = row.cells()
            writer.writerow(cells | environment)
            print(f"{row.op:24} {row.shape:12} {row.case:44} {row.who:24} {cells['median']:>12} {row.figure}")
    print(f"written to {file}", flush=True)


def arguments(doc: str | None, *, rounds: int, shapes: Iterable[str] = ()) -> argparse.ArgumentParser:
    """The options that benchmarks share; with `shapes`, those of the ones that need a whole model."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="turns that count (%(default)s)")
    parser.add_argument("--out", type=Path, help="the CSV file; by default in benchmarks/results")
    if shapes:
        parser.add_argument("--shape", choices=list(shapes), default="1b", help="of the model (%(default)s)")
        parser.add_argument("--folder", type=Path, help="holds the checkpoints, made there where they are missing; "
                            "by default a folder for temporary files, removed after")  # fmt: skip
    return parser


def results_file(options: argparse.Namespace, name: str) -> Path:
    """Where the rows of a benchmark go."""
    shape = getattr(options, "shape", None)
    return options.out or RESULTS / (f"{name}-{shape}.csv" if isinstance(shape, str) else f"{name}.csv")


def quiet() -> None:
    """Keep the libraries' progress bars, warnings and advice off the screen; call it before they are imported."""
    logging.disable(logging.WARNING)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error",
                   "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}  # fmt: skip
