"""A run measures itself: every phase, every part, through interruptions, and nothing of another run."""

from __future__ import annotations

import json
import os
import signal
import zlib
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from halfbyte.cli import main
from halfbyte.ledger import Ledger
from halfbyte.memory import MemoryMeter
from halfbyte.report.page import report
from halfbyte.tune import loop
from tests.test_cli import task_files
from tests.tiny import tiny_checkpoint

PHASES = ["pack", "open", "evaluate_before", "tune", "evaluate_after"]
EXACT = {"weights", "constants", "adapter", "gradients", "optimiser"}


@pytest.fixture
def model(folder: Path, request: pytest.FixtureRequest) -> Path:
    """A checkpoint that no test has packed yet: of its own seed."""
    return tiny_checkpoint("llama", folder / "tiny", seed=zlib.crc32(request.node.nodeid.encode()))


def measured(out: Path) -> dict[str, Any]:
    return json.loads((out / "measured.json").read_text())  # type: ignore[no-any-return]


def killed_before_training(run_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from halfbyte.tune import run

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "run_training", killed)
        assert main(["tune", str(run_yaml)]) == 130


def checked(out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["plan", "--check", str(out), "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_every_phase_and_every_part(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(task_files(folder, model))]) == 0
    said = capsys.readouterr().out
    assert "Planned and measured" in said and "evaluate before" in said and "exact, in bytes" in said
    found = measured(folder / "out")
    assert found["finished"] and list(found["phases"]) == PHASES and set(found["exact"]) == EXACT
    for phase in found["phases"].values():
        assert phase["seconds"] > 0 and sum(phase["parts"].values()) == phase["peak_bytes"] > 0
    assert set(found["phases"]["tune"]["parts"]) == {"adapter", "gradients", "optimiser", "rest"}
    check = checked(folder / "out", capsys)
    assert {part: one["difference_bytes"] for part, one in check["exact"].items()} == dict.fromkeys(EXACT, 0)
    assert all(phase["planned"]["peak_bytes"] for phase in check["phases"].values())
    settings = json.loads((folder / "out" / "plan.json").read_text())["settings"]
    assert settings["evaluation_batch"] == 10  # all items of the task, not what a plan without a task supposes
    page = (folder / "out" / "report.html").read_text()
    assert "Counted to the byte" in page and ", as planned" in page and "evaluate before" in page


def test_what_was_done_earlier_keeps_its_figures(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_yaml = task_files(folder, model)
    assert main(["tune", str(run_yaml)]) == 0
    before = measured(folder / "out")
    capsys.readouterr()
    assert main(["tune", str(run_yaml), "--resume"]) == 0  # finished: it is opened, and nothing else is done
    assert "nothing was left to train: 2 steps in" in capsys.readouterr().out
    after = measured(folder / "out")
    assert after["exact"] == before["exact"] and after["finished"]
    for name in PHASES:
        assert (after["phases"][name] == before["phases"][name]) == (name != "open")


def test_gradients_are_known_of_a_run_that_was_killed_after_its_last_step(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its training was written into the ledger: the last checkpoint has the figure."""
    run_yaml = task_files(folder, model)
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "trained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["tune", str(run_yaml)]) == 130
    assert "gradients" not in measured(folder / "out")["exact"]
    assert main(["tune", str(run_yaml), "--resume"]) == 0
    found = measured(folder / "out")
    assert found["exact"]["gradients"] == found["exact"]["adapter"] and "gradients" in found["phases"]["tune"]["parts"]


def test_an_interrupted_run_says_what_it_has(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_yaml = task_files(folder, model, tune="{max_steps: 4, batch: 4, micro_batch: 4}")
    interrupt(run_yaml, 3, monkeypatch)
    assert "not measured yet: evaluate after" in " ".join(capsys.readouterr().out.split())
    first = measured(folder / "out")
    assert not first["finished"] and list(first["phases"]) == PHASES[:-1]
    check = checked(folder / "out", capsys)
    assert {part: one["difference_bytes"] for part, one in check["exact"].items()} == dict.fromkeys(EXACT, 0)
    assert "gradients" in first["phases"]["tune"]["parts"]
    assert "The run is unfinished: it has made 2 steps" in report(folder / "out").read_text()
    assert check["phases"]["evaluate_after"]["measured"] is None
    assert main(["tune", str(run_yaml), "--resume"]) == 0
    second = measured(folder / "out")
    assert "4 steps in" in (said := capsys.readouterr().out) and "2 of them in earlier sessions" in said
    assert "The run is unfinished" not in (folder / "out" / "report.html").read_text()
    assert second["finished"] and list(second["phases"]) == PHASES
    assert second["phases"]["pack"] == first["phases"]["pack"]
    assert second["phases"]["evaluate_before"] == first["phases"]["evaluate_before"]
    assert second["phases"]["tune"]["seconds"] > first["phases"]["tune"]["seconds"]
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    assert second["phases"]["tune"]["peak_bytes"] >= max(line["peak_bytes"] for line in lines)


def test_killed_before_training_it_can_be_started_again(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_yaml = task_files(folder, model)
    killed_before_training(run_yaml, monkeypatch)
    first = measured(folder / "out")
    assert list(first["phases"]) == PHASES[:3] and not first["finished"]
    (folder / "out" / "measured.json.part").write_text("{")  # killed while it wrote
    assert main(["tune", str(run_yaml)]) == 0
    second = measured(folder / "out")
    assert list(second["phases"]) == PHASES
    assert second["phases"]["pack"] == first["phases"]["pack"]  # the packed copy was there
    assert not (folder / "out" / "measured.json.part").exists()


def test_figures_of_another_run_are_dropped(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_yaml = task_files(folder, model)
    assert main(["tune", str(run_yaml)]) == 0
    found = measured(folder / "out")
    found["run"]["device"] = "cuda"
    found["phases"]["pack"]["seconds"] = 12345.0
    (folder / "out" / "measured.json").write_text(json.dumps(found))
    for name in ("base-nf4", "tuned"):
        made_on_a_card(folder / "out" / "evaluations" / name / "result.json")
    made_on_a_card(folder / "out" / "metrics.jsonl")
    assert main(["tune", str(run_yaml), "--resume"]) == 0
    assert list(measured(folder / "out")["phases"]) == ["open"]  # all else was done elsewhere
    (folder / "out" / "measured.json").write_text("{")
    capsys.readouterr()
    assert main(["tune", str(run_yaml), "--resume"]) == 0
    assert "it is begun anew" in capsys.readouterr().out
    assert measured(folder / "out")["finished"]


def made_on_a_card(file: Path) -> None:
    """Let the last line, or the only object, of `file` say that it is of a card."""
    *lines, last = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    assert json.loads(last)["device"] == "cpu"
    lines = [json.dumps(json.loads(line) | {"device": "cuda:0", "cuda_peak_bytes": 10**12}) for line in [*lines, last]]
    file.write_text("\n".join(lines) + "\n")


def interrupt(run_yaml: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the run and stop it by a signal at its forward pass number `at`."""
    calls, original = 0, loop.batch_loss

    def interrupting(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "batch_loss", interrupting)
        assert main(["tune", str(run_yaml)]) == 130


def test_a_run_that_moved_has_the_peak_of_where_it_is(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_yaml = task_files(folder, model, tune="{max_steps: 4, batch: 4, micro_batch: 2}")
    interrupt(run_yaml, 4, monkeypatch)
    made_on_a_card(folder / "out" / "metrics.jsonl")
    assert main(["tune", str(run_yaml), "--resume"]) == 0
    tune = measured(folder / "out")["phases"]["tune"]
    assert "cuda_peak_bytes" not in tune and 0 < tune["peak_bytes"] < 10**12
    assert tune["seconds"] is None  # that of no device


def test_of_a_card_only_what_computes_there_counts(folder: Path) -> None:
    ledger = Ledger(folder, Console())
    ledger.note("pack", 600, 1, 0, 3.0)
    ledger.note("open", 600, 1, 400, 3.0)
    assert ledger.phases["pack"]["parts"] == {"rest": 600} and "cuda_peak_bytes" not in ledger.phases["pack"]
    assert ledger.phases["open"]["parts"] == {"rest": 400} and ledger.phases["open"]["cuda_peak_bytes"] == 400
    ledger.run["device"] = "cpu"
    ledger.note("tune", 600, 1, 400, 3.0)
    assert ledger.phases["tune"]["parts"] == {"rest": 600} and "cuda_peak_bytes" not in ledger.phases["tune"]


def test_a_run_on_the_processor_is_not_charged_for_a_card_that_is_awake(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryMeter, "cuda_peak_bytes", 10**12)
    assert main(["tune", str(task_files(folder, model))]) == 0
    for phase in measured(folder / "out")["phases"].values():
        assert "cuda_peak_bytes" not in phase and sum(phase["parts"].values()) == phase["peak_bytes"]


def test_a_ledger_that_can_not_be_kept_does_not_end_the_run(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_yaml = task_files(folder, model)
    assert main(["tune", str(run_yaml)]) == 0
    (folder / "out" / "measured.json").unlink()
    (folder / "out" / "measured.json").mkdir()
    capsys.readouterr()
    assert main(["tune", str(run_yaml), "--resume"]) == 0
    said = capsys.readouterr().out
    assert said.count("measured.json can't be written, the run goes on without") == 1 and "Planned and measured" in said


def test_a_device_that_is_not_here_is_found_before_anything_is_packed(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from halfbyte.checkpoint import pack

    monkeypatch.setattr(pack, "pack", lambda *_, **__: pytest.fail("the model was packed"))
    assert main(["tune", str(task_files(folder, model, device="cuda:99")), "--force"]) == 2
    assert "device" in capsys.readouterr().err


def test_without_a_task_there_are_no_evaluations(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_yaml = task_files(folder, model)
    assert main(["tune", str(run_yaml)]) == 0
    run_yaml.write_text(run_yaml.read_text().replace("task: task.yaml\n", ""))
    assert main(["tune", str(run_yaml), "--resume"]) == 0
    assert list(measured(folder / "out")["phases"]) == ["pack", "open", "tune"]
    assert list(checked(folder / "out", capsys)["phases"]) == ["pack", "open", "tune"]


def test_phases_that_the_run_does_not_have_are_not_awaited(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_yaml = task_files(folder, model, weights="bf16", tune="{max_steps: 4, batch: 4, micro_batch: 4}")
    run_yaml.write_text(run_yaml.read_text().replace("task: task.yaml\n", ""))
    interrupt(run_yaml, 3, monkeypatch)
    assert "not measured" not in capsys.readouterr().out
    assert measured(folder / "out")["has"] == ["open", "tune"]
    assert list(checked(folder / "out", capsys)["phases"]) == ["open", "tune"]


def test_a_broken_measurement_is_a_note_on_the_page(model: Path, folder: Path) -> None:
    assert main(["tune", str(task_files(folder, model))]) == 0
    (folder / "out" / "measured.json").write_text('{"schema": 1, "phases": {"<b>x": {}}, "exact": {}}')
    page = report(folder / "out").read_text()
    assert "measured.json can&#39;t be read" in page and "<b>x" not in page and "&lt;b&gt;x" in page


def test_what_no_run_left_is_not_written_over(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_yaml, out = task_files(folder, model, task="out/task.yaml"), folder / "out"
    out.mkdir()
    mine = "# my notes\nkind: number\ndata: ../test.jsonl\ndecoding: {max_new_tokens: 4}\n"
    (out / "task.yaml").write_text(mine)
    for name, said in (("out/task.yaml", "its own copy of the task"), ("task.yaml", "holds something else")):
        assert main(["tune", str(run_yaml), "--set", f"task={folder / name}"]) == 2
        assert said in capsys.readouterr().err and (out / "task.yaml").read_text() == mine
    (out / "task.yaml").unlink()
    (out / "measured.json").write_text('{"of": "another tool"}')
    assert main(["tune", str(run_yaml), "--set", f"task={folder / 'task.yaml'}"]) == 2
    assert "found: measured.json" in capsys.readouterr().err


def test_the_copy_of_the_task_is_the_runs_own(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed early, and a resume, may name it."""
    run_yaml, out = task_files(folder, model), folder / "out"
    killed_before_training(run_yaml, monkeypatch)
    copy = (out / "task.yaml").read_text()
    own = ["--set", f"task={out / 'task.yaml'}"]
    assert main(["tune", str(run_yaml), *own]) == 0 and main(["tune", str(run_yaml), *own, "--resume"]) == 0
    (out / "task.yaml").write_text(f"# noted\n{copy}")
    assert main(["tune", str(run_yaml), *own, "--resume"]) == 0
    assert (out / "task.yaml").read_text() == f"# noted\n{copy}"
