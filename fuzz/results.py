"""The account of all runs, `results.jsonl`: inputs add up from one run to the next, and from one machine to another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "results.jsonl"


def of(name: str) -> list[dict[str, Any]]:
    """The runs of an entry point, oldest first: `date`, `inputs`, `seconds`, `edges`, `findings`."""
    runs = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    return [run for run in runs if run["name"] == name]


def since_finding(name: str) -> int:
    """Inputs after what was found last had been mended."""
    runs = of(name)
    return sum(run["inputs"] for place, run in enumerate(runs) if not any(later["findings"] for later in runs[place:]))


def add(run: dict[str, Any]) -> None:
    with FILE.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(run) + "\n")
