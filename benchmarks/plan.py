"""Planned against measured: what `halfbyte plan` says of runs, and what they then take.

A case is a checkpoint of random weights in a real model's proportions (with fewer layers), and a run: sequence, items
at once, rank, targets, format and recomputation, drawn from all combinations by a seed. All cases are planned first, by
the verb, from the files alone, and written to predicted.csv; then each is trained for some steps and evaluated, by the
verb, in a process of its own. What it measured of itself (measured.json) stands beside the prediction in measured.csv
and in docs/plan.svg.

A plan's seconds are of the machine as it was when it was calibrated. On a machine that others use, too, that changes
within minutes, so each line has the `pace` of the machine around its run: the seconds that a few products and a read of
memory took then, by those that they took before the first run, 1.2 where it was a fifth slower.

    python benchmarks/plan.py --cases 40 --folder /path/with/10GB/free
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import csv
import itertools
import json
import os
import random
import shutil
import statistics
import string
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import common, shapes
from benchmarks.common import say
from halfbyte.plan.native import multiplies_bf16

FIGURES = ("tune_peak_bytes", "evaluate_peak_bytes", "pack_peak_bytes", "step_seconds", "pack_seconds")

# Proportions of real models (the catalogue has their sources), with fewer layers.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": shapes.SHAPES["1b"] | {"num_hidden_layers": 6},
    "mistral": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 2, "num_attention_heads": 32,
                "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32768, "sliding_window": None},
    "qwen2": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 12, "num_attention_heads": 14,
              "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "qwen3": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 10, "num_attention_heads": 16,
              "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True},
    "gemma2": {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 4, "num_attention_heads": 8,
               "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000, "sliding_window": 4096},
    "gemma3_text": {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 8, "num_attention_heads": 4,
                    "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "sliding_window": 512},
    "phi3": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 3, "num_attention_heads": 32,
             "num_key_value_heads": 32, "vocab_size": 32064, "tie_word_embeddings": False},
    "olmo2": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 4, "num_attention_heads": 16,
              "num_key_value_heads": 16, "vocab_size": 100352, "tie_word_embeddings": False},
    "granite": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 5, "num_attention_heads": 32,
                "num_key_value_heads": 8, "vocab_size": 49155, "logits_scaling": 8.0, "embedding_multiplier": 12.0,
                "residual_multiplier": 0.22, "attention_multiplier": 0.015625, "tie_word_embeddings": True},
    "smollm3": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 4, "num_attention_heads": 16,
                "num_key_value_heads": 4, "vocab_size": 128256, "tie_word_embeddings": True},
}  # fmt: skip
SETTINGS: dict[str, tuple[Any, ...]] = {
    "sequence": (64, 256, 512, 1024),
    "micro_batch": (1, 2, 4),
    "rank": (4, 16, 64),
    "targets": ("all", "attention", ("q_proj", "v_proj")),
    "weights": ("nf4", "nf4-single", "int8", "bf16", "fp32"),
    "recompute": (0.0, 0.5, 1.0),  # share of the layers
    "learn": ("completion", "all"),  # tokens that the loss counts: 8 letters of an item, or all of it
}
MOST_TOKENS = {"bf16": 2048, "fp32": 512}  # in a micro-batch, by what is computed in: what takes minutes is left out
STEPS, ITEMS, NEW_TOKENS = 6, 12, 16


@dataclass(frozen=True)
class Case:
    """One run: an architecture and a value of every setting."""

    architecture: str
    sequence: int
    micro_batch: int
    rank: int
    targets: str | tuple[str, ...]
    weights: str
    recompute: int  # layers
    learn: str
    compute: str

    @property
    def name(self) -> str:
        targets = self.targets if isinstance(self.targets, str) else "+".join(self.targets)
        return (f"{self.architecture} {self.sequence}x{self.micro_batch} r={self.rank} {targets} {self.weights} "
                f"{self.recompute} recomputed, learns {self.learn}, {self.compute}")  # fmt: skip


def draw(count: int, seed: int, compute: str = "bf16", tokens: int | None = None) -> list[Case]:
    """`count` cases, as many of each architecture, and of each value of a setting, as can be. They compute in
    `compute`, but for those with weights in fp32. `tokens`: most in a micro-batch, if fewer than by default."""
    made, cases = random.Random(seed), list[Case]()
    names = itertools.cycle(ARCHITECTURES)
    decks: dict[str, list[Any]] = {name: [] for name in SETTINGS}
    while len(cases) < count:
        for name, deck in decks.items():  # as cards are dealt: each value before any comes again
            deck.extend(() if deck else made.sample(SETTINGS[name], len(SETTINGS[name])))
        architecture, chosen = next(names), {name: deck.pop() for name, deck in decks.items()}
        chosen["compute"] = "fp32" if chosen["weights"] == "fp32" else compute
        most = MOST_TOKENS[chosen["compute"]]
        if chosen["sequence"] * chosen["micro_batch"] > min(most, tokens or most):
            continue
        if architecture == "phi3" and "q_proj" in chosen["targets"]:
            chosen["targets"] = ("qkv_proj",)  # fused there
        layers = ARCHITECTURES[architecture]["num_hidden_layers"]
        case = Case(architecture, **chosen | {"recompute": round(chosen["recompute"] * layers)})
        if case not in cases:
            cases.append(case)
    return cases


def write_model(architecture: str, folder: Path) -> Path:
    """A checkpoint of random bf16 weights in the shape of `architecture`; names and shapes are transformers' own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    ids = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
    options = {"max_position_embeddings": 8192, **ARCHITECTURES[architecture], **ids}
    config = AutoConfig.for_model(architecture, **options, dtype="bfloat16")
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    sizes = [(name, tuple(value.shape)) for name, value in net.state_dict().items() if name not in tied]
    config.architectures = [type(net).__name__]
    config.save_pretrained(folder)
    shapes.write_tokenizer(folder)
    shapes.write_weights(folder / "model.safetensors", sizes)
    return folder


