"""SIGTERM in every phase of a run: exit code 130, nothing half written that counts, and it goes on."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halfbyte.cli import main
from tests.tiny import tiny_checkpoint

PHASES = {  # what runs in each, and is interrupted there
    "packing": ("halfbyte.checkpoint.pack", "_write_config"),
    "opening": ("halfbyte.model.build", "load_state"),
    "the base's evaluation": ("halfbyte.evaluate.generate", "_decode_batch"),
    "training": ("halfbyte.tune.loop", "batch_loss"),
    "the tuned model's evaluation": ("halfbyte.evaluate.generate", "_decode_batch"),
}


def write_run(folder: Path, **changes: str | None) -> Path:
    """A folder with a model, data, a task and a run.yaml, whose lines may be changed, or left out (None)."""
    tiny_checkpoint("llama", folder / "tiny")
    lines = [{"prompt": f"set {i} costs $", "completion": f"{i % 9}.99"} for i in range(24)]
    for name, part in (("train", lines[:20]), ("test", lines[20:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
    (folder / "task.yaml").write_text("kind: number\ndata: test.jsonl\ndecoding: {max_new_tokens: 3}\n")
    keys = {"model": "tiny", "compute": "fp32", "data": "{train: train.jsonl}", "out": "out",
            "task": "task.yaml", "tune": "{max_steps: 3, batch: 4, micro_batch: 2, checkpoint_every: 0}"}  # fmt: skip
    (folder / "run.yaml").write_text(
        "".join(f"{key}: {value}\n" for key, value in (keys | changes).items() if value is not None)
    )
    return folder / "run.yaml"


def signalled(original: Callable[..., Any], call: int, number: signal.Signals = signal.SIGTERM) -> Callable[..., Any]:
    """`original`, which is preceded by a signal at its so many-th call."""
    calls = 0

    def wrapped(*values: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return original(*values, **named)

    return wrapped


def tune(run_yaml: Path) -> int:
    there = (run_yaml.parent / "out" / "measured.json").exists()
    return main(["tune", str(run_yaml), "--debug", *["--resume"] * there])


def test_sigterm_in_every_phase(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, out = folder / "cache", folder / "out"
    monkeypatch.setenv("HALFBYTE_CACHE", str(cache))
    run_yaml = write_run(folder)
    for phase, (module, name) in PHASES.items():
        with monkeypatch.context() as patched:
            original = getattr(importlib.import_module(module), name)
            patched.setattr(f"{module}.{name}", signalled(original, 3 if phase == "training" else 1))
            assert tune(run_yaml) == 130, phase
        last = capsys.readouterr().out.rstrip().rpartition("\n")[2]
        assert phase != "training" or last == f"go on with: halfbyte tune {out / 'run.yaml'} --resume"
        found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        assert not [file for file in found if "part" in file], phase
        assert any(file.startswith("cache/") for file in found) == (phase != "packing")
        assert any("base-nf4/result.json" in file for file in found) == (phase.startswith(("training", "the tuned")))
        steps = {"training": 1, "the tuned model's evaluation": 3}.get(phase)
        assert steps is None or (out / "checkpoints" / f"step-{steps:06d}").is_dir()
        assert not (out / "evaluations" / "tuned" / "result.json").exists()
    assert tune(run_yaml) == 0 and (out / "report.html").is_file()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
@pytest.mark.parametrize("phase", ["opening", "training", "ignored"])
def test_a_closed_terminal_stops_a_run_as_sigterm_does(
    phase: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgotten(*_: object) -> None:
        raise AssertionError("nobody takes it")

    run_yaml = write_run(folder, task=None, tune="{max_steps: 3, batch: 4, micro_batch: 2}")
    module, name = PHASES["opening" if phase == "opening" else "training"]
    original = getattr(importlib.import_module(module), name)
    monkeypatch.setattr(f"{module}.{name}", signalled(original, 1 if phase == "opening" else 3, signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if phase == "ignored" else forgotten)
    try:
        assert tune(run_yaml) == (0 if phase == "ignored" else 130)
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if phase == "ignored" else forgotten)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (folder / "out" / "checkpoints" / "step-000001").is_dir() == (phase == "training")


def test_only_one_process_trains_in_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_yaml, out = write_run(folder, task=None), folder / "out"
    original, others = importlib.import_module("halfbyte.tune.loop").batch_loss, []

    def met(*values: Any) -> Any:
        if (out / "metrics.jsonl").read_bytes() and not others:  # after the first step
            (out / ".mine.part").touch()
            command = [sys.executable, "-m", "halfbyte", "tune", str(run_yaml), "--resume"]
            others.append(subprocess.run(command, capture_output=True, text=True))
            assert (out / ".mine.part").exists()
        return original(*values)

    monkeypatch.setattr("halfbyte.tune.loop.batch_loss", met)
    assert tune(run_yaml) == 0
    assert others[0].returncode == 2 and "another process trains in this folder" in others[0].stderr, others[0].stderr
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_run_that_was_begun_while_the_model_was_opened_is_not_written_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_yaml = write_run(folder, task=None)
    original = importlib.import_module("halfbyte.experiment")._open

    def slow(*values: Any) -> Any:
        monkeypatch.setattr("halfbyte.experiment._open", original)
        assert tune(run_yaml) == 0
        return original(*values)

    monkeypatch.setattr("halfbyte.experiment._open", slow)
    assert tune(run_yaml) == 2 and "holds a run already" in capsys.readouterr().err
    assert len((folder / "out" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("both", [False, True], ids=["stdout", "stdout and stderr"])
def test_an_output_that_nobody_reads_stops_the_run_with_a_checkpoint(both: bool, folder: Path) -> None:
    run_yaml = write_run(folder, task=None, tune="{epochs: 400, batch: 4, micro_batch: 2}")
    command, said = [sys.executable, "-m", "halfbyte", "tune", str(run_yaml)], subprocess.STDOUT if both else -1
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as child:
        assert child.stdout is not None and any("step 1/" in line for line in child.stdout)
        child.stdout.close()
        assert child.wait() == 130
        last = "" if both else child.stderr.read()  # type: ignore[union-attr]
    (saved, *_) = sorted((folder / "out" / "checkpoints").iterdir(), reverse=True)
    steps = len((folder / "out" / "metrics.jsonl").read_text().splitlines())
    assert 1 < steps < 2000 and saved.name == f"step-{steps:06d}"
    if not both:
        assert "the output can't be written (the pipe is closed): stopping" in last
        assert f"stopped after step {steps} of" in last and "Traceback" not in last
        assert last.splitlines()[-1] == f"go on with: halfbyte tune {folder / 'out' / 'run.yaml'} --resume"


def test_an_output_that_can_not_be_written_stops_an_evaluation(folder: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("Linux's file on a disk that is always full is not here")
    write_run(folder)
    command = [sys.executable, "-m", "halfbyte", "evaluate", str(folder / "tiny"), "--task", str(folder / "task.yaml")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*command, "--out", str(folder / "e")], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 130 and "(No space left on device): stopping" in done.stderr, done.stderr
    assert "what was finished is kept" in done.stderr and "Traceback" not in done.stderr
