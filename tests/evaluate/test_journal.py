"""What an interruption costs: a batch, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from halfbyte.config import AdapterConfig, DecodingConfig, TaskConfig, load_task
from halfbyte.errors import HalfbyteError
from halfbyte.evaluate.evaluate import evaluate_task
from halfbyte.evaluate.journal import ANSWERS, Journal, identity
from halfbyte.evaluate.results import read_evaluation
from halfbyte.model.adapter import quant_linears
from halfbyte.model.build import load_model
from tests.evaluate.models import plain_model
from tests.tiny import tiny_checkpoint

TASKS = {
    "exact": "kind: exact\ndecoding: {max_new_tokens: 6}\n",
    "choice": "kind: choice\noptions: [x0, 'x1 dollars', x2]\n",
    "loss": "kind: loss\n",
}


@pytest.fixture
def tasks(tmp_path: Path) -> dict[str, Path]:
    rows = [{"prompt": "a set of ten " * (1 + 2 * k), "completion": " x" + str(k % 3)} for k in range(18)]
    rows = [row | {"completion": " x1 dollars"} if row["completion"] == " x1" else row for row in rows]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\ndata: t.jsonl\n{text}")
    return {name: tmp_path / f"{name}.yaml" for name in TASKS}


def in_small_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Likelihoods in batches of a few items, too; returns a list that counts the forwards of the model."""
    model, forwards = plain_model(), []
    hidden = type(model).hidden
    monkeypatch.setattr(type(model), "hidden", lambda *a, **k: forwards.append(1) or hidden(*a, **k))
    for place in ("likelihood.token_budget", "likelihood.tokens_at_once", "generate.token_budget"):
        monkeypatch.setattr(f"halfbyte.evaluate.{place}", lambda model: 600)
    return forwards


def stopped(task: TaskConfig, out: Path, after: int) -> None:
    """An evaluation that ends after so many batches."""
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_task(plain_model(), task, out, variant="x", batch=4, progress=progress)