def write_run(case: Case, model: Path, folder: Path, items: int = ITEMS) -> Path:
    """The run file of a case: items of its sequence (a token a letter, and the end), and a task of such prompts."""
    folder.mkdir()
    made = random.Random(0)
    letters = string.ascii_lowercase + " "
    for name, count, length in (("train", items, case.sequence - 1), ("test", items, case.sequence - NEW_TOKENS)):
        texts = ("".join(made.choices(letters, k=max(length, 16))) for _ in range(count))
        lines = (json.dumps({"prompt": text[:-8], "completion": text[-8:]}) for text in texts)
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    task = {"name": "copy", "data": str(folder / "test.jsonl"), "kind": "exact",
            "decoding": {"max_new_tokens": NEW_TOKENS, "stop": []}}  # fmt: skip
    run = {"model": str(model), "weights": case.weights, "out": str(folder / "run"), "task": str(folder / "task.yaml"),
           "compute": case.compute,
           "data": {"train": str(folder / "train.jsonl"), "validation": 0.0, "max_tokens": case.sequence,
                    "learn": case.learn},
           "adapter": {"rank": case.rank, "alpha": 2 * case.rank, "targets": case.targets},
           "tune": {"batch": case.micro_batch, "micro_batch": case.micro_batch, "recompute": case.recompute,
                    "epochs": STEPS, "max_steps": STEPS}}  # fmt: skip
    for name, values in (("task", task), ("run", run)):
        (folder / f"{name}.yaml").write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
    return folder / "run.yaml"


