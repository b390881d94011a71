"""The table of docs/reliability.md, of all that was run: `python -m fuzz.table`."""

from __future__ import annotations

from fuzz import build, check, corpora, results


def table() -> str:
    """Inputs of all runs, those since the last finding, and what is kept; a line an entry point."""
    lines = ["| entry point | inputs | since the last finding | edges | kept | last run |", "|---|---|---|---|---|---|"]
    whole = 0
    for name in [*check.NAMES, *build.DRIVERS]:
        own = results.of(name)
        total, edges = sum(run["inputs"] for run in own), max((run["edges"] for run in own), default=0)
        last, kept = max((run["date"] for run in own), default="never"), len(corpora.load(name))
        lines.append(f"| `{name}` | {total:,} | {results.since_finding(name):,} | {edges:,} | {kept} | {last} |")
        whole += total
    return "\n".join([*lines, f"| all | {whole:,} | | | | |"])


if __name__ == "__main__":
    print(table())
