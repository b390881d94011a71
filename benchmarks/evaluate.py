"""Asking a model the questions of the demo's task: halfbyte's `evaluate` beside a plain loop of the stock stack.

Both have the same prompts, sort them by length, decode greedily in batches in NF4 and judge by the same tolerance; the
loop takes 16 prompts at once, as tutorials do, and halfbyte as many as its budget holds. halfbyte's time includes its
intervals and the files that it writes. One model is the demo's own (7.5 M parameters, all 369 items), the other has a
real shape (random weights, some items: only the time counts). A first evaluation does not count.

    python benchmarks/evaluate.py --shape 1b --folder /path/with/checkpoints
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import shutil
import tempfile
import time
from typing import Any

from benchmarks import bench, shapes
from benchmarks.bench import Bench
from benchmarks.common import ROOT, rows_of
from benchmarks.turns import Figures, Phase, Worker, working

DEMO = ROOT / "src" / "halfbyte" / "demo"
PEER_BATCH = 16
LIMIT, ALL = 32, 369  # items
FIGURES = ("seconds", "items_per_second", "within_tolerance")


def ours(folder: str, limit: int | None) -> Phase:
    """halfbyte's evaluation, from the task file to result.json."""
    from halfbyte.config import load_task
    from halfbyte.evaluate.evaluate import evaluate_task
    from halfbyte.model.build import load_model

    task, model = load_task(DEMO / "task.yaml"), load_model(str(Path(folder) / "nf4"))
    out = Path(tempfile.mkdtemp())
    try:
        yield {}
        turn = 0
        while True:
            turn, began = turn + 1, time.perf_counter()
            result = evaluate_task(model, task, out / str(turn), variant="bench", limit=limit)
            seconds = time.perf_counter() - began
            yield {"seconds": seconds, "items_per_second": result["items"] / seconds,
                   "within_tolerance": result["metrics"]["within"]["value"]}  # fmt: skip
    finally:
        shutil.rmtree(out, ignore_errors=True)


def by_a_plain_loop(net: Any, folder: str, limit: int | None) -> Figures:
    """The stock stack's `net` answers batches of prompts sorted by length, with `generate`."""
    import torch
    from transformers import AutoTokenizer

    from halfbyte.config import load_task
    from halfbyte.data.numbers import parse_number
    from halfbyte.evaluate.tasks import load_task_set

    task = load_task(DEMO / "task.yaml")
    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "bf16", padding_side="left")
    began = time.perf_counter()
    items = load_task_set(task, limit=limit).items
    asked = [str(item.example.prompt) for item in items]
    order = sorted(range(len(asked)), key=lambda place: -len(asked[place]))
    found: dict[int, str] = {}
    for start in range(0, len(order), PEER_BATCH):
        places = order[start : start + PEER_BATCH]
        batch = tokenizer([asked[place] for place in places], return_tensors="pt", padding=True)
        with torch.inference_mode():
            made = net.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                                max_new_tokens=task.decoding.max_new_tokens, do_sample=False,
                                pad_token_id=tokenizer.pad_token_id)  # fmt: skip
        texts = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        found |= {place: text.split("\n")[0] for place, text in zip(places, texts, strict=True)}
    hits = 0
    for place, item in enumerate(items):
        number, right = parse_number(found[place]), item.number or 0.0
        hits += number is not None and abs(number - right) <= 0.2 * abs(right)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "items_per_second": len(items) / seconds, "within_tolerance": hits / len(items)}


def compare(run: Bench, shape: str, folder: Path, limit: int | None, peer: Worker) -> None:
    arguments = {"folder": str(folder), "limit": limit}
    with working({"halfbyte": ("benchmarks.evaluate:ours", arguments)}) as workers:
        case = {"do": "evaluate", "limit": limit}
        outcomes = run.turns(workers | {"peer": peer}, f"evaluate, model {shape}", case, rounds=2)
    for who, outcome in outcomes.items():
        turns = [{name: turn[name] for name in FIGURES} for turn in outcome.turns]
        run.add("evaluate", rows_of("evaluate", shape, f"{limit or ALL} items", who, turns))


def measure(run: Bench) -> None:
    """The demo's own model, and that of the run."""
    with tempfile.TemporaryDirectory() as temporary:
        demo = Path(temporary)
        shutil.copytree(DEMO / "base", demo / "bf16")
        shapes.pack_to(demo / "bf16", demo / "nf4")
        with working({"peer": ("benchmarks.peers:session", {"folder": str(demo)})}) as workers:
            compare(run, "demo", demo, run.limit, workers["peer"])
    compare(run, run.shape, run.folder, run.limit or LIMIT, run.peer)


if __name__ == "__main__":
    bench.main(__doc__, None, measure, limit={"type": int, "help": f"items; by default {LIMIT}, of the demo all"})