def halfbyte(*arguments: str, **variables: str) -> str:
    """What the verb prints. Raises RuntimeError with its error where it fails. `variables` are of its environment."""
    done = subprocess.run([sys.executable, "-m", "halfbyte", *arguments], capture_output=True, text=True,
                          env=os.environ | variables)  # fmt: skip
    if done.returncode not in (0, 3):
        raise RuntimeError(f"halfbyte {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def predicted(run: Path) -> dict[str, float]:
    """What `halfbyte plan RUN.yaml` says of packing, of training and of evaluating the tuned model; seconds only if
    calibrated."""
    plan = json.loads(halfbyte("plan", str(run), "--json"))
    found = {f"{name}_peak_bytes": plan["phases"][name]["peak_bytes"] for name in ("pack", "tune", "evaluate")
             if plan["phases"][name]["parts"]}  # fmt: skip
    found |= {name: plan["time"].get(name) for name in ("step_seconds", "pack_seconds")}
    return {name: found[name] for name in FIGURES if found.get(name) is not None}


def measured(run: Path) -> dict[str, float]:
    """The same figures of the run, made now."""
    cache = run.parent / "cache"  # else each case left a packed copy in the user's
    halfbyte("tune", str(run), "--force", HALFBYTE_CACHE=str(cache))
    shutil.rmtree(cache, ignore_errors=True)
    folder = run.parent / "run"
    phases = json.loads((folder / "measured.json").read_text(encoding="utf-8"))["phases"]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line)["seconds"] for line in lines[1:]]  # in the first one, memory is mapped
    found = {"tune_peak_bytes": phases["tune"]["peak_bytes"],
             "evaluate_peak_bytes": phases["evaluate_after"]["peak_bytes"],
             "step_seconds": statistics.median(steps)}  # fmt: skip
    if "pack" in phases:
        found |= {"pack_peak_bytes": phases["pack"]["peak_bytes"], "pack_seconds": phases["pack"]["seconds"]}
    return found


def pace() -> float:
    """Seconds that a few products in bf16 and fp32, and a read of memory, take now."""
    import torch

    from halfbyte import kernels

    weight, other = torch.ones(2048, 2048), torch.ones(1 << 26)
    pairs = [(torch.ones(512, 2048, dtype=dtype), weight.to(dtype)) for dtype in (torch.bfloat16, torch.float32)]

    def once() -> float:
        began = time.perf_counter()
        for x, matrix in pairs:
            kernels.linear(x, matrix)
        other.max()
        return time.perf_counter() - began

    return statistics.median(once() for _ in range(21))


class Csv:
    """A CSV file that is begun anew, with machine and versions in each line."""

    def __init__(self, file: Path, *figures: str) -> None:
        self.file, self.fields = file, (*Case.__dataclass_fields__, "figure", *figures, "machine", "versions")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="", encoding="utf-8") as out:
            csv.DictWriter(out, self.fields).writeheader()

    def add(self, case: Case, figure: str, **values: float) -> None:
        cells = {name: f"{value:.6g}" for name, value in values.items()}
        with self.file.open("a", newline="", encoding="utf-8") as out:
            csv.DictWriter(out, self.fields).writerow({**asdict(case), "figure": figure, **cells, **common.about()})


Pairs = dict[str, list[tuple[float, float]]]  # of a figure: predicted, measured


def summary(pairs: Pairs) -> list[str]:
    """For each figure: how far the plan is off, in percent of what was measured; above it is positive."""
    lines = []
    for figure, found in pairs.items():
        errors = [100 * (planned / real - 1) for planned, real in found]
        sizes = [abs(error) for error in errors]
        off = f"mean error {statistics.mean(sizes):.1f} %, worst {max(sizes):.1f} %"
        lines.append(f"{figure}: {len(found)} cases, {off}, from {min(errors):+.1f} % to {max(errors):+.1f} %")
    return lines


