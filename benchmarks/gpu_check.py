"""What a card does with halfbyte, in under nine minutes: parity, memory against plan, speed beside others.

    python benchmarks/gpu_check.py                  # make gpu-check

It needs an NVIDIA GPU, 26 GB of disk, and for the comparison bitsandbytes, peft and accelerate (the extra `test`);
Unsloth takes part where it is installed. Nothing is downloaded: weights are random, in the shape of Llama 3.1 8B. Each
stage is a process of its own that is ended when its time is over; what it has reported till then counts, and what is
missing is named. It writes gpu_check.csv, gpu.csv and gpu_check.md; `--device cpu --shape tiny` runs the same stages
on a toy, for tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks import common, gpu_table, shapes, turns
from benchmarks.common import Table, rows_of
from benchmarks.turns import Figures, Worker

WHOLE = 525.0  # seconds for everything
PARITY_SHAPE = {"8b": "1b", "tiny": "tiny"}  # the processor has to compute it, too
PARITY_TOKENS, PARITY_STEPS = 128, 50
SIZES = {"8b": ((512, 2048, 8192), (1, 2, 4, 8), 64), "tiny": ((32, 64), (1, 2), 4)}  # tokens, items, tokens decoded
MOST_ROWS = 1024  # of a matrix that the reference works on, too, on the processor
ROUNDS = 3  # of a case, after the one that does not count
NEEDS = {"peer": ("bitsandbytes", "peft", "accelerate"), "unsloth": ("unsloth",)}


@dataclass
class Check:
    """One run, and what it has found so far."""

    shape: str
    device: str
    folder: Path
    results: Path
    table: Table
    until: float  # of time.monotonic
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)
        common.say(text)

    def add(self, op: str, case: str, who: str, figures: Sequence[Figures], shape: str = "") -> None:
        self.table.add(rows_of(op, shape or self.shape, case, who, figures))

    @contextmanager
    def worker(self, phase: str, seconds: float, arguments: Mapping[str, Any]) -> Iterator[Worker]:
        worker = turns.Worker(phase, arguments, max(0.1, seconds))
        try:
            yield worker
        finally:
            worker.close(stop=True)


def make(folder: str, shape: str) -> turns.Phase:
    """The bf16 checkpoint of `shape`, where it is missing; one that is not whole never has its name."""
    import shutil

    whole, partial = Path(folder) / "bf16", Path(folder) / "bf16.partial"
    if not whole.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        shapes.write_checkpoint(shapes.SHAPES[shape], partial)
        partial.rename(whole)
    yield {}


def pack(folder: str, device: str) -> turns.Phase:
    """bf16 -> NF4, quantised by `device`; a pack of an earlier run is made anew."""
    import shutil

    import torch

    from halfbyte.checkpoint.pack import pack
    from halfbyte.checkpoint.source import open_checkpoint
    from halfbyte.model.build import choose_device

    out, (device_, _) = Path(folder) / "nf4", choose_device(device)
    shutil.rmtree(out, ignore_errors=True)
    checkpoint = open_checkpoint(str(Path(folder) / "bf16"))
    if device_.type == "cuda":
        torch.zeros(1, device=device_)  # waking the card up is no packing
    report = pack(checkpoint, out, "nf4", device=device_)
    cuda = {"card_peak_bytes": float(torch.cuda.max_memory_allocated())} if device_.type == "cuda" else {}
    yield {"seconds": report.seconds, "bytes": report.nbytes, "peak_bytes": report.peak_bytes or 0, **cuda}


def checkpoints(check: Check, seconds: float) -> None:
    until = time.monotonic() + seconds
    for shape in dict.fromkeys((PARITY_SHAPE[check.shape], check.shape)):
        place = check.folder / shape
        arguments = {"folder": str(place), "shape": shape}
        with check.worker("benchmarks.gpu_check:make", until - time.monotonic(), arguments):
            pass
        arguments = {"folder": str(place), "device": check.device}
        with check.worker("benchmarks.gpu_check:pack", until - time.monotonic(), arguments) as worker:
            check.add("pack", f"to NF4 on {check.device}", "halfbyte", [worker.opened], shape)


def kernels(check: Check, seconds: float) -> None:
    until = time.monotonic() + seconds
    sizes = set(shapes.linears(shapes.SHAPES[check.shape]).values())
    matrices = sorted({(min(rows, MOST_ROWS), columns) for rows, columns in sizes})
    arguments: dict[str, Any] = {"device": check.device, "matrices": matrices}
    with check.worker("benchmarks.parity:kernels", seconds, arguments) as worker:
        for rows, columns in matrices:
            check.add("kernels", f"{rows}x{columns}", "halfbyte", [worker.turn()])
    arguments = {"device": check.device, "results": str(check.results), "matrix": max(sizes), "seconds": seconds / 3}
    with check.worker("benchmarks.parity:speed", until - time.monotonic(), arguments):
        pass


def parity(check: Check, seconds: float) -> None:
    """The losses of the same steps: the card, the card by plain torch in the same type, and the processor in fp32."""
    shape, until = PARITY_SHAPE[check.shape], time.monotonic() + seconds
    case = {"do": "step", "tokens": PARITY_TOKENS, "batch": 1}
    settings: Mapping[str, dict[str, Any]] = {
        "halfbyte": {"device": check.device, "compute": "auto"},
        "torch": {"device": check.device, "compute": "auto", "plain": True},
        "streamed": {"device": check.device, "compute": "auto", "streamed": True},
        "processor": {"device": "cpu", "compute": "fp32"},
    }
    losses: dict[str, list[float]] = {}
    for who in ("processor", "halfbyte", "torch", "streamed"):  # the slowest says how many steps there are time for
        arguments = {"who": "halfbyte", "folder": str(check.folder / shape), **settings[who]}
        share = (until - time.monotonic()) / (1 if who == "streamed" else 2)
        ends, steps = time.monotonic() + 0.8 * share, len(losses.get("processor", range(PARITY_STEPS)))
        found = losses[who] = []
        with check.worker("benchmarks.contenders:session", share, arguments) as worker:
            while len(found) < steps and (time.monotonic() < ends or not found):
                figures = worker.turn(case)
                if "out_of_memory" in figures:
                    raise RuntimeError(f"the losses of {who}: a step of {PARITY_TOKENS} tokens does not fit")
                found.append(figures["loss"])
        check.add("loss", f"first of {PARITY_TOKENS} tokens", who, [{"loss": found[0]}], shape)
        if who == "streamed":
            others = sum(ours != theirs for ours, theirs in zip(found, losses["halfbyte"], strict=False))
            check.add(
                "loss", f"first of {PARITY_TOKENS} tokens", who, [{"unequal": found[0] != losses["halfbyte"][0]}], shape
            )
            check.add("loss", f"all of {len(found)} steps", who, [{"unequal": others}], shape)
        if who != "processor":
            gaps = [abs(loss / exact - 1) for loss, exact in zip(found, losses["processor"], strict=False)]
            case_ = f"mean of {len(gaps)} steps"
            check.add("loss", f"first of {PARITY_TOKENS} tokens", who, [{"gap": gaps[0]}], shape)
            check.add("loss", case_, who, [{"gap": statistics.mean(gaps)}], shape)


def streamed(check: Check, seconds: float) -> None:
    """A step with weights and activations on the host, at the goal's length."""
    ends = time.monotonic() + 0.95 * seconds
    arguments = {"who": "halfbyte", "folder": str(check.folder / check.shape), "device": check.device, "streamed": True}
    with check.worker("benchmarks.contenders:session", seconds, arguments) as worker:
        lengths, batches, _ = SIZES[check.shape]
        for tokens in (2048,) if 2048 in lengths else lengths:
            _train(check, worker, "streamed", tokens, batches[0], Pace(), ends)


