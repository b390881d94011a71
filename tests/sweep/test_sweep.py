"""`halfbyte sweep` on a tiny model: what it leaves, what it refuses, and that a killed trial goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from halfbyte.cli import main
from tests.test_cli import task_files
from tests.tiny import tiny_checkpoint

SPACE = "tune.learning_rate: {low: 1e-3, high: 1e-1, log: true}\nadapter.targets: [all, attention]\n"
TUNE = "{epochs: 2, batch: 4, validate_every: 0.5, learning_rate: 0.01}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("model") / "tiny")


def sweep_files(folder: Path, model: Path, space: str = SPACE, **lines: str) -> list[str]:
    run = task_files(folder, model, **{"data": "{train: train.jsonl, validation: 0.3}", "tune": TUNE} | lines)
    (folder / "space.yaml").write_text(space)
    return ["sweep", str(run), str(folder / "space.yaml")]


def found_in(folder: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((folder / "sweep.json").read_text())  # type: ignore[no-any-return]


def test_a_sweep_from_end_to_end(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = sweep_files(folder, model)
    assert main([*command, "--trials", "2"]) == 0
    said, out = capsys.readouterr().out, folder / "out-sweep"
    found = found_in(out)
    best = found["best"]["number"]
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 2 and found["finished"]
    assert found["trials"][0]["values"] == {"tune.learning_rate": 0.01, "adapter.targets": "all"} and found["own"]
    assert f"best of 2: trial {best}" in said and "best so far: trial" in said
    assert found["best"]["validation_loss"] == min(trial["validation_loss"] for trial in found["trials"])
    assert (out / "sweep.html").is_file() and "What mattered" in (out / "sweep.html").read_text()

    test = found["test"]
    assert (test["trial"], test["used_for_choosing"], test["scored"]) == (best, False, [best])
    assert "looked at once" in test["note"] and test["note"] in " ".join(said.split("\n"))
    assert test["comparison"]["b"] == "tuned" and "mae" in test["metrics"]
    for trial in (0, 1):  # the test set was looked at for the winner alone
        assert (out / "trials" / f"{trial:04}" / "evaluations").exists() == (trial == best)
    assert main(["report", str(out / "trials" / "0000")]) == 0
    assert main(["plan", "--check", str(out / "trials" / f"{1 - best:04}")]) == 0

    written = (out / "trials" / f"{best:04}" / "evaluations" / "tuned" / "result.json").stat().st_mtime_ns
    assert main([*command, "--trials", "2"]) == 0  # nothing is left to do, and nothing is done again
    assert found_in(out)["test"]["scored"] == [best]
    assert (out / "trials" / f"{best:04}" / "evaluations" / "tuned" / "result.json").stat().st_mtime_ns == written
    capsys.readouterr()
    assert main([*command, "--trials", "2", "--set", "tune.batch=2"]) == 2
    assert "tune.batch: 4 -> 2" in capsys.readouterr().err


def test_a_killed_trial_goes_on_where_it_was(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = sweep_files(folder, model, tune=TUNE.replace("epochs: 2", "checkpoint_every: 0, epochs: 8"), task="null")
    metrics, checkpoints = (
        folder / "out-sweep" / "trials" / "0000" / name for name in ("metrics.jsonl", "checkpoints")
    )
    process = subprocess.Popen([sys.executable, "-m", "halfbyte", *command, "--trials", "1"], env=dict(os.environ),
                               stdout=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline and not list(checkpoints.glob("step-*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    steps = len(metrics.read_text().splitlines())
    assert main([*command, "--trials", "1"]) == 0
    said = capsys.readouterr().out
    assert "trial 0 goes on" in said and "names no task" in said
    assert "going on from step-" in (folder / "out-sweep" / "logs" / "0000.txt").read_text()
    done = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert done == list(range(1, len(done) + 1)) and len(done) > steps
    assert [trial["state"] for trial in found_in(folder / "out-sweep")["trials"]] == ["complete"]


def test_ctrl_c_ends_with_130_and_loses_nothing(model: Path, folder: Path) -> None:
    command = sweep_files(folder, model, tune=TUNE.replace("epochs: 2", "epochs: 900"), task="null")
    process = subprocess.Popen([sys.executable, "-m", "halfbyte", *command, "--trials", "1"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    metrics, deadline = folder / "out-sweep" / "trials" / "0000" / "metrics.jsonl", time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, faults = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in faults
    assert "interrupted; the same command goes on" in said
    found = found_in(folder / "out-sweep")
    assert [trial["state"] for trial in found["trials"]] == ["interrupted"] and not found["finished"]
    assert found["trials"][0]["curve"] is not None and found["test"] is None
    assert "has not ended: 0 of 1" in (folder / "out-sweep" / "sweep.html").read_text()
    assert not list((folder / "out-sweep").glob("*.part")) and not list((folder / "out-sweep").glob(".*"))


def test_a_sweep_ends_when_its_time_is_over_and_goes_on_next_time(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = sweep_files(folder, model, tune=TUNE.replace("epochs: 2", "epochs: 900"))
    metrics = folder / "out-sweep" / "trials" / "0000" / "metrics.jsonl"
    steps = []
    for word in ("begins", "goes on"):
        assert main([*command, "--trials", "1", "--timeout", "1.5s"]) == 0
        said, found = " ".join(capsys.readouterr().out.split()), found_in(folder / "out-sweep")
        assert f"trial 0 {word}" in said and "The time is over before all trials are done" in said
        assert [trial["state"] for trial in found["trials"]] == ["interrupted"]
        assert found["test"] is None and found["best"] is None and not found["finished"]
        steps.append(len(metrics.read_text().splitlines()))
    assert 0 < steps[0] < steps[1]
    assert not (folder / "out-sweep" / "trials" / "0000" / "evaluations").exists()  # the test set was not looked at


def test_scoring_the_winner_is_said_and_can_be_interrupted(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from halfbyte import experiment

    command, tune = sweep_files(folder, model), experiment.tune

    def interrupted(config: Any, **options: Any) -> int:
        return 130 if config.task else tune(config, **options)

    monkeypatch.setattr(experiment, "tune", interrupted)
    assert main([*command, "--trials", "1"]) == 130
    said = " ".join(capsys.readouterr().out.split())
    log = folder / "out-sweep" / "logs" / "0000.txt"
    assert f"scoring the winner, trial 0, on the test set, beside the base: {log} says how far it is" in said
    assert "Scoring the winner on the test set was interrupted" in said and "the same command goes on" in said
    monkeypatch.setattr(experiment, "tune", tune)
    assert main([*command, "--trials", "1"]) == 0 and found_in(folder / "out-sweep")["test"]["scored"] == [0]
    assert "scoring the winner" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--trials", "1"]) == 0
    assert "scoring the winner" not in capsys.readouterr().out  # it is known


def test_a_study_looks_at_one_test_set(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*sweep_files(folder, model), "--trials", "1"]
    assert main(command) == 0
    scored = found_in(folder / "out-sweep")["test"]
    test = folder / "test.jsonl"
    first, *rest = test.read_text().splitlines(keepends=True)
    test.write_text("".join(rest))
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the winner was scored on another task") and "Traceback" not in error
    assert f"items: {len(rest) + 1} against {len(rest)}" in error and "--out FOLDER" in error
    assert found_in(folder / "out-sweep")["test"] == scored
    test.write_text("".join([first, *rest]))
    assert main(command) == 0 and found_in(folder / "out-sweep")["test"] == scored
    assert main([*command, "--out", str(folder / "other")]) == 0


@pytest.mark.parametrize(
    ("lines", "space", "more", "said"),
    [
        ({}, "tune.lerning_rate: [1, 2]\n", [], "did you mean 'learning_rate'?"),
        ({}, "adapter.targets: [all, [w1]]\n", [], "q_proj"),
        ({"data": "{train: train.jsonl, validation: 0}"}, SPACE, [], "nothing is held out"),
        ({"data": "{train: none.jsonl}"}, SPACE, [], "none.jsonl"),
        ({"task": "none.yaml"}, SPACE, [], "none.yaml"),
        ({}, SPACE, ["--trials", "0"], "at least 1"),
        ({}, SPACE, ["--timeout", "soon"], "30m"),
        ({}, SPACE, ["--storage", "mysql://u:p@h/d"], "PostgreSQL or SQLite"),
        ({}, SPACE, ["--storage", "postgresql://u:p@h:port/d"], "a port that is no number"),
    ],
)
def test_a_mistake_is_found_before_the_first_trial(
    model: Path, folder: Path, lines: dict[str, str], space: str, more: list[str], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main([*sweep_files(folder, model, space, **lines), *more]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and "Traceback" not in error
    assert not (folder / "out-sweep" / "trials").exists()
