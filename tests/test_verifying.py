"""`halfbyte verify`: what it agrees with, and that it finds each thing that was changed afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halfbyte.cli import main
from halfbyte.config import RunConfig
from halfbyte.option_files import read_yaml, to_dict
from halfbyte.options import build
from halfbyte.provenance import digest
from tests.test_cli import task_files
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its data and a finished run in `out`."""
    folder = tmp_path_factory.mktemp("made")
    model = tiny_checkpoint("llama", folder / "model")
    assert main(["tune", str(task_files(folder, model))]) == 0
    return folder


def states(target: Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    assert main(["verify", str(target), "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["agrees"] == (code == 0) and told["kind"] in ("run", "evaluation")
    return {row["what"]: row for row in told["findings"]}


def test_a_run_that_nobody_touched_agrees(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = states(made / "out", capsys)
    assert {row["state"] for row in rows.values()} <= {"ok", "can't be checked"}
    sure = ["run.yaml: every option", "configuration", "seed", "model", "tokenizer", "training items, token by token",
            "adapter/adapter_model.safetensors", "adapter: its base model", "metrics.jsonl", "comparison.json",
            "last step: checkpoint, metrics.jsonl", "best validation loss", "comparisons/median-tuned.json", "versions",
            "machine", f"data file {made / 'train.jsonl'}"]  # fmt: skip
    sure += [f"evaluations/{name}: {what}" for name in ("base-nf4", "tuned") for what in (
        "fingerprint of its parts", "experiment: items, prompts, decoding", "scores of the answers", "metric mae",
        "details", "model", "tokenizer")]  # fmt: skip
    sure += ["checkpoints/step-000002: SHA256SUMS", "evaluations/tuned: adapter", "evaluations/median: metric mae"]
    assert [what for what in sure if rows[what]["state"] != "ok"] == []
    doubtful = {what for what, row in rows.items() if row["state"] != "ok"}
    assert {what.rpartition(": ")[2] for what in doubtful} <= {"scores of the answers", "git"}


def test_an_evaluation_alone_agrees(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = states(made / "out" / "evaluations" / "tuned", capsys)
    assert rows["adapter"]["state"] == "ok" and rows["metric mae"]["state"] == "ok"
    assert main(["verify", str(made / "out" / "evaluations" / "tuned")]) == 0
    assert f"tuned: {len(rows)} of {len(rows)} agree" in capsys.readouterr().out


def test_what_agrees_is_counted_and_only_the_rest_is_told(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = shutil.copytree(made / "out", tmp_path / "out")
    rows = states(run, capsys)
    agree = sum(row["state"] == "ok" for row in rows.values())
    assert main(["verify", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"{agree} of {len(rows)} agree; " in " ".join(said.split()) and "\nok: " not in f"\n{said}"
    assert main(["verify", str(run), "--all"]) == 0
    every = capsys.readouterr().out
    assert f"\n{every}".count("\nok: ") == agree
    for what in ("low", "high"):  # of figures, nothing is cut or broken
        assert str(json.loads((run / "evaluations/tuned/result.json").read_text())["metrics"]["mae"][what]) in every
    _metric(run)
    assert main(["verify", str(run)]) == 4
    said = " ".join(capsys.readouterr().out.split())
    assert "differs: evaluations/tuned: metric mae: recorded " in said and "agree; differs: 1; " in said


def _metric(run: Path) -> None:
    file = run / "evaluations" / "tuned" / "result.json"
    result = json.loads(file.read_text())
    result["metrics"]["mae"]["low"] += 1e-9
    file.write_text(json.dumps(result))


def _unanswered(run: Path) -> None:
    file = run / "evaluations" / "tuned" / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"unanswered": 0.125}))


def _answer(run: Path) -> None:
    file = run / "evaluations" / "tuned" / "predictions.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["answer"] = "123456"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _bytes(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        file = run / name
        file.write_bytes(file.read_bytes()[:-1] + b" ")

    return change


def _text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new, 1))

    return change


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a metric's interval": (_metric, "evaluations/tuned: metric mae"),
    "the share without an answer": (_unanswered, "evaluations/tuned: unanswered"),
    "an answer": (_answer, "evaluations/tuned: scores of the answers"),
    "an option": (_text("run.yaml", "learning_rate: 0.0002", "learning_rate: 0.0003"), "configuration"),
    "an option that is gone": (_text("run.yaml", "  clip: 1.0\n", ""), "run.yaml: every option"),
    "run.yaml that is none": (_text("run.yaml", "model:", "model: ]"), "run.yaml"),
    "the adapter": (_bytes("adapter/adapter_model.safetensors"), "adapter/adapter_model.safetensors"),
    "a step": (_text("metrics.jsonl", '"step": 2', '"step": 3'), "metrics.jsonl"),
    "an infinite step": (_text("metrics.jsonl", '"step": 2', '"step": Infinity'), "metrics.jsonl"),
    "a loss beyond a float": (_text("metrics.jsonl", '"loss": ', f'"loss": {10**400}, "was": '), "metrics.jsonl"),
    "a line without end": (_text("metrics.jsonl", '"step": 2', '"step": ' + "[" * 100_000), "metrics.jsonl"),
    "a checkpoint": (_bytes("checkpoints/step-000002/state.safetensors"), "checkpoints/step-000002"),
    "the verdict": (_text("comparison.json", '"verdict": "', '"verdict": "surely '), "comparison.json: verdict"),
    "the fingerprint": (
        _text("evaluations/base-nf4/result.json", '"items": 10', '"items": 11'),
        "evaluations/base-nf4: fingerprint of its parts",
    ),
    "the recorded model": (_text("environment.json", '"model": "', '"model": "0'), "model"),
    "its own record": (_text("environment.json", "{", "["), "environment.json"),
    "the training data": (_text("../train.jsonl", "set 0", "set 77"), "data file {folder}/train.jsonl"),
    "the tokenizer": (_text("../model/tokenizer.json", "{", "{ "), "tokenizer"),
    "the configuration of the model": (_text("../model/config.json", "{", "{ "), "model"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_found(
    change: str, made: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made, folder, dirs_exist_ok=True)
    for file in (folder / "out").rglob("*"):
        if file.suffix in (".json", ".yaml"):
            file.write_text(file.read_text().replace(str(made), str(folder)))
    record = json.loads((folder / "out" / "environment.json").read_text())
    record["fingerprints"]["configuration"] = None  # its paths are others now
    if change.startswith("an option"):
        config = build(RunConfig, read_yaml(folder / "out" / "run.yaml"), "run.yaml")
        record["fingerprints"]["configuration"] = digest(to_dict(config))
    (folder / "out" / "environment.json").write_text(json.dumps(record, indent=2))
    made_so, what = CHANGES[change]
    made_so(folder / "out")
    rows = states(folder / "out", capsys, code=4)
    assert rows[what.format(folder=folder)]["state"] == "differs"


def test_another_version_is_told_and_contradicts_nothing(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from halfbyte import verifying
    from halfbyte.environment import environment

    now = environment()
    now["versions"]["torch"] = "9.9"
    monkeypatch.setattr(verifying, "environment", lambda: now)
    assert states(made / "out", capsys)["versions: torch"]["state"] == "other now"


def test_what_is_gone_can_not_be_checked(made: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / "out", folder / "out")
    for name in ("model", "train.jsonl"):
        (made / name).rename(made / f"{name}-away")
    try:
        rows = states(folder / "out", capsys)
    finally:
        for name in ("model", "train.jsonl"):
            (made / f"{name}-away").rename(made / name)
    for what in ("model", "tokenizer", "training items, token by token", f"data file {made / 'train.jsonl'}"):
        assert rows[what]["state"] == "can't be checked" and rows[what]["note"], what


def test_neither_a_run_nor_an_evaluation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 2
    assert "neither a run nor an evaluation" in capsys.readouterr().err


def test_an_option_that_a_later_version_has_contradicts_no_run_of_before(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(made / "out", tmp_path / "out")
    file, told = run / "run.yaml", json.loads((run / "environment.json").read_text())
    options = to_dict(build(RunConfig, read_yaml(file), "run.yaml"))
    del options["tune"]["optimiser"]
    told["fingerprints"]["configuration"] = digest(options)
    (run / "environment.json").write_text(json.dumps(told))
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "optimiser:" not in line))
    rows = states(run, capsys)
    assert rows["configuration"]["state"] == "ok"
    for recorded in (told["fingerprints"]["configuration"], None):  # None: of a version before there was this digest
        told["fingerprints"]["configuration"] = recorded
        (run / "environment.json").write_text(json.dumps(told))
        row = states(run, capsys)["run.yaml: every option"]
        assert row["state"] == "other now" and row["note"] == "newer than the run: tune.optimiser"