def contender(who: str) -> Callable[[Check, float], None]:
    def run(check: Check, seconds: float) -> None:
        missing = [name for name in NEEDS.get(who, ()) if importlib.util.find_spec(name) is None]
        if missing:
            return check.note(f"{who}: not here, as {', '.join(missing)} is not installed")
        ends = time.monotonic() + 0.95 * seconds
        arguments = {"who": who, "folder": str(check.folder / check.shape), "device": check.device}
        with check.worker("benchmarks.contenders:session", seconds, arguments) as worker:
            check.add("open", "", who, [worker.opened])
            lengths, batches, new_tokens = SIZES[check.shape]
            training = [(tokens, batch) for tokens in (2048, 512, 8192) for batch in batches if tokens in lengths]
            training = training or [(tokens, batch) for tokens in lengths for batch in batches]
            first, *others = training  # the goal's length first, so that it is there whatever time is left
            pace = Pace()
            _train(check, worker, who, *first, pace, ends)
            case = {"do": "decode", "new_tokens": new_tokens}
            check.add("decode", "1 sequence", who, [worker.turn(case) for _ in range(3)][1:])
            for tokens, batch in others:
                _train(check, worker, who, tokens, batch, pace, ends)

    return run


@dataclass
class Pace:
    """What is known of a contender: whether a case is worth beginning."""

    speed: float = 0.0  # tokens a second; 0: unknown
    too_many: float = math.inf  # tokens at once that did not fit


