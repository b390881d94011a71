"""`make soak`: kill runs by SIGKILL at random moments, resume them, and compare them with runs that were never stopped.

An attempt ends at a random time, at a random time after a checkpoint began to be written, or after a micro-batch; where
it was is read from what the process said until then. Some attempts are stopped by SIGTERM or SIGINT instead, and must
exit with code 130 and leave a checkpoint of the last step. Each attempt must go on from the newest checkpoint that it
found, by the steps that it makes. Exits with 1 when anything differs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from tests.soak.child import BEGINS, MICRO, TRAINED, UPDATE, WRITES, Child
from tests.soak.runs import MICRO_BATCHES, RUNS, differences, gone_on, newest, write_run

INSIDE, BETWEEN = "inside a checkpoint write", "between micro-batches"


class Soak:
    def __init__(self, folder: Path, seed: int, task: bool) -> None:
        self.folder, self.random, self.task = folder, random.Random(seed), task
        self.kills: Counter[str] = Counter()  # by where
        self.stops: Counter[str] = Counter()  # by signal
        self.faults: list[str] = []
        self.start = 1.0  # seconds until training begins, as seen of late
        self.write = 0.005  # seconds of a checkpoint's write, as seen of late

    def run(self, name: str, seed: int, epochs: int, model: Path) -> None:
        """One run: once without a stop, once with many; their folders are compared."""
        made = [
            write_run(self.folder / f"{name}-{seed}" / part, model, name, seed, epochs, self.task)
            for part in ("whole", "parts")
        ]
        variables = {"HALFBYTE_KERNELS": RUNS[name]["kernels"]} if RUNS[name]["kernels"] else {}
        code = self._child(made[0], variables).end()
        if code != 0:
            raise SystemExit(f"the run that is not stopped ends with {code}: see {made[0].parent / 'log.txt'}")
        while (code := self._attempt(made[1], variables)) != 0:
            if self.faults:
                return
            if code not in (-signal.SIGKILL, 130):
                self.faults.append(f"{name}-{seed}: an attempt ended with {code}: see {made[1].parent / 'log.txt'}")
                return
        self.faults += [f"{name}-{seed}: {found}" for found in differences(*(file.parent / "out" for file in made))]

    def _child(self, run_yaml: Path, variables: dict[str, str]) -> Child:
        arguments = ["tune", str(run_yaml), "--debug"]
        if (run_yaml.parent / "out" / "measured.json").exists():
            arguments.append("--resume")
        return Child(arguments, run_yaml.parent / "log.txt", variables)

    def _attempt(self, run_yaml: Path, variables: dict[str, str]) -> int:
        """Start or resume the run and end it somewhere; its exit code. It must go on from its newest checkpoint."""
        out = run_yaml.parent / "out"
        before, child = newest(out), self._child(run_yaml, variables)
        code = self._end(child, out)
        self._learn(child)
        self.faults += [f"{run_yaml.parent.parent.name}: {found}: see {run_yaml.parent / 'log.txt'}"
                        for found in gone_on(out, before, child.seen.count(UPDATE))]  # fmt: skip
        return code

    def _end(self, child: Child, out: Path) -> int:
        """End an attempt somewhere, or let it come to its end; its exit code."""
        way = self.random.choices(("time", "write", "micro", "term", "int"), (3, 3, 2, 1, 1))[0]
        reached = child.wait_for(BEGINS, 1)
        if way == "write":
            reached = child.wait_for(WRITES, self.random.randint(1, 4))
            child.pass_time(self.random.uniform(0, 1.5 * self.write))
        elif way == "micro":
            reached = child.wait_for(MICRO, self.random.randint(1, 3 * MICRO_BATCHES))
            child.pass_time(self.random.uniform(0, 0.01))
        else:
            child.pass_time(self.random.uniform(0, 1.4 * self.start))
        if not reached:
            return child.end()
        if way in ("term", "int"):
            return self._stopped(child, out, signal.SIGTERM if way == "term" else signal.SIGINT)
        code = child.kill()
        if code == -signal.SIGKILL:
            self.kills[child.where(MICRO_BATCHES)] += 1
        return code

    def _learn(self, child: Child) -> None:
        """How long it takes until training begins, and to write a checkpoint: the next attempts aim by that."""
        if child.trains_after:
            self.start = 0.5 * self.start + 0.5 * child.trains_after
        for seconds in child.writes:
            self.write = 0.5 * self.write + 0.5 * seconds

    def _stopped(self, child: Child, out: Path, number: signal.Signals) -> int:
        code = child.end(number)
        self.stops[number.name] += 1
        if code not in (0, 130):
            self.faults.append(f"{number.name} ends with {code}, not with 130: {child.where(MICRO_BATCHES)}")
        metrics = out / "metrics.jsonl"
        if code == 130 and MICRO in child.seen and TRAINED not in child.seen:
            steps = len(metrics.read_text().splitlines())
            if not (out / "checkpoints" / f"step-{steps:06d}").is_dir():
                self.faults.append(f"{number.name} after step {steps} left no checkpoint of it")
        return code


def warm_up() -> None:
    """Import what a run imports, once for all that are forked off; compute nothing."""
    import halfbyte.experiment
    import halfbyte.pipeline
    import halfbyte.report.page
    import halfbyte.tune.run  # noqa: F401
    import tests.tiny  # noqa: F401

    gc.collect()
    gc.freeze()


def make_model(folder: Path) -> Path:
    """A tiny model, made by a process of its own."""
    pid = os.fork()
    if pid == 0:
        from tests.tiny import tiny_checkpoint

        tiny_checkpoint("llama", folder)
        os._exit(0)
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit("the tiny model can't be made")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="at least so many (default: 100)")
    parser.add_argument("--inside", type=int, default=20, help="of them inside a checkpoint write (default: 20)")
    parser.add_argument("--between", type=int, default=10, help="of them between micro-batches (default: 10)")
    parser.add_argument("--epochs", type=int, default=10, help="of a run (default: 10)")
    parser.add_argument("--no-task", action="store_true", help="evaluate nothing, which is faster")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write what was found to this JSON file")
    options = parser.parse_args()
    began, place = time.monotonic(), Path(tempfile.mkdtemp(prefix="soak-"))
    os.environ |= {"HALFBYTE_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1"}
    warm_up()
    soak, model, run = Soak(place, options.seed, not options.no_task), make_model(place / "model"), options.seed
    while not soak.faults and (soak.kills.total() < options.kills or soak.kills[INSIDE] < options.inside
                               or soak.kills[BETWEEN] < options.between):  # fmt: skip
        name = list(RUNS)[run % len(RUNS)]
        soak.run(name, run, options.epochs, model)
        run += 1
        print(f"run {run} ({name}): {soak.kills.total()} kills so far, {soak.kills[INSIDE]} {INSIDE}, "
              f"{soak.kills[BETWEEN]} {BETWEEN}; stops {dict(soak.stops)}", flush=True)  # fmt: skip
    report(soak, run - options.seed, time.monotonic() - began, options)
    if soak.faults:
        print(f"kept: {place}")
        return 1
    shutil.rmtree(place)
    return 0


def report(soak: Soak, runs: int, seconds: float, options: argparse.Namespace) -> None:
    from halfbyte.environment import environment

    found = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "seed": options.seed, "runs": runs,
             "kills": soak.kills.total(), "where": dict(sorted(soak.kills.items())), "stops": dict(soak.stops),
             "seconds": round(seconds), "write_ms": round(1000 * soak.write, 1), "faults": soak.faults,
             **environment()}  # fmt: skip
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({key: found[key] for key in ("runs", "kills", "where", "stops", "seconds", "write_ms")}, indent=2))
    print(
        "\n".join(soak.faults) or "every run ended with the same adapter, state, metrics and predictions, bit for bit"
    )


if __name__ == "__main__":
    sys.exit(main())
