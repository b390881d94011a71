"""The Markdown page of gpu_check: its figures beside each other, the goals, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.results import Result, Results, in_words, machine_in_words, table, times

WHO = ("halfbyte", "streamed", "peer", "unsloth")
FILES = ("gpu_check", "gpu")  # CSV
GOALS = {"peer": 1.5, "unsloth": 1.0}  # times their tokens/s
COPY, READ = 0.8, 0.6  # shares of a copy's bandwidth: dequantising, decoding
ERROR = 2.0  # of a product, by that of torch in the same type


def read(folder: Path) -> Results:
    """What gpu_check has written, the other benchmarks' files in `folder` left out."""
    return Results(row for row in Results.read(folder).rows if row.file in FILES)


def page(folder: Path, notes: Sequence[str]) -> str:
    found = read(folder)
    rows = [row for row in found.rows if row.file == "gpu_check"]
    lines = ["# gpu-check", "", "peer: transformers, bitsandbytes and PEFT. Weights are random, in the real shape."]
    lines += ["streamed: halfbyte with its layers' weights and its activations on the host."]
    lines += ["", *(machine_in_words(*place) for place in Results(rows).environments())]
    lines += ["", "## Speed and memory", "", *_speed(rows)]
    lines += ["", "## Goals", "", *table(("what", "goal", "found"), goals(found))]
    lines += ["", "## Packing and opening", ""]
    lines += table(("what", "who", "figure", "value"), _named(rows, ("pack", "open")))
    lines += ["", "## Parity", "", *table(("what", "who", "figure", "value"), _named(rows, ("kernels", "loss")))]
    lines += ["", "## What is missing", "", *(f"- {' '.join(note.split())}" for note in notes or ["nothing"])]
    return "\n".join(lines) + "\n"


def _speed(rows: Sequence[Result]) -> list[str]:
    cells = {(row.op, row.case, row.who, row.figure): row.median for row in rows if row.op in ("step", "decode")}
    cases = list(dict.fromkeys((op, case) for op, case, _, _ in cells))
    planned = ("halfbyte", "streamed")
    header = ["case", *(f"{who}, {what}" for who in WHO for what in ("tokens/s", "peak"))]
    header += [f"{who}, planned" for who in planned]
    lines = []
    for op, case in sorted(cases, key=lambda key: (key[0] == "decode", _numbers(key[1]))):
        line = [f"{op}, {case}"]
        for who in WHO:
            speed = cells.get((op, case, who, "tokens_per_second"))
            full = (op, case, who, "out_of_memory") in cells
            line += ["does not fit" if full else "" if speed is None else f"{speed:,.4g}"]
            line += [_size(cells.get((op, case, who, "peak_bytes")))]
        lines.append([*line, *(_size(cells.get((op, case, who, "planned_peak_bytes"))) for who in planned)])
    return table(header, lines)


def _numbers(case: str) -> tuple[int, ...]:
    return tuple(int(word) for word in case.replace(",", " ").split() if word.isdigit())


def _size(value: float | None) -> str:
    return "" if value is None else in_words(value, "bytes")


def _named(rows: Iterable[Result], ops: Sequence[str]) -> list[list[str]]:
    return [[f"{row.op}, {row.shape}, {row.case}".strip(", "), row.who, row.figure, in_words(row.median, row.figure)]
            for row in rows if row.op in ops]  # fmt: skip


def goals(found: Results) -> list[list[str]]:
    """A line a goal; "" where nothing was measured."""
    medians = {(row.op, row.case, row.who, row.figure): row.median for row in found.rows}
    lines = []
    for who, goal in GOALS.items():
        for case in dict.fromkeys(case for op, case, _, _ in medians if op == "step" and case.startswith("2048 ")):
            speed, peak = ([medians.get(("step", case, name, figure)) for name in ("halfbyte", who)]
                           for figure in ("tokens_per_second", "peak_bytes"))  # fmt: skip
            if None not in speed + peak:
                ratio, memory = speed[0] / speed[1], peak[0] / peak[1]  # type: ignore[operator]
                lines.append([f"{case}: speed by {who}'s", f"{goal:g} x", times(ratio)])
                lines.append([f"{case}: peak by {who}'s", "below 1 x", times(memory)])
    copy = medians.get(("copy", "bf16 to bf16", "limit", "bytes_per_second"))
    decode = medians.get(("dequantise", "nf4 to bf16", "halfbyte gpu", "bytes_per_second"))
    if copy and decode:
        lines.append(["dequantising NF4, share of a copy", f"{COPY:.0%}", f"{decode / copy:.0%}"])
    speed_, nbytes = (medians.get((op, case, "halfbyte", figure)) for op, case, figure in (
        ("decode", "1 sequence", "tokens_per_second"), ("open", "", "bytes_per_token")))  # fmt: skip
    if copy and speed_ and nbytes:
        lines.append(
            ["decoding, share of reading at a copy's bandwidth", f"{READ:.0%}", f"{speed_ * nbytes / copy:.0%}"]
        )
    return lines + _parity(found)


def wrong_values(found: Results) -> float:
    """Of all kernels."""
    return sum(row.most for row in found.rows if (row.op, row.figure) == ("kernels", "wrong_values"))


def worst_error(found: Results) -> float:
    """The largest error of a product by torch's; 0 where none was measured."""
    return max((row.most for row in found.rows if (row.op, row.figure) == ("kernels", "error_ratio")), default=0.0)


def _parity(found: Results) -> list[list[str]]:
    lines = []
    if any((row.op, row.figure) == ("kernels", "error_ratio") for row in found.rows):
        lines.append(["kernels: values that differ from the reference's", "0", f"{wrong_values(found):.0f}"])
        lines.append(["kernels: a product's error by torch's", f"at most {ERROR:g}", f"{worst_error(found):.3g}"])
    unequal = {row.case: row.most for row in found.rows if (row.op, row.figure) == ("loss", "unequal")}
    lines += [[f"loss, {case}, streamed: that differ from those with all on the card", "0", f"{most:.0f}"]
              for case, most in unequal.items()]  # fmt: skip
    gaps = {(row.case, row.who): row.median for row in found.rows if (row.op, row.figure) == ("loss", "gap")}
    for case in dict.fromkeys(case for case, _ in gaps):
        goal = "twice torch's" if case.startswith("first") else "1 %"
        shares = [gaps.get((case, who), math.nan) for who in ("halfbyte", "torch")]
        lines.append([f"loss, {case}: distance from fp32 (torch's)", goal, f"{shares[0]:.3%} ({shares[1]:.3%})"])
    return lines
