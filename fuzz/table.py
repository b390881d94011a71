"""The table of docs/reliability.md, of all that was run: `python -m fuzz.table`."""

from __future__ import annotations

import json

from fuzz import build, check, corpora
from fuzz.__main__ import RESULTS


def table() -> str:
    """Inputs of all runs, those since the last finding, and what is kept; a line an entry point."""
    runs = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    lines = ["| entry point | inputs | since the last finding | edges | kept | last run |", "|---|---|---|---|---|---|"]
    for name in [*check.NAMES, *build.DRIVERS]:
        own = [run for run in runs if run["name"] == name]
        since = [run["inputs"] for place, run in enumerate(own) if not any(later["findings"] for later in own[place:])]
        total, edges = sum(run["inputs"] for run in own), max((run["edges"] for run in own), default=0)
        last = max((run["date"] for run in own), default="never")
        lines.append(f"| `{name}` | {total:,} | {sum(since):,} | {edges:,} | {len(corpora.load(name))} | {last} |")
    lines.append(f"| all | {sum(run['inputs'] for run in runs):,} | | | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