def plot(pairs: Pairs, file: Path) -> None:
    """Predicted over measured, a point a case; the line is where they agree, the band 8 % (20 % for seconds)."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "plan"  # the same picture from the same figures
    from matplotlib import pyplot

    rows, columns = -(-len(pairs) // 3), min(3, len(pairs))
    _, axes = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 4 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(pairs) :]:
        axis.remove()
    for axis, (figure, found) in zip(axes.flat, pairs.items(), strict=False):
        unit, scale = ("s", 1.0) if figure.endswith("seconds") else ("GB", 1e9)
        planned, real = ([pair[side] / scale for pair in found] for side in (0, 1))
        least, most, band = min(real) / 1.2, max(real) * 1.2, 0.2 if unit == "s" else 0.08
        axis.fill_between([least, most], [least * (1 - band), most * (1 - band)],
                          [least * (1 + band), most * (1 + band)], alpha=0.15)  # fmt: skip
        axis.plot([least, most], [least, most], linewidth=0.8)
        axis.scatter(real, planned, s=14)
        axis.set(xscale="log", yscale="log", title=f"{figure.replace('_', ' ')}, band {100 * band:.0f} %",
                 xlabel=f"measured, {unit}", ylabel=f"planned, {unit}")  # fmt: skip
    pyplot.savefig(file, metadata={"Date": None, "Creator": None})
    pyplot.close()


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40, help="how many are drawn (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (%(default)s)")
    parser.add_argument("--items", type=int, default=ITEMS, help="of a run's data, and of its task (%(default)s)")
    parser.add_argument("--compute", choices=("bf16", "fp32"), default="bf16" if multiplies_bf16() else "fp32",
                        help="what is computed in, but with weights in fp32 (here %(default)s)")  # fmt: skip
    parser.add_argument("--tokens", type=int, help="most in a micro-batch (else by what is computed in)")
    parser.add_argument("--folder", type=Path, help="for checkpoints and runs; what is made there is removed")
    parser.add_argument("--results", type=Path, default=common.RESULTS / "plan", help="of the CSV files (%(default)s)")
    parser.add_argument("--picture", type=Path, default=common.ROOT / "docs" / "plan.svg", help="(%(default)s)")
    options = parser.parse_args(given)
    if options.items % max(SETTINGS["micro_batch"]):  # else a step would have fewer items than planned
        parser.error(f"--items must be a multiple of {max(SETTINGS['micro_batch'])}, found {options.items}")
    drawn = draw(options.cases, options.seed, options.compute, options.tokens)
    cases = sorted(drawn, key=lambda case: case.architecture)
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        compare(cases, Path(place), options.results, options.picture, options.items)


def compare(cases: list[Case], place: Path, results: Path, picture: Path, items: int = ITEMS) -> Pairs:
    """Plan all `cases`, then run them; write the CSV files and the picture."""
    models = {name: write_model(name, place / name) for name in dict.fromkeys(case.architecture for case in cases)}
    runs = {case: write_run(case, models[case.architecture], place / f"run-{number}", items)
            for number, case in enumerate(cases)}  # fmt: skip
    os.sync()  # what was just written is not yet the disk's, and would count as this program's memory
    plans = {case: predicted(run) for case, run in runs.items()}
    before = Csv(results / "predicted.csv", "predicted")
    for case, figures in plans.items():
        for figure, value in figures.items():
            before.add(case, figure, predicted=value)
    say(f"{len(cases)} cases are planned")
    after = Csv(results / "measured.csv", "predicted", "measured", "error", "pace")
    pairs: Pairs = {figure: [] for figure in FIGURES}
    at_pace: list[tuple[float, float]] = []
    now = started = pace()
    for case, run in runs.items():
        real, before_it = measured(run), now
        now = pace()
        slower = (before_it + now) / 2 / started
        shutil.rmtree(run.parent / "run")
        for figure, planned in plans[case].items():
            pairs[figure].append((planned, real[figure]))
            error = planned / real[figure] - 1
            after.add(case, figure, predicted=planned, measured=real[figure], error=error, pace=slower)
            if figure == "step_seconds":
                at_pace.append((planned * slower, real[figure]))
        words = "; ".join(f"{figure} {planned:.4g} / {real[figure]:.4g} ({100 * (planned / real[figure] - 1):+.1f} %)"
                          for figure, planned in plans[case].items())  # fmt: skip
        say(f"{case.name}: {words}; pace {slower:.2f}")
    pairs = {figure: found for figure, found in pairs.items() if found}
    for line in summary(pairs | ({"step_seconds at the machine's pace": at_pace} if at_pace else {})):
        say(line)
    plot(pairs, picture)
    return pairs


if __name__ == "__main__":
    main()
