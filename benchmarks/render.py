"""docs/performance.md, from the CSV files in benchmarks/results and the remarks beside this file, and nothing else.

`make bench` ends with it; after a change of the remarks it can run alone: python benchmarks/render.py
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Iterator

from benchmarks.goals import goals
from benchmarks.results import (
    LIMIT,
    OURS,
    PEER,
    Result,
    Results,
    distance,
    in_words,
    machine_in_words,
    table,
    times,
)

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
TITLES = {
    "machine": "The machine", "copy": "Copying a matrix", "quantise": "Quantise", "dequantise": "Dequantise",
    "linear": "The linear layer, 512 tokens", "rows": "Packed weights times few rows", "pack": "Packing",
    "open": "Opening", "step": "The training step", "decode": "Decoding", "evaluate": "Evaluating",
    "tune": "Runs within given memory", "attention": "Attention", "norm": "RMSNorm", "gate": "The gate of the MLP",
    "loss": "The loss, head included",
}  # fmt: skip
GOALS = ("what", "halfbyte", "peer", "ratio", "limit", "distance", "goal", "reached")
WORST = ("what", "least ahead of the peer", "where", "farthest from the limit", "where")
FIGURES = ("shape", "case", "who", "figure", "turns", "median", "worst", "ratio", "distance")
WHOLE_MODELS = ("step", "decode", "open", "pack", "tune")
SPEEDS = ("seconds", "per_second")
INTRODUCTION = """\
# Performance on a CPU

`make bench` measures all of this (`make bench-8b` the 8B shape) and writes this page; nothing in it is typed by hand
but the remarks. Every figure is the median of its turns. In each run halfbyte, the peer and the limit work in turns on
the same work; first steps and first generations do not count on either side. Where a turn takes minutes there are few.

- **peer**: transformers, bitsandbytes (NF4, double quantisation) and PEFT, used as their documents say; for attention,
  norm, gate and loss, torch.
- **limit**: what this machine allows, measured beside: torch's matrix products of the linear layers and the head alone
  (without attention), reading memory, copying it, or the disk.
- All three compute in bf16. Where torch is faster in fp32 (without bf16 the stock stack in it would take hours; Intel
  without AMX takes 1.8 times as long for a product in bf16), peer and limit compute in fp32, halfbyte in what it
  chooses, bf16 with AVX2 and VNNI (but attention, norm, gate and loss, each by itself, in fp32 as the others do).
- **ratio**: how many times faster than the peer. **distance**: from the limit, times its time or percent of its speed.
- Memory is the most over time of anonymous and shared pages, what is swapped, and dirty pages of files; clean pages of
  mapped files (a packed model) are a line of their own.
- Models have random weights in the shape of Llama-3.2-1B and Llama-3.1-8B. A step has 512 tokens, all learned.
"""
WORST_CASES = """\
Over all cases of the tables below: the one that is least ahead of the peer, and the one that is farthest from the
limit. Native kernels of every instruction set count."""


def page(folder: Path, remarks: str) -> str:
    """The page's text for the CSV files in `folder`."""
    results = Results.read(folder)
    lines = [INTRODUCTION, *_machines(results), *_ceiling(results), "", "## Goals", ""]
    lines += table(GOALS, [line.cells() for line in goals(results)])
    for other in sorted(folder.glob("*/machine.csv")):
        found = Results.read(other.parent)
        lines += ["", f"## Goals on another machine: {other.parent.name}", "", *_machines(found), *_ceiling(found), ""]
        lines += table(GOALS, [line.cells() for line in goals(found) if line.ours is not None or line.shown])
    lines += ["", "## Worst cases", "", *WORST_CASES.splitlines(), ""]
    lines += table(WORST, _worst_cases(results))
    lines += ["", "## What the remaining distance to the limit consists of", "", remarks.strip(), ""]
    lines += ["## All figures", "", "`worst` is the worst of the turns."]
    for op, title in TITLES.items():
        rows = [row for row in results.rows if row.op == op]
        if rows:
            lines += ["", f"### {title}", ""]
            lines += table(FIGURES, [_cells(results, row) for row in rows])
    return "\n".join(lines) + "\n"


def _machines(results: Results) -> Iterator[str]:
    environments = results.environments()
    for (machine, versions), files in environments.items():
        where = "all files" if len(environments) == 1 else ", ".join(files)
        yield f"Measured on ({where}): {machine_in_words(machine, versions)}"
    if not environments:
        yield "Nothing is measured yet."


