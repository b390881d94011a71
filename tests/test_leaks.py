"""Test items that a run has learned from stand beside its verdict wherever it is compared, and `verify` knows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halfbyte.cli import main
from tests.test_cli import task_files
from tests.tiny import tiny_checkpoint


def test_what_a_run_has_learned_from_is_said_wherever_it_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_yaml = task_files(tmp_path, tiny_checkpoint("llama", tmp_path / "tiny"))
    first = (tmp_path / "train.jsonl").read_text().splitlines()[0]
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write(first + "\n")
    assert main(["tune", str(run_yaml)]) == 0
    out = tmp_path / "out"
    compared = json.loads((out / "comparison.json").read_text())
    assert compared["warnings"][0].startswith("1 of 11 test items stand in the")
    assert json.loads((out / "comparisons" / "median-tuned.json").read_text())["warnings"][0] == compared["warnings"][0]
    capsys.readouterr()
    assert main(["compare", str(out / "evaluations" / "base-nf4"), str(out / "evaluations" / "tuned")]) == 0
    assert "1 of 11 test items stand in the" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", str(out)]) == 0, capsys.readouterr().out

    (tmp_path / "again.yaml").write_text("kind: number\ndata: train.jsonl\ndecoding: {max_new_tokens: 4}\n")
    asked = ["evaluate", str(out), "--task", str(tmp_path / "again.yaml"), "--limit", "5", "--out"]
    assert main([*asked, str(tmp_path / "again")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "5 of 5 items stand in the data that this run learned from: the score is no test" in said
    assert json.loads((tmp_path / "again" / "result.json").read_text())["leaks"]


def test_references_of_several_numbers_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_yaml = task_files(tmp_path, tiny_checkpoint("llama", tmp_path / "tiny"))
    lines = [{"prompt": f"sum {k}?", "completion": f"1 and 2 are {k}"} for k in range(12)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["check", str(run_yaml)]) == 1
    assert "12 of 12 test answers hold several numbers" in " ".join(capsys.readouterr().out.split())
    asked = ["evaluate", str(tmp_path / "tiny"), "--task", str(tmp_path / "task.yaml"), "--out", str(tmp_path / "r")]
    assert main(asked) == 0
    assert "12 of 12 references hold several numbers" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [("check {}/task.yaml", "this is a task, and a run is asked for"),
     ("evaluate {}/tiny --task {}/run.yaml", "this is a run, and a task is asked for")],
)  # fmt: skip
def test_a_task_in_place_of_a_run_is_told(
    tmp_path: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    task_files(tmp_path, tmp_path / "tiny")
    assert main([word.format(tmp_path) for word in words.split()]) == 2
    assert said in capsys.readouterr().err
