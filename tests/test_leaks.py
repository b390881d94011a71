"""Test items that a run has learned from stand beside its verdict wherever it is compared, and `verify` knows them."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from halfbyte.cli import main
from halfbyte.config import DataConfig, RunConfig, TaskConfig, load_run, load_task
from halfbyte.evaluate.leaks import learned_from
from halfbyte.evaluate.tasks import load_task_set
from tests.test_cli import task_files
from tests.tiny import tiny_checkpoint


def result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def test_what_a_run_has_learned_from_is_said_wherever_it_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_yaml = task_files(tmp_path, tiny_checkpoint("llama", tmp_path / "tiny"))
    first, second, *_ = (tmp_path / "train.jsonl").read_text().splitlines()
    other = {"prompt": json.loads(second)["prompt"].upper(), "completion": "77"}
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write(first + "\n" + json.dumps(other) + "\n" + json.dumps({"prompt": "y", "completion": "1 of 2"}) + "\n")
    assert main(["tune", str(run_yaml)]) == 0
    out = tmp_path / "out"
    compared = json.loads((out / "comparison.json").read_text())
    told = sorted(text for text in compared["warnings"] if text.startswith("tuned: "))
    assert [text.partition(" in ")[0] for text in told] == [
        "tuned: 1 of 13 test items have a prompt that stands", "tuned: 1 of 13 test items stand"]  # fmt: skip
    against = json.loads((out / "comparisons" / "median-tuned.json").read_text())
    assert sorted(text for text in against["warnings"] if text.startswith("tuned: ")) == told
    base, tuned, median = (result(out / "evaluations" / name) for name in ("base-nf4", "tuned", "median"))
    assert sorted(f"tuned: {text}" for text in tuned["leaks"]) == told
    assert "leaks" not in median and "leaks" not in base
    assert any("1 of 13 references hold several numbers" in text for text in median["warnings"])
    assert f"tuned: {tuned['leaks'][0]}" in html.unescape((out / "report.html").read_text()).split("What the tuned")[0]
    capsys.readouterr()
    assert main(["compare", str(out / "evaluations" / "base-nf4"), str(out / "evaluations" / "tuned")]) == 0
    assert "1 of 13 test items stand in the" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", str(out)]) == 0, capsys.readouterr().out
    own = load_task(out / "task.yaml")
    assert learned_from(load_task_set(own), load_run(out / "run.yaml")) == tuned["leaks"]  # of the data, once more
    (tmp_path / "train.jsonl").rename(tmp_path / "away.jsonl")
    assert main(["evaluate", str(out), "--task", str(out / "task.yaml")]) == 0
    assert result(out / "evaluations" / "tuned")["leaks"] == tuned["leaks"]
    (tmp_path / "away.jsonl").rename(tmp_path / "train.jsonl")
    assert main(["evaluate", str(out), "--task", str(tmp_path / "task.yaml")]) == 0
    assert result(out / "evaluations" / "tuned")["leaks"] == tuned["leaks"]
    assert main(["verify", str(out)]) == 0, capsys.readouterr().out
    capsys.readouterr()
    assert main(["results", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"* tuned: {tuned['leaks'][0]}" in said and ") *" in said and "* base" not in said

    (tmp_path / "again.yaml").write_text("kind: number\ndata: train.jsonl\ndecoding: {max_new_tokens: 4}\n")
    asked = ["evaluate", str(out), "--task", str(tmp_path / "again.yaml"), "--limit", "5", "--out"]
    assert main([*asked, str(tmp_path / "again")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "5 of 5 test items stand in the" in said and "5 of 5" in result(tmp_path / "again")["leaks"][0]

    (tmp_path / "new.yaml").write_text("kind: exact\ndata: new.jsonl\ndecoding: {max_new_tokens: 4}\n")
    (tmp_path / "new.jsonl").write_text(
        '{"prompt": "who?", "completion": "I"}\n{"prompt": "why?", "completion": "so"}\n'
    )
    asked = ["evaluate", str(out), "--task", str(tmp_path / "new.yaml"), "--out"]
    assert main([*asked, str(tmp_path / "new")]) == 0 and "leaks" not in result(tmp_path / "new")
    (tmp_path / "train.jsonl").unlink()
    assert main([*asked, str(tmp_path / "gone")]) == 0
    (leak,) = result(tmp_path / "gone")["leaks"]
    assert leak.startswith("whether the run learned these items is not known: ") and "train.jsonl" in leak
    shutil.copytree(out / "adapter", tmp_path / "other")
    assert main([*asked, str(tmp_path / "lent"), "--adapter", str(tmp_path / "other")]) == 0
    assert "leaks" not in result(tmp_path / "lent")  # what another adapter learned from is not this run's data


def learned(
    folder: Path, asked: list[dict[str, str]], train: list[dict[str, str]], group: str | None = None, **data: Any
) -> list[str]:
    for name, lines in (("test", asked), ("train", train)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = load_task_set(TaskConfig(kind="loss", data=str(folder / "test.jsonl"), group=group))
    return learned_from(tasks, RunConfig(data=DataConfig(train=str(folder / "train.jsonl"), **data)))


def test_of_texts_without_a_prompt_the_text_itself_counts(tmp_path: Path) -> None:
    texts = [{"prompt": "", "completion": f"{name} is the text of {name}"} for name in ("one", "two", "three", "four")]
    assert learned(tmp_path, texts[:2], texts[2:], validation=0) == []
    (said,) = learned(tmp_path, texts[:2], texts[1:], validation=0)
    assert said.startswith("1 of 2 test items stand in the training data, too")


def test_a_validation_file_and_near_copies_are_looked_at_and_items_of_neither_are_not_told(tmp_path: Path) -> None:
    lines = [{"prompt": f"The castle of {name} has nine towers, two gates and a very deep moat", "completion": name}
             for name in ("Ash", "Birch", "Cedar")]  # fmt: skip
    (tmp_path / "held.jsonl").write_text(json.dumps(lines[0]) + "\n")
    held = str(tmp_path / "held.jsonl")
    other = [{"prompt": "Something else entirely", "completion": "x"}]
    (said,) = learned(tmp_path, lines[:1], other, validation=held)
    assert said.startswith("1 of 1 test items stand in the validation data, too")
    near = [lines[0] | {"prompt": f"{lines[0]['prompt']}, they say"}]
    (said,) = learned(tmp_path, lines[:1], near, validation=0)
    assert "stand in the training data in nearly the same words" in said
    assert learned(tmp_path, lines[:1], other, validation=0) == []
    asked, trained = ([line | {"g": "one"} for line in part] for part in (lines[:1], other))
    (said,) = learned(tmp_path, asked, trained, group="g", validation=0)
    assert said.startswith("1 of 1 test items are of groups that 1 training item is of, too")


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
