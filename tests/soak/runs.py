"""The runs of the soak, and how two of them are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MICRO_BATCHES = 4
_LINES = 48 + 8  # to train on: six steps an epoch, each of MICRO_BATCHES; and to validate on

# Each with dropout, accumulation (batch / micro_batch micro-batches) and items of many lengths.
RUNS: dict[str, dict[str, Any]] = {
    "nf4-bf16": {"weights": "nf4", "compute": "bf16", "every": 0.0, "recompute": 0, "kernels": ""},
    "int8-fp32": {"weights": "int8", "compute": "fp32", "every": 0.1, "recompute": 1, "kernels": ""},
    "reference": {"weights": "nf4-single", "compute": "fp32", "every": 0.03, "recompute": 2, "kernels": "reference"},
}
_MEASURED = {"seconds", "tokens_per_second", "peak_bytes", "mapped_bytes"}  # of a line: they differ every time


def write_run(folder: Path, model: Path, name: str, seed: int, epochs: int, task: bool) -> Path:
    """Write the run's files into `folder`; returns RUN.yaml."""
    folder.mkdir(parents=True)
    lines = [{"prompt": f"set {i} costs $" + " now" * (i % 11), "completion": f"{i % 9}.99" + " so" * (i % 4)}
             for i in range(_LINES)]  # fmt: skip
    for part, chosen in (("train", lines[8:]), ("valid", lines[:8]), ("test", lines[:6])):
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in chosen))
    (folder / "task.yaml").write_text("kind: number\ndata: test.jsonl\ndecoding: {max_new_tokens: 3}\n")
    run = RUNS[name]
    (folder / "run.yaml").write_text(
        f"model: {model}\nweights: {run['weights']}\ncompute: {run['compute']}\nseed: {seed}\nout: out\n"
        "adapter: {rank: 4, dropout: 0.2}\ndata: {train: train.jsonl, validation: valid.jsonl}\n"
        f"tune: {{epochs: {epochs}, batch: 8, micro_batch: 2, recompute: {run['recompute']}, learning_rate: 2.0e-3, "
        f"validate_every: 0.4, checkpoint_every: {run['every']}}}\n" + "task: task.yaml\n" * task
    )
    return folder / "run.yaml"


def newest(out: Path) -> int:
    """The step of a run's newest checkpoint; 0 where there is none."""
    return max((int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*")), default=0)


def gone_on(out: Path, before: int, made: int) -> list[str]:
    """What is wrong with an attempt at the run in `out` that made so many steps: `before` is the step of the newest
    checkpoint that was there when it began, and it has to go on from there. It may have been killed before it could
    write the line of its last step."""
    found = []
    if newest(out) < before:
        found.append(f"the checkpoint of step {before} was lost: the newest is of step {newest(out)}")
    lines = (out / "metrics.jsonl").read_bytes().count(b"\n") if made else before
    if not before + max(0, made - 1) <= lines <= before + made:
        found.append(f"it made {made} steps and came to step {lines}, so it did not go on from step {before}")
    return found


def differences(one: Path, other: Path) -> list[str]:
    """What differs between the folders of two finished runs that should be the same, bit for bit."""
    found = [f"only one has {name}" for name in sorted(_files(one) ^ _files(other))]
    same = sorted(
        name
        for name in _files(one) & _files(other)
        if name.endswith((".safetensors", "predictions.jsonl", "_config.json"))
    )
    found += [f"{name} differs" for name in same if _content(one / name) != _content(other / name)]
    if _metrics(one) != _metrics(other):
        found.append("metrics.jsonl differs")
    ends = [sorted((folder / "checkpoints").iterdir())[-1] for folder in (one, other)]
    if ends[0].name != ends[1].name:
        found.append(f"the last checkpoint is {ends[0].name} and {ends[1].name}")
    if len({_content(end / "state.safetensors")[1] for end in ends}) > 1:
        found.append("the last state differs")
    return found


def _content(file: Path) -> tuple[Any, bytes]:
    """What a file holds: of safetensors the header, whose keys come in any order, and the bytes of the tensors."""
    held = file.read_bytes()
    if file.suffix != ".safetensors":
        return None, held
    end = 8 + int.from_bytes(held[:8], "little")
    return json.loads(held[8:end]), held[end:]


def _files(folder: Path) -> set[str]:
    """All files, but for the checkpoints before the last, which were written at other times."""
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    return {name for name in names if not name.startswith("checkpoints/step-")}


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in _MEASURED} for line in lines]
