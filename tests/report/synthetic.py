"""A run folder as the verbs leave it, with made-up figures: for tests of the report alone. Seeded; no model is run."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

MACHINE = {"processor": "A Processor", "cores": 2, "threads": 2, "memory_bytes": 24 * 10**9, "cuda": []}
VERSIONS = {"halfbyte": "0.1.0", "python": "3.11.2", "torch": "2.13.0"}
MEDIAN_PRICE = 14.99
Answer = Callable[[random.Random, float], str]


def base_answer(lot: random.Random, true: float) -> str:
    kind = lot.random()
    if kind < 0.15:
        return "and the old man said nothing"
    return f"{lot.choice((1, 2, 5, 150, 900))} - ${lot.randint(1, 900)}" if kind < 0.9 else "5000 and"


def tuned_answer(lot: random.Random, true: float) -> str:
    return f"{true * math.exp(lot.gauss(0, 0.35)):.2f}"


def write_run(folder: Path, *, items: int = 80, base: Answer = base_answer, tuned: Answer = tuned_answer) -> Path:
    """A finished run on a number task, with everything that a run can leave."""
    write_settings(folder)
    write_steps(folder)
    for variant, weights, answer in (("base-bf16", "bf16", base), ("base-nf4", "nf4", base), ("tuned", "nf4", tuned)):
        write_numbers(folder, variant, weights, answer, items)
    write_numbers(folder, "median", None, lambda lot, true: str(MEDIAN_PRICE), items)
    better = {"value": -250.0, "low": -281.5, "high": -220.25, "p": 0.0001}
    both = {"n": 60, "a_value": 280.0, "b_value": 9.0, "difference": {"value": -271.0, "low": -300.0, "high": -240.0,
            "p": 0.0001}, "wins": 55, "losses": 4, "ties": 1, "verdict": "better"}  # fmt: skip
    first = {"both_answered": both, "warnings": []} | comparison(
        "base-nf4", "tuned", "mae", better, "better", (70, 8, 2)
    )
    (folder / "comparison.json").write_text(json.dumps(first))
    (folder / "comparisons").mkdir()
    for name, against, difference, verdict in (
        ("median", "median", {"value": -9.0, "low": -11.0, "high": -7.0, "p": 0.0004}, "better"),
        ("bases", "base-bf16", {"value": 0.4, "low": -1.0, "high": 2.0, "p": 0.51}, "no detectable difference"),
    ):
        made = comparison(against, "base-nf4" if name == "bases" else "tuned", "mae", difference, verdict, (50, 28, 2))
        (folder / "comparisons" / f"{name}.json").write_text(json.dumps(made))
    return folder


def comparison(
    a: str, b: str, metric: str, difference: dict[str, float], verdict: str, counts: tuple[int, int, int]
) -> dict[str, Any]:
    wins, losses, ties = counts
    return {"a": a, "b": b, "metric": metric, "difference": difference, "wins": wins, "losses": losses, "ties": ties,
            "verdict": verdict}  # fmt: skip


def write_settings(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(
        "model: models/tiny-base\nweights: nf4\nadapter: {rank: 16, alpha: 32}\ntune: {epochs: 2, batch: 32}\nseed: 0\n"
    )
    plan = {
        "parameters": 7_475_456,
        "weights_bytes": {"fp32": 29_901_824, "bf16": 14_950_912, "int8": 8_528_128, "nf4": 5_316_864},
        "constants_bytes": {"int8": 94_208, "nf4": 101_888, "nf4_single": 401_408},
        "adapter_parameters": 630_784,
        "adapter_bytes": 2_523_136,
        "gradient_bytes": 2_523_136,
        "optimiser_bytes": 5_046_272,
        "phases": {
            "pack": {"peak_bytes": 310e6, "mapped_bytes": 15e6, "seconds": 1},
            "open": {"peak_bytes": 300e6, "mapped_bytes": 5.4e6, "seconds": 1},
            "evaluate": {"peak_bytes": 420e6, "mapped_bytes": 5.4e6, "seconds": 20},
            "tune": {
                "peak_bytes": 640e6,
                "mapped_bytes": 5.4e6,
                "seconds": 120,
                "parts": {"adapter": 2_523_136, "gradients": 2_523_136, "optimiser": 5_046_272, "activations": 280e6,
                          "logits": 40e6, "runtime": 309.9e6},
            },
        },
        "fits": True,
        "reasons": ["micro-batch 32: all of the batch fits"],
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "environment.json").write_text(json.dumps({"versions": VERSIONS, "machine": MACHINE}))


def write_steps(folder: Path, steps: int = 120) -> None:
    lot = random.Random(1)
    lines = []
    for step in range(1, steps + 1):
        line: dict[str, Any] = {
            "step": step, "epoch": step / 60, "loss": 0.9 + 2.2 * math.exp(-step / 25) + lot.gauss(0, 0.05),
            "learning_rate": 1e-3 * min(step / 6, 0.5 + 0.5 * math.cos(math.pi * step / steps)), "gradient_norm": 0.8,
            "tokens": 1400, "learned_tokens": 180, "seconds": 0.9, "tokens_per_second": 1555.0,
            "peak_bytes": 600_000_000 + step, "mapped_bytes": 5_400_000,
        }  # fmt: skip
        if step % 20 == 0:
            line["validation_loss"] = 0.98 + 2.2 * math.exp(-step / 25)
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def write_numbers(folder: Path, variant: str, weights: str | None, answer: Answer, items: int) -> None:
    lot, prices = random.Random(variant), random.Random(7)
    lines = []
    for number in range(items):
        true = round(math.exp(prices.gauss(2.9, 1.0)), 2)
        said = answer(lot, true)
        parsed = first_number(said)
        error = abs((MEDIAN_PRICE if parsed is None else parsed) - true)
        lines.append(
            {
                "id": f"{number}-1",
                "group": f"Set {number // 2}",
                "prompt": f"LEGO set Set {number // 2}. Theme: Town. {number + 5} pieces. Year: 1999. Price: $",
                "answer": said,
                "reference": str(true),
                "parsed": parsed,
                "scores": {"mae": error, "answered": float(parsed is not None), "within": float(error <= 0.2 * true)},
            }
        )
    answered = [line["scores"]["mae"] for line in lines if line["parsed"] is not None]
    metrics = {
        "mae": around(fmean(line["scores"]["mae"] for line in lines), items),
        "within": around(fmean(line["scores"]["within"] for line in lines), items),
        "mae_answered": around(fmean(answered), len(answered)) if answered else {"value": None, "n": 0},
    }
    unanswered = 1 - len(answered) / items
    write_evaluation(folder, variant, lines, metrics, "lego-price", unanswered=unanswered, weights=weights)


def write_words(folder: Path, variant: str, kind: str, right: float, items: int = 60) -> None:
    """An evaluation of a `choice`, `exact` or `loss` task in which a share `right` of the answers is right."""
    lot = random.Random(variant)
    options, lines = ["card arrival", "lost card", "exchange rate", "top up"], []
    for number in range(items):
        true = options[number % 4]
        said = true if lot.random() < right else lot.choice(options[:2])
        scores = {"accuracy" if kind == "choice" else "exact_match": float(said == true)}
        if kind == "loss":
            nats = lot.uniform(10, 30) * (1.2 - right)
            scores = {"loss": nats / 10, "bits_per_byte": nats / 40, "nats": nats, "tokens": 10.0, "bytes": 40.0}
        lines.append({
            "id": f"q{number}", "group": None, "prompt": f"Message {number}: where is it?\nIntent:", "reference": true,
            "answer": "" if kind == "loss" else said, "parsed": None if kind == "loss" else said, "scores": scores,
        })  # fmt: skip
    names = {"choice": ["accuracy", "macro_f1"], "exact": ["exact_match"], "loss": ["loss", "perplexity"]}[kind]
    column = {"choice": "accuracy", "exact": "exact_match", "loss": "loss"}[kind]
    metrics = {name: around(fmean(line["scores"][column] for line in lines), items) for name in names}
    weights = "nf4"
    write_evaluation(folder, variant, lines, metrics, f"bank-{kind}", unanswered=0.0, weights=weights)


def write_evaluation(
    folder: Path,
    variant: str,
    lines: list[dict[str, Any]],
    metrics: dict[str, Any],
    task: str,
    *,
    unanswered: float,
    weights: str | None,
) -> None:
    place = folder / "evaluations" / variant
    place.mkdir(parents=True)
    (place / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {
        "schema": 1, "task": task, "fingerprint": "f00d", "variant": variant, "model": "models/tiny-base",
        "weights": weights, "adapter": "adapter" if variant == "tuned" else None, "items": len(lines),
        "unanswered": unanswered, "metrics": metrics, "seconds": 12.5,
        "fallback": MEDIAN_PRICE if task == "lego-price" else None, "warnings": [], "tokens_per_second": 220.0,
        "peak_bytes": None if variant == "median" else 410_000_000, "mapped_bytes": 5_400_000, "versions": VERSIONS,
        "machine": MACHINE, "seed": 0,
    }  # fmt: skip
    (place / "result.json").write_text(json.dumps(result))


def around(value: float, n: int) -> dict[str, float]:
    return {"value": value, "low": 0.88 * value, "high": 1.13 * value, "n": n}


def first_number(text: str) -> float | None:
    word = text.replace(",", "").split(" ")[0]
    try:
        return float(word)
    except ValueError:
        return None
