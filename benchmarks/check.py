"""What `halfbyte check` costs: 100,000 items of three lengths, against the demo's test set, in a process of its own.

An item describes one or more of the demo's LEGO sets, whose numbers a seed draws anew, and asks for what they cost
together; so no two are the same and a few are nearly the same. "limit" is the tokenizer alone, given the same texts as
many at a time; what is beyond it is ours. `peak_bytes` counts as `halfbyte.memory` does, `cpu_seconds` is over all
threads.

    python benchmarks/check.py
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import csv
import io
import json
import os
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence

from benchmarks import common

DEMO = common.ROOT / "src" / "halfbyte" / "demo"
SETS = {"short": 2, "middle": 6, "long": 10}  # an item's LEGO sets: about 100, 270 and 440 tokens
ITEMS = 100_000
RUN = """model: {demo}/base
data:
  train: train.csv
  template: {{prompt: "{{description}} Each costs $", completion: "{{price}}"}}
task: {demo}/task.yaml
"""
_NUMBER = re.compile(r"\d+")


def main(given: Sequence[str] | None = None) -> int:
    options = common.arguments(
        __doc__, given, rounds=1, seconds=600.0,
        items={"type": int, "default": ITEMS, "help": "items of each length (%(default)s)"},
        only={"nargs": "*", "choices": list(SETS), "default": list(SETS), "help": "some of the lengths"},
    )  # fmt: skip
    table = common.Table(options.results / "check" / "check.csv")
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix="check-") as place:
            run = write_run(Path(place), SETS[name], options.items)
            case = f"{options.items:,} items in {(run.parent / 'train.csv').stat().st_size / 1e6:.0f} MB"
            for who, work in (("halfbyte", check), ("limit", tokenise)):
                turns = [measured(work, run) for _ in range(options.rounds)]
                table.add(common.rows_of("check", name, case, who, turns))
    return 0


def write_run(folder: Path, sets: int, items: int, seed: int = 0) -> Path:
    """A run.yaml and its data: `items` rows that describe so many LEGO sets each. The same numbers give the same
    bytes."""
    with (DEMO / "train.csv").open(newline="", encoding="utf-8") as file:
        known = [row["description"] for row in csv.DictReader(file)]
    drawn = random.Random(seed)

    def varied(text: str) -> str:
        return _NUMBER.sub(lambda found: str(max(1, int(int(found[0]) * drawn.uniform(0.5, 1.5)))), text)

    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(("name", "description", "price"))
        for number in range(items):
            text = " ".join(varied(drawn.choice(known)) for _ in range(sets))
            out.writerow((f"set {number}", text, f"{drawn.uniform(5, 500):.2f}"))
    (folder / "run.yaml").write_text(RUN.format(demo=DEMO), encoding="utf-8")
    return folder / "run.yaml"


def measured(work: Callable[[str], int], run: Path) -> dict[str, float]:
    """`work`, a function of this module, on `run` in a process of its own: from its start to its end."""
    code = "import sys; from benchmarks import check; check.child(*sys.argv[1:])"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, work.__name__, str(run)], cwd=common.ROOT, check=True,
                          capture_output=True, text=True)  # fmt: skip
    return {"seconds": time.perf_counter() - began, **json.loads(done.stdout)}


def child(name: str, run: str) -> None:
    """Do what `name` says and print, as JSON, what it took."""
    common.quiet()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from halfbyte.memory import MemoryMeter

    with MemoryMeter() as meter, contextlib.redirect_stdout(io.StringIO()):
        tokens = globals()[name](run)
    spent = os.times()
    figures = {"cpu_seconds": spent.user + spent.system, "peak_bytes": meter.peak_bytes, "tokens": tokens}
    print(json.dumps({name: value for name, value in figures.items() if value}))


def check(run: str) -> int:
    """`halfbyte check`."""
    from halfbyte.cli import main

    assert main(["check", run, "--json"]) == 0
    return 0


def tokenise(run: str) -> int:
    """Prompts, and prompts with their answers, by the tokenizer alone; how many tokens the latter have."""
    from tokenizers import Tokenizer

    from halfbyte.data.dataset import CHUNK

    tokenizer, tokens, texts = Tokenizer.from_file(str(DEMO / "base" / "tokenizer.json")), 0, list[str]()
    with (Path(run).parent / "train.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            prompt = f"{row['description']} Each costs $"
            texts += [prompt, prompt + row["price"]]
            if len(texts) >= 2 * CHUNK:
                tokens += sum(len(made.ids) for made in tokenizer.encode_batch(texts, add_special_tokens=False)[1::2])
                texts.clear()
    return tokens + sum(len(made.ids) for made in tokenizer.encode_batch(texts, add_special_tokens=False)[1::2])


if __name__ == "__main__":
    sys.exit(main())
