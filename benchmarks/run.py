"""Everything that `make bench` measures, and docs/performance.md of it.

    python benchmarks/run.py --shape 1b
    python benchmarks/run.py --shape 8b --folder /path/with/30GB/free

What needs no model runs in a process of its own and only with the small shape. The checkpoints (random weights; nothing
is downloaded) are made in the folder where they are missing. Without --folder they go to a temporary folder and are
removed at the end; so is a named folder that was not there before, unless --keep is given. A benchmark that fails does
not keep the others from running.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence

from benchmarks import bench, common, compute, decode, evaluate, load, render, shapes, step, tune
from benchmarks.bench import Bench

HERE = Path(__file__).resolve().parent
ALONE = ("limits", "kernels", "linear", "ops")
WITH_A_MODEL: dict[str, Callable[[Bench], None]] = {
    "load": load.measure, "step": step.measure, "decode": decode.measure, "evaluate": evaluate.measure,
    "tune": tune.measure,
}  # fmt: skip
LARGE: dict[str, Callable[[Bench], None]] = {  # evaluating is the same loop as with 1b, at six times the time
    "load": load.measure, "step": step.measure, "decode": decode.measure, "step, roomy": step.measure_roomy,
    "tune": tune.measure,
}  # fmt: skip


def attempt(name: str, work: Callable[[], object]) -> bool:
    """Whether `work` went through; how long it took is said, and why it failed."""
    began = time.perf_counter()
    common.say(f"--- {name}")
    try:
        work()
    except Exception:
        traceback.print_exc()
        common.say(f"--- {name} failed")
        return False
    common.say(f"--- {name} took {time.perf_counter() - began:.0f} s")
    return True


def alone(script: str, results: Path) -> None:
    subprocess.run([sys.executable, str(HERE / f"{script}.py"), "--results", str(results)], check=True)


def main(given: Sequence[str] | None = None) -> int:
    only = {"nargs": "*", "choices": (*ALONE, *WITH_A_MODEL, *LARGE), "help": "some of the benchmarks"}
    options = common.arguments(
        __doc__, given, rounds=0, seconds=0.0, only=only,
        shape={"choices": list(shapes.SHAPES), "default": "1b"},
        folder={"type": Path, "help": "holds the checkpoints"},
        keep={"action": "store_true", "help": "leave the checkpoints in the folder"},
        limit={"type": int, "help": "items to evaluate"},
    )  # fmt: skip
    shape, stages = options.shape, LARGE if options.shape == "8b" else WITH_A_MODEL
    wanted = options.only or [*(ALONE if shape == "1b" else ()), *stages]
    for name in wanted:
        if name not in (*ALONE, *stages):
            common.say(f"with the shape {shape} there is no '{name}'; there are: {', '.join((*ALONE, *stages))}")
            return 2
    common.say(f"the peer and the limit compute in {compute.name()}, halfbyte in {compute.own_name()}")
    went = [attempt(name, lambda name=name: alone(name, options.results)) for name in ALONE if name in wanted]  # type: ignore[misc]
    if any(name in wanted for name in stages):
        made = options.folder is not None and not options.folder.exists()
        common.say(f"the checkpoints of {shape}")
        with shapes.checkpoints(shape, options.folder) as folder:
            rounds, seconds = options.rounds or bench.ROUNDS[shape], options.seconds or bench.SECONDS[shape]
            with Bench(shape, folder, rounds, seconds, options.results, options.limit) as run:
                for name, measure in stages.items():
                    if name in wanted:
                        went.append(attempt(name, lambda measure=measure, run=run: measure(run)))  # type: ignore[misc]
        if made and not options.keep:
            shutil.rmtree(options.folder)
    if options.results == common.RESULTS:
        render.main()
    return 0 if all(went) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes of the phases end, too
    sys.exit(main())
