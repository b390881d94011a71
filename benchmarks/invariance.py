"""Do greedy answers depend on batch size, padding and order? The share that changes, on the demo's task.

    python benchmarks/invariance.py --run runs/demo --compute bf16 fp32

Every item is first answered alone: no padding, nothing else in the batch. Then all items are answered again in batches
of 3, of 16 and of as many as the budget holds, and in three shuffled orders; an answer that is not the same text
counts. For each that changed, the margin is how far the likeliest token was ahead of the next where the two parted, in
logits: a rounding error of the type can turn what is nearer than that. Exit code 1 where more than 0.5 % change.
With `--run` the adapter of a finished run is on the model. Printed, and kept as CSV with `--out`.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

DEMO = Path(__file__).resolve().parents[1] / "src" / "halfbyte" / "demo"
ALLOWED = 0.005  # of the answers
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Changed:
    """How one way of asking changed the answers of one model."""

    model: str
    compute: str
    way: str
    items: int
    margins: list[float]  # of each answer that changed

    @property
    def share(self) -> float:
        return len(self.margins) / self.items


def measure(run: Path | None, compute: str, weights: str, limit: int | None = None) -> Iterator[Changed]:
    """Every way of asking against each item alone."""
    from halfbyte.config import load_task
    from halfbyte.data.encode import Encoder
    from halfbyte.evaluate.generate import end_tokens, generate
    from halfbyte.evaluate.tasks import load_task_set
    from halfbyte.model.build import load_model

    adapter = run / "adapter" if run else None
    model = load_model(str(DEMO / "base"), weights=weights, adapter=adapter, compute=compute)  # type: ignore[arg-type]
    task, encoder = load_task(DEMO / "task.yaml"), Encoder(model.tokenizer)
    tasks = load_task_set(task, limit=limit)
    prompts, ends = encoder.prompts(tasks.asked(encoder)), end_tokens(model) | encoder.stops
    name = f"{'tuned' if run else 'base'}, {weights}"

    def answers(order: Sequence[int], batch: int | str) -> list[tuple[str, list[int]]]:
        found = generate(model, [prompts[item] for item in order], task.decoding, batch=batch, ends=ends)
        by_item = dict(zip(order, zip(found.texts, found.ids, strict=True), strict=True))
        return [by_item[item] for item in range(len(prompts))]

    in_order = list(range(len(prompts)))
    alone = answers(in_order, 1)
    ways: list[tuple[str, list[int], int | str]] = [(f"batches of {n}", in_order, n) for n in (3, 16)]
    ways.append(("batches by budget", in_order, "auto"))
    for seed in SEEDS:
        ways.append((f"batches of 16, shuffled ({seed})", random.Random(seed).sample(in_order, len(in_order)), 16))
    for way, order, batch in ways:
        other = answers(order, batch)
        margins = [margin(model, prompts[item], alone[item][1], other[item][1])
                   for item in in_order if alone[item][0] != other[item][0]]  # fmt: skip
        yield Changed(name, compute, way, len(prompts), margins)


def margin(model: Any, prompt: Sequence[int], a: Sequence[int], b: Sequence[int]) -> float:
    """The lead of the likeliest token over the next, where the answers `a` and `b` part."""
    import torch

    same = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    with torch.inference_mode():
        hidden = model.hidden(torch.tensor([[*prompt, *a[:same]]], device=model.device))
        first, second = model.logits(hidden[:, -1]).float()[0].topk(2).values.tolist()
    return float(first - second)


def write(rows: Sequence[Changed], file: Path) -> None:
    """A line a row, with machine and versions."""
    from benchmarks.common import about

    here = about()
    with file.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream)
        lines.writerow(["model", "compute", "way", "items", "changed", "largest_margin", *here])
        for row in rows:
            largest = max(row.margins, default="")
            found = (row.model, row.compute, row.way, row.items, len(row.margins), largest)
            lines.writerow([*found, *here.values()])


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run of the demo (default: the base alone)")
    parser.add_argument("--compute", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--weights", nargs="+", default=["nf4"])
    parser.add_argument("--limit", type=int, help="only N items")
    parser.add_argument("--out", type=Path, help="write the rows to this CSV file")
    options = parser.parse_args(given)
    rows = []
    for run in [None, options.run] if options.run else [None]:
        for weights in options.weights:
            for compute in options.compute:
                for found in measure(run, compute, weights, options.limit):
                    margins = ", ".join(f"{lead:.4f}" for lead in found.margins)
                    share = f"{len(found.margins)} of {found.items} changed ({100 * found.share:.2f} %)"
                    more = f"; margins {margins}" if margins else ""
                    print(f"{found.model}, {compute}, {found.way}: {share}{more}", flush=True)
                    rows.append(found)
    if options.out:
        write(rows, options.out)
    return int(any(found.share > ALLOWED for found in rows))


if __name__ == "__main__":
    raise SystemExit(main())