def _ceiling(results: Results) -> Iterator[str]:
    """What the machine does at most, by torch: large products, reading, copying."""
    figures = {"fp32 product": "flops_per_second", "reading": "bytes_per_second", "copying": "bytes_per_second"}
    found = {case: results.get("machine", "", case, LIMIT, figure) for case, figure in figures.items()}
    words = {case: in_words(row.median, row.figure) for case, row in found.items() if row is not None}
    if len(words) == len(figures):
        bf16, products = results.get("machine", "", "bf16 product", LIMIT, "flops_per_second"), words["fp32 product"]
        large = f"{products} in large fp32 products"
        if bf16 is not None:
            large = f"{in_words(bf16.median, bf16.figure)} in large bf16 products ({products} in fp32)"
        yield ""
        yield (f"Its ceiling, measured beside (torch): {large}, {words['reading']} reading memory, {words['copying']} "
               "copying (bytes read and written).")  # fmt: skip


def counterpart(results: Results, row: Result, who: str) -> Result | None:
    """What `row` is to be compared with: the peer's or the limit's figure of the same case."""
    case, figure = row.case, row.figure
    if row.op == "dequantise" and who == PEER:
        case = case.replace("reused memory", "fresh memory")  # the peer always takes fresh memory
    if row.op in ("quantise", "dequantise") and who == LIMIT:
        return results.get("copy", row.shape, "bf16 to bf16", LIMIT, figure)
    if row.op == "rows" and who == LIMIT:
        return results.get("rows", row.shape, "reading alone", LIMIT, "bytes_per_second")
    if row.op == "pack":
        cache = figure.partition("_")[0]
        if figure != f"{cache}_seconds":
            return None
        if who == PEER:
            return results.get("open", row.shape, "bf16 checkpoint into NF4", PEER, "seconds")
        parts = [results.get("pack", row.shape, "", LIMIT, f"{name}_seconds") for name in (f"read_{cache}", "write")]
        return max((part for part in parts if part is not None), key=lambda part: part.median, default=None)
    if row.op == "open" and who == PEER:
        case = "bf16 checkpoint into NF4"
    if row.op == "step" and "within" in case and who == PEER:
        case = case.partition(", within")[0] + ", within 7.5GB"  # it recomputes every layer
    return results.get(row.op, row.shape, case, who, figure)


def _cells(results: Results, row: Result) -> list[str]:
    cells = [row.shape, row.case, row.who, row.figure.replace("_", " "), str(row.turns),
             in_words(row.median, row.figure), in_words(row.worst, row.figure)]  # fmt: skip
    if not row.who.startswith(OURS) or not row.figure.endswith(SPEEDS):
        return [*cells, "", ""]
    peer, limit = counterpart(results, row, PEER), counterpart(results, row, LIMIT)
    return [*cells, times(row.faster_than(peer) if peer else None), distance(row, limit)]


def _worst_cases(results: Results) -> Iterator[list[str]]:
    for op, title in TITLES.items():
        for shape in dict.fromkeys(row.shape if op in WHOLE_MODELS else "" for row in results.rows
                                   if row.op == op):  # fmt: skip
            rows = [row for row in results.rows if row.op == op and shape in ("", row.shape)
                    and row.who.startswith(OURS) and row.who != "halfbyte reference"
                    and row.figure.endswith(SPEEDS)]  # fmt: skip
            ahead, behind = _ratios(results, rows, PEER), _ratios(results, rows, LIMIT)
            if not ahead and not behind:
                continue
            cells = [f"{title}{f', {shape}' if shape else ''}", "", "", "", ""]
            if ahead:
                ratio, row = ahead[0]
                cells[1:3] = [times(ratio), _where(row)]
            if behind:
                _, row = behind[0]
                cells[3:5] = [distance(row, counterpart(results, row, LIMIT)), _where(row)]
            yield cells


def _ratios(results: Results, rows: list[Result], who: str) -> list[tuple[float, Result]]:
    """(how many times faster than `who`, row), the worst first."""
    pairs = [(row, counterpart(results, row, who)) for row in rows]
    ratios = [(row.faster_than(other), row) for row, other in pairs if other is not None]
    return sorted(ratios, key=lambda pair: pair[0])


def _where(row: Result) -> str:
    kernel = row.who.removeprefix(OURS).strip()
    usual = row.figure == "seconds" or row.figure.endswith("per_second")
    figure = "" if usual else row.figure.replace("_", " ")
    return ", ".join(part for part in (row.shape, row.case, kernel, figure) if part)


def main() -> None:
    PAGE.write_text(page(HERE / "results", (HERE / "remarks.md").read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