@pytest.mark.parametrize("kind", TASKS)
def test_what_is_there_is_not_asked_again_and_the_result_is_the_same(
    kind: str, tasks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards, task = in_small_batches(monkeypatch), load_task(tasks[kind])
    whole = evaluate_task(plain_model(), task, tmp_path / "whole", variant="x", batch=4)
    needed = len(forwards)
    stopped(task, tmp_path / "out", 2)
    assert not (tmp_path / "out" / "result.json").exists()
    before, there = len(forwards), len((tmp_path / "out" / ANSWERS).read_text().splitlines())
    lines = [json.loads(line) for line in (tmp_path / "out" / ANSWERS).read_text().splitlines()]
    assert all(line["seconds"] > 0 for line in lines)
    slow = [json.dumps(line | {"seconds": 1000 + line["seconds"]}) + "\n" for line in lines]
    (tmp_path / "out" / ANSWERS).write_text("".join(slow))
    said: list[str] = []
    result = evaluate_task(plain_model(), task, tmp_path / "out", variant="x", batch=4, say=said.append)
    assert said == [f"goes on: {result['resumed']} of 18 answers are there already"]
    assert 2000 < result["seconds"] < 2100 and whole["seconds"] < 1000
    assert there == 2 and before > needed and len(forwards) == 2 * needed  # each batch once
    assert 0 < result["resumed"] < 18 and whole["resumed"] == 0
    same = ("fingerprint", "metrics", "details", "items", "unanswered", "warnings")
    assert {key: result[key] for key in same} == {key: whole[key] for key in same}
    predictions = [(tmp_path / name / "predictions.jsonl").read_bytes() for name in ("whole", "out")]
    assert predictions[0] == predictions[1] and not (tmp_path / "out" / ANSWERS).exists()


def test_a_killed_process_goes_on(tasks: dict[str, Path], tmp_path: Path) -> None:
    out, task = tmp_path / "out", load_task(tasks["exact"])
    words = [sys.executable, "-m", "tests.evaluate.killed", str(tasks["exact"]), str(out), "3"]
    made = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert made.returncode == -signal.SIGKILL, made.stderr
    assert [path.name for path in out.iterdir()] == [ANSWERS]
    with (out / ANSWERS).open("a") as file:
        file.write(f'{{"key": {"[" * 100_000}\n{{"key": "torn')
    model, threads = plain_model(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = evaluate_task(model, task, out, variant="x", batch=4)
        evaluate_task(model, task, tmp_path / "whole", variant="x", batch=4)
    finally:
        torch.set_num_threads(threads)
    assert result["resumed"] == 12
    assert read_evaluation(out).predictions == read_evaluation(tmp_path / "whole").predictions


def test_the_journal_of_another_experiment_is_not_used(
    tasks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small_batches(monkeypatch)
    task, out = load_task(tasks["exact"]), tmp_path / "out"
    stopped(task, out, 3)
    other = replace(task, decoding=DecodingConfig(max_new_tokens=5, stop=task.decoding.stop))
    assert evaluate_task(plain_model(), other, out, variant="x", batch=4)["resumed"] == 0
    stopped(task, tmp_path / "more", 3)
    text = (tmp_path / "t.jsonl").read_text()
    (tmp_path / "t.jsonl").write_text(text.replace("a set", "the set", 1))
    assert evaluate_task(plain_model(), task, tmp_path / "more", variant="x", batch=4)["resumed"] == 0
    (tmp_path / "t.jsonl").write_text(text)
    stopped(task, tmp_path / "model", 3)
    found = evaluate_task(replace(plain_model(), fingerprint="x"), task, tmp_path / "model", variant="x", batch=4)
    assert found["resumed"] == 0


def test_the_model_is_known_down_to_its_adapter(folder: Path) -> None:
    source = tiny_checkpoint("llama", folder / "model")
    base = load_model(str(source), weights="fp32")
    tuned = load_model(str(source), weights="fp32", adapter=AdapterConfig(rank=2))
    first = identity(tuned)
    assert identity(base) != first and json.loads(json.dumps(first)) == first
    for layer in quant_linears(tuned.net).values():
        if layer.lora_B is not None:
            torch.nn.init.normal_(layer.lora_B)
    assert identity(tuned) != first and identity(tuned) == identity(tuned)
    os.utime(source / "model.safetensors", ns=(1, 10**18))  # written again, which the fingerprint may not see
    again = load_model(str(source), weights="fp32")
    assert again.fingerprint == base.fingerprint and identity(again) != identity(base)


def plain(value: object) -> bool:
    return isinstance(value, (str, float))


@pytest.mark.parametrize("kind", TASKS)
def test_a_line_of_another_shape_is_asked_again(
    kind: str, tasks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small_batches(monkeypatch)
    task, out = load_task(tasks[kind]), tmp_path / "out"
    whole = evaluate_task(plain_model(), task, tmp_path / "whole", variant="x", batch=4)
    for bad in (None, [None], [["x"], "end"], "ab"):
        stopped(task, out, 2)
        lines = [json.loads(line) for line in (out / ANSWERS).read_text().splitlines()]
        broken = [line | {"values": [bad] * len(line["values"])} for line in lines]
        (out / ANSWERS).write_text("".join(json.dumps(line) + "\n" for line in broken))
        result = evaluate_task(plain_model(), task, out, variant="x", batch=4)
        assert result["resumed"] == 0 and result["metrics"] == whole["metrics"]
        (out / "result.json").unlink()


def test_a_line_counts_only_whole(tmp_path: Path) -> None:
    def asked(*rows: int) -> list[Any]:
        return [Journal(tmp_path).section("a", count=3).batch([row], lambda: ["new"], plain)[0] for row in rows]

    section = Journal(tmp_path).section("a", count=3)
    for row in range(3):
        section.batch([row], partial(list, [float(row)]), plain)
    text = (tmp_path / ANSWERS).read_text()
    (tmp_path / ANSWERS).write_text(text[:-4] + "\n[]\n3\n\x00\n")
    assert asked(0, 1, 2) == [0.0, 1.0, "new"]
    assert Journal(tmp_path).section("b", count=1).batch([0], lambda: ["other"], plain) == ["other"]
    assert Journal().section("a", count=1).batch([0], lambda: ["nothing is kept"], plain) == ["nothing is kept"]
    said: list[str] = []
    section.batch([0, 1], lambda: ["cut", "otherwise"], plain)
    Journal(tmp_path, say=said.append).section("a", count=3)
    assert said == ["goes on: 3 of 3 answers are there already"]
    lines = [json.loads(line) for line in text.splitlines()]
    (tmp_path / ANSWERS).write_text("".join(json.dumps({k: line[k] for k in ("key", "rows", "values")}) + "\n"
                                            for line in lines))  # fmt: skip
    assert asked(0) == [0.0]  # as a version before wrote it
    (tmp_path / "file").write_text("")
    with pytest.raises(HalfbyteError, match="can't be"):
        Journal(tmp_path / "file").section("a", count=1).batch([0], lambda: [1], plain)
