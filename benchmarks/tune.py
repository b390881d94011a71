"""`halfbyte tune` under a memory budget: what it planned, what it took, and how many layers it had to recompute.

The whole verb on a packed model of a real shape, from the run file to the adapter, in a process of its own, with items
of 512 bytes that are all learned.

    python benchmarks/tune.py --shape 1b --folder /path/with/checkpoints
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import random
import shutil
import string
import tempfile

from benchmarks import bench, compute
from benchmarks.bench import Bench
from benchmarks.common import rows_of
from benchmarks.turns import Phase, working

MEMORY = {"tiny": ("500MB",), "1b": ("2GB", "1.8GB"), "8b": ("8GB",)}
STEPS = {"tiny": 2, "1b": 3, "8b": 2}
ITEMS, LETTERS = 48, 512


def write_run(folder: Path, model: Path, memory: str, steps: int) -> Path:
    """A run file with its data, in `folder`."""
    made = random.Random(0)
    texts = ("".join(made.choices(string.ascii_lowercase + " ", k=LETTERS)) for _ in range(ITEMS))
    lines = (json.dumps({"prompt": text[:8], "completion": text[8:]}) for text in texts)
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run = {"model": str(model.resolve()), "memory": memory, "out": str(folder / "run"), "compute": compute.own_name(),
           "data": {"train": str(folder / "train.jsonl"), "validation": 0.0, "learn": "all", "max_tokens": LETTERS},
           "adapter": {"rank": 32, "alpha": 64, "targets": "attention"},
           "tune": {"batch": 1, "max_steps": steps}}  # fmt: skip
    file = folder / "run.yaml"
    file.write_text(json.dumps(run), encoding="utf-8")  # JSON is YAML
    return file


def tune(folder: str, memory: str, steps: int) -> Phase:
    """Once: a run of `steps` steps."""
    from halfbyte.cli import main
    from halfbyte.option_files import read_yaml

    place = Path(tempfile.mkdtemp())
    try:
        code = main(["tune", str(write_run(place, Path(folder) / "nf4", memory, steps))])
        assert code == 0, f"halfbyte tune ended with {code}"
        plan = json.loads((place / "run" / "plan.json").read_text(encoding="utf-8"))["phases"]["tune"]
        lines = [
            json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        settled = read_yaml(place / "run" / "run.yaml")["tune"]
        assert len(lines) == steps
        yield {"planned_peak_bytes": plan["peak_bytes"], "planned_mapped_bytes": plan["mapped_bytes"],
               "peak_bytes": lines[-1]["peak_bytes"], "mapped_bytes": lines[-1]["mapped_bytes"],
               "recomputed_layers": settled["recompute"], "micro_batch": settled["micro_batch"],
               "seconds": lines[-1]["seconds"]}  # fmt: skip
    finally:
        shutil.rmtree(place)


def measure(run: Bench) -> None:
    for memory in MEMORY[run.shape]:
        arguments = {"folder": str(run.folder), "memory": memory, "steps": STEPS[run.shape]}
        with working({"halfbyte": ("benchmarks.tune:tune", arguments)}) as workers:
            run.add("tune", rows_of("tune", run.shape, f"memory: {memory}", "halfbyte", [workers["halfbyte"].opened]))


if __name__ == "__main__":
    bench.main(__doc__, None, measure)
