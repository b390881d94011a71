"""The results of the benchmarks as they were written: looked up by what was done, compared, and put in words."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import NAMES

OURS, PEER, LIMIT = "halfbyte", "peer", "limit"


@dataclass(frozen=True)
class Result:
    """A row of a CSV file; see `benchmarks.common`."""

    op: str
    shape: str
    case: str
    who: str
    figure: str
    turns: int
    least: float
    median: float
    most: float
    machine: str
    versions: str
    file: str

    @property
    def rate(self) -> bool:
        """Whether more is better."""
        return self.figure.endswith("per_second")

    @property
    def worst(self) -> float:
        return self.least if self.rate else self.most

    def faster_than(self, other: Result) -> float:
        """How many times faster than `other`, by the medians."""
        return self.median / other.median if self.rate else other.median / self.median


class Results:
    """All rows of the CSV files in a folder, in the order of the files' names."""

    def __init__(self, rows: Iterable[Result]) -> None:
        self.rows = list(rows)

    @classmethod
    def read(cls, folder: Path) -> Results:
        found: list[Result] = []
        for file in sorted(folder.glob("*.csv")):
            with file.open(newline="", encoding="utf-8") as lines:
                for row in csv.DictReader(lines):
                    values: dict[str, Any] = {name: row[name] for name in (*NAMES, "machine", "versions")}
                    values |= {name: float(row[name]) for name in ("least", "median", "most")}
                    found.append(Result(**values, turns=int(row["turns"]), file=file.stem))
        return cls(found)

    def get(self, op: str, shape: str, case: str, who: str, figure: str) -> Result | None:
        wanted = (op, shape, case, who, figure)
        for row in self.rows:
            if (row.op, row.shape, row.case, row.who, row.figure) == wanted:
                return row
        return None

    def native(self, op: str, case: str, figure: str) -> list[Result]:
        """halfbyte's native kernels, the one that this machine chooses by itself last."""
        rows = [row for row in self.rows if (row.op, row.case, row.figure) == (op, case, figure)]
        return [row for row in rows if row.who.startswith("halfbyte cpu-")]

    def environments(self) -> dict[tuple[str, str], list[str]]:
        """(machine, versions) -> the files that were written there."""
        found: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            files = found.setdefault((row.machine, row.versions), [])
            if row.file not in files:
                files.append(row.file)
        return found


def in_words(value: float, figure: str) -> str:
    """A figure with its unit, three digits."""
    if figure.endswith("weights_per_second"):
        return f"{value / 1e9:.3g} G weights/s"
    if figure.endswith("bytes_per_second"):
        return f"{value / 1e9:.3g} GB/s"
    if figure.endswith("flops_per_second"):
        return f"{value / 1e9:.3g} GFLOP/s"
    if figure.endswith("per_second"):
        return f"{_three_digits(value)} {figure.removesuffix('_per_second').rpartition('_')[2]}/s"
    if figure.endswith("bytes") or figure == "bytes_per_token":
        return f"{value / 1e9:.3g} GB" if value >= 1e9 else f"{value / 1e6:.3g} MB"
    if figure.endswith("seconds"):
        return f"{value * 1e6:.3g} us" if value < 1e-3 else f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    if figure == "relative_error":
        return f"{value:.2g}"
    if figure.endswith(("from_disk", "within_tolerance")):
        return f"{100 * value:.0f} %"
    return f"{value:.5g}"


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g} x" if ratio < 100 else f"{ratio:.0f} x"


def distance(row: Result, limit: Result | None) -> str:
    """From the limit: how many times longer, or what share of its speed."""
    if limit is None:
        return ""
    return f"{100 * row.median / limit.median:.0f} %" if row.rate else times(row.median / limit.median)


def machine_in_words(machine: str, versions: str) -> str:
    """One sentence of where figures were made."""
    here, libraries = json.loads(machine), json.loads(versions)
    memory = f"{here['memory_bytes'] / 2**30:.0f} GiB" if here.get("memory_bytes") else "memory unknown"
    listed = ", ".join(f"{name} {version}" for name, version in libraries.items())
    return (f"{here['processor']}, {here['cores']} logical processors, {here['threads']} threads, {memory}, "
            f"{here['system']}; {listed}")  # fmt: skip


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *[list(row) for row in rows]]
    return ["| " + " | ".join(cells) + " |" for cells in lines]
