"""Files for the tests of this folder: data, a task, and evaluations with made-up scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from halfbyte.evaluate.results import read_evaluation, summarise, write_evaluation
from halfbyte.evaluate.scores import exact_scores
from halfbyte.provenance import digest
from halfbyte.select.ranking import Entry


def data_file(file: Path, lines: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def task_file(folder: Path, items: int = 12, **more: str) -> Path:
    """A number task with training data beside it."""
    lines = [{"prompt": f"set {i} costs $", "completion": f"{i % 9}.99"} for i in range(items + 30)]
    data_file(folder / "train.jsonl", lines[items:])
    data_file(folder / "test.jsonl", lines[:items])
    values = {"kind": "number", "data": "test.jsonl", "train": "train.jsonl", "decoding": "{max_new_tokens: 4}"} | more
    (folder / "task.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    return folder / "task.yaml"


def entry(folder: Path, right: list[bool], memory: int | None = 10**9, **parts: Any) -> Entry:
    """A scored variant that is named as its folder."""
    parts = {"kind": "exact", "items": len(right), "data": "d", "shots": None} | parts
    lines = [
        {"id": f"i{k}", "group": None, "prompt": "p", "answer": f"a{k}", "reference": f"a{k}", "parsed": f"a{k}",
         "scores": exact_scores("x", "x" if hit else "y")}
        for k, hit in enumerate(right)
    ]  # fmt: skip
    metrics, warnings = summarise("exact", lines, 0)
    result = {"schema": 1, "task": "t", "kind": "exact", "fingerprint": digest(parts), "fingerprint_parts": parts,
              "variant": folder.name, "items": len(lines), "metrics": metrics, "warnings": warnings,
              "unanswered": 0.0, "compute": "bf16"}  # fmt: skip
    write_evaluation(folder, result, lines)
    return Entry(folder.name, folder, read_evaluation(folder).result, memory)