def _train(check: Check, worker: Worker, who: str, tokens: int, batch: int, pace: Pace, ends: float) -> None:
    """Measure a case, if it fits and ends in time, as far as can be known."""
    name, found = f"{tokens} tokens, batch {batch}", list[Figures]()
    if tokens * batch >= pace.too_many:
        return check.note(f"{who}, {name}: not tried: {pace.too_many:,.0f} tokens at once did not fit")
    for turn in range(1 + ROUNDS):
        expected = tokens * batch / pace.speed if pace.speed else 0.0
        if time.monotonic() + (2 if turn == 0 else 1) * expected > ends:
            break
        figures = worker.turn({"do": "step", "tokens": tokens, "batch": batch})
        if "out_of_memory" in figures:
            pace.too_many = tokens * batch
            return check.add("step", name, who, [figures])
        if turn:
            pace.speed = figures["tokens_per_second"]
            found.append(figures)
    if found:
        check.add("step", name, who, found)
    else:
        check.note(f"{who}, {name}: no time was left")


STAGES: Mapping[str, tuple[float, Callable[[Check, float], None]]] = {  # seconds at most
    "checkpoints": (120.0, checkpoints),
    "kernels": (45.0, kernels),
    "parity": (55.0, parity),
    "halfbyte": (80.0, contender("halfbyte")),
    "streamed": (30.0, streamed),
    "peer": (110.0, contender("peer")),  # reads and quantises 16 GB first
    "unsloth": (85.0, contender("unsloth")),
}


def run(check: Check, stages: Sequence[str]) -> list[str]:
    """The stages that are not complete; without checkpoints the others can't begin, and there is no page."""
    incomplete = []
    for name in stages:
        seconds, stage = STAGES[name]
        seconds = min(seconds, check.until - time.monotonic())
        common.say(f"{name}: at most {max(0, seconds):.0f} s")
        try:
            if seconds <= 1:
                raise RuntimeError("no time was left")
            stage(check, seconds)
        except (RuntimeError, OSError) as error:
            check.note(f"{name} is not complete: {error}")
            incomplete.append(name)
            if name == "checkpoints":
                return incomplete
    (check.results / "gpu_check.md").write_text(gpu_table.page(check.results, check.notes), encoding="utf-8")
    return incomplete


def main(given: Sequence[str] | None = None) -> int:
    device = {"default": "cuda", "help": "cpu is for tests, with --shape tiny"}
    shape = {"choices": list(PARITY_SHAPE), "default": "8b", "help": "of the model (%(default)s)"}
    folder = {"type": Path, "help": "holds the checkpoints, and keeps them; by default a folder for temporary files"}
    stages = {
        "nargs": "+",
        "choices": list(STAGES),
        "default": list(STAGES),
        "help": "only these (they need the first)",
    }
    options = common.arguments(__doc__, given, rounds=ROUNDS, seconds=WHOLE, device=device, shape=shape, folder=folder,
                               stages=stages)  # fmt: skip
    import torch

    if options.device != "cpu" and not torch.cuda.is_available():
        build = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        do = "run it on a machine with an NVIDIA GPU and torch's build for CUDA"
        print(f"error: gpu_check measures a card and there is none\n  found: {build}\n  do: {do}", file=sys.stderr)
        return 1
    until = time.monotonic() + options.seconds
    for name in ("gpu_check.md", "gpu.csv"):  # of an earlier run, perhaps on another card
        (options.results / name).unlink(missing_ok=True)
    with shapes.roomy(options.folder, f"halfbyte-gpu-{options.shape}-") as place:
        table = Table(options.results / "gpu_check.csv")
        check = Check(options.shape, options.device, place, options.results, table, until)
        incomplete = run(check, options.stages)
    page = options.results / "gpu_check.md"
    if page.is_file():
        print(page.read_text(encoding="utf-8"))
    found = gpu_table.read(options.results)
    wrong, error = gpu_table.wrong_values(found), gpu_table.worst_error(found)
    failures = [f"not complete, for the reasons above: {', '.join(incomplete)}"] if incomplete else []
    if wrong:
        failures.append(f"{wrong:.0f} values of the kernels are not the reference's: see Parity")
    if error > gpu_table.ERROR:
        failures.append(f"a product's error is {error:.3g} times torch's; {gpu_table.ERROR:g} is allowed: see Parity")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
