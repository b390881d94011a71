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

from benchmarks import common, shapes
from benchmarks.common import ROOT, Row, rows_of
from benchmarks.turns import Phase, race

DEMO = ROOT / "src" / "halfbyte" / "demo"
PEER_BATCH = 16
LIMIT, WARM_UP = 32, 4  # items


def ours(folder: str, limit: int | None) -> Phase:
    """halfbyte's evaluation, from the task file to result.json."""
    from halfbyte.config import load_task
    from halfbyte.evaluate.evaluate import evaluate_task
    from halfbyte.model.build import load_model

    task, model = load_task(DEMO / "task.yaml"), load_model(str(Path(folder) / "nf4"))
    out = Path(tempfile.mkdtemp())
    try:
        evaluate_task(model, task, out / "0", variant="bench", limit=WARM_UP)
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


def peer(folder: str, limit: int | None) -> Phase:
    """A loop over batches of prompts sorted by length, with `generate`."""
    import torch
    from transformers import AutoTokenizer

    from benchmarks import peers
    from halfbyte.config import load_task
    from halfbyte.data.numbers import parse_number
    from halfbyte.evaluate.tasks import load_task_set

    task = load_task(DEMO / "task.yaml")
    items = load_task_set(task, limit=limit).items
    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "bf16", padding_side="left")
    net = peers.load(folder).eval()

    def answers(asked: list[str]) -> dict[int, str]:
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
        return found

    answers([str(item.example.prompt) for item in items[:WARM_UP]])
    yield {}
    while True:
        began = time.perf_counter()
        found = answers([str(item.example.prompt) for item in items])
        hits = 0
        for place, item in enumerate(items):
            number, right = parse_number(found[place]), item.number or 0.0
            hits += number is not None and abs(number - right) <= 0.2 * abs(right)
        seconds = time.perf_counter() - began
        yield {"seconds": seconds, "items_per_second": len(items) / seconds, "within_tolerance": hits / len(items)}


def compared(shape: str, case: str, folder: Path, limit: int | None, rounds: int) -> list[Row]:
    arguments = {"folder": str(folder), "limit": limit}
    outcomes = race(
        {"halfbyte": ("benchmarks.evaluate:ours", arguments), "peer": ("benchmarks.evaluate:peer", arguments)}, rounds
    )
    return [row for who, outcome in outcomes.items() for row in rows_of("evaluate", shape, case, who, outcome.turns)]


def main() -> None:
    parser = common.arguments(__doc__, rounds=3, shapes=shapes.SHAPES)
    parser.add_argument("--limit", type=int, default=LIMIT, help="items that the large model is asked (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, shapes.checkpoints(options.shape, options.folder) as folder:
        demo = Path(temporary)
        shutil.copytree(DEMO / "base", demo / "bf16")
        shapes.pack_to(demo / "bf16", demo / "nf4")
        made = compared("demo", "369 items", demo, None, options.rounds)
        made += compared(options.shape, f"{options.limit} items", folder, options.limit, min(2, options.rounds))
    common.write(made, common.results_file(options, "evaluate"))


if __name__ == "__main__":
    main()
