from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from halfbyte.config import SplitConfig, TaskConfig, load_run, load_task
from halfbyte.data.sides import asked_examples, training_examples
from halfbyte.data.template import load_examples
from halfbyte.errors import ConfigError, DataError
from halfbyte.evaluate.tasks import load_task_set

TASK = """\
kind: number
data: all.jsonl
template: {prompt: "{name} costs $", completion: "{price}"}
split: {share: 0.3, salt: 1}
"""


def rows(count: int) -> list[dict[str, Any]]:
    return [{"name": f"set {k}", "number": k, "price": 10 + k, "theme": f"t{k // 5}"} for k in range(count)]


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    write(tmp_path, rows(200))
    (tmp_path / "task.yaml").write_text(TASK)
    return tmp_path / "task.yaml"


def write(folder: Path, records: list[dict[str, Any]]) -> None:
    (folder / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def columns(examples: list[Any], column: str) -> list[Any]:
    return [example.record.values[column] for example in examples]


def test_the_sides_are_the_whole_and_share_nothing(task_file: Path) -> None:
    task = load_task(task_file)
    test, train = columns(asked_examples(task), "number"), columns(training_examples(task_file), "number")
    assert sorted(test + train) == list(range(200)) and 40 <= len(test) <= 80
    other = replace(task, split=SplitConfig(share=0.3, salt=2))
    assert columns(asked_examples(other), "number") != test


def test_a_record_keeps_its_side_whatever_joins_leaves_or_moves(task_file: Path) -> None:
    task = load_task(task_file)
    before = set(columns(asked_examples(task), "number"))
    write(task_file.parent, rows(400)[:50:-1])
    after = set(columns(asked_examples(task), "number"))
    assert {k for k in before if k > 50} == {k for k in after if k < 200}


def test_groups_stay_whole_and_ids_decide_without_them(task_file: Path) -> None:
    grouped = replace(load_task(task_file), group="theme")
    test = columns(asked_examples(grouped), "theme")
    assert 1 < len(set(test)) < 40 and all(test.count(theme) == 5 for theme in test)
    by_id = replace(load_task(task_file), id="number")
    reworded = replace(by_id, template={"prompt": "What is {name} worth? ", "completion": "{price}"})
    assert columns(asked_examples(by_id), "number") == columns(asked_examples(reworded), "number")
    with pytest.raises(DataError, match=r"(?s)no column 'them' to split by.*did you mean 'theme'"):
        asked_examples(replace(grouped, group="them"))


def test_equal_prompts_are_never_on_both_sides(task_file: Path) -> None:
    write(task_file.parent, [row | {"name": f"set {k // 2}", "price": k} for k, row in enumerate(rows(200))])
    test, train = (set(columns(side, "name")) for side in
                   (asked_examples(load_task(task_file)), training_examples(task_file)))  # fmt: skip
    assert test and train and not test & train


@pytest.mark.parametrize("column", ["id", "group"])
def test_equal_prompts_are_never_on_both_sides_whatever_their_ids(task_file: Path, column: str) -> None:
    own = {"id": "number", "group": "theme"}[column]
    task_file.write_text(f"{TASK}{column}: {own}\n")
    write(task_file.parent, [row | {"name": f"set {k % 90}", "theme": f"t{k % 60}"} for k, row in enumerate(rows(200))])
    sides = (asked_examples(load_task(task_file)), training_examples(task_file))
    for name in ("name", own):
        test, train = (set(columns(side, name)) for side in sides)
        assert test and train and not test & train
    # what has no twin keeps the side that its own id or group gives it
    write(task_file.parent, rows(200))
    alone = set(columns(asked_examples(load_task(task_file)), own))
    write(task_file.parent, rows(200) + [row | {"name": "new", "theme": "new"} for row in rows(2)])
    more = [row for row in asked_examples(load_task(task_file)) if row.record.values["name"] != "new"]
    assert set(columns(more, own)) == alone


def test_a_run_trains_on_the_other_side(task_file: Path) -> None:
    (task_file.parent / "run.yaml").write_text("model: tiny\ndata: {train: task.yaml}\ntask: task.yaml\n")
    run = load_run(task_file.parent / "run.yaml")
    train = load_examples(str(run.data.train), run.data.template)
    assert train[0].prompt.endswith("costs $") and len(train) == len(training_examples(task_file))
    chat = load_examples(str(run.data.train), {"prompt": "{name}?", "completion": "{price}"})
    assert columns(chat, "number") == columns(train, "number") and chat[0].prompt.endswith("?")


def test_the_task_takes_its_median_and_its_shots_from_the_training_side(task_file: Path) -> None:
    task = replace(load_task(task_file), shots=2)
    tasks = load_task_set(task)
    tested = {item.example.prompt for item in tasks.items}
    assert len(tasks.shots) == 2 and not {shot.prompt for shot in tasks.shots} & tested
    assert tasks.fallback_source == "training median"
    assert tasks.parts["split"] == {"share": 0.3, "salt": 1}
    plain = TaskConfig(name="x", data=task.data, template=task.template, kind="number")
    assert "split" not in load_task_set(plain).parts and len(load_task_set(plain).items) == 200


def test_what_can_not_be_split_is_said(task_file: Path) -> None:
    write(task_file.parent, rows(1))
    with pytest.raises(DataError, match="leaves nothing for"):
        asked_examples(load_task(task_file))
    task_file.write_text(TASK.replace("share: 0.3", "share: null"))
    with pytest.raises(ConfigError, match="nothing to train on"):
        load_examples(str(task_file))
    task_file.write_text(TASK.replace("share: 0.3", "share: 1.5"))
    with pytest.raises(ConfigError, match=r"split\.share"):
        load_task(task_file)


def test_what_is_left_for_training_still_has_its_share_for_validation(task_file: Path) -> None:
    """Test items and validation items are chosen by hashes of their own, whatever salt and seed are."""
    from halfbyte.data.dataset import split

    for salt in (0, 1):
        task_file.write_text(TASK.replace("salt: 1", f"salt: {salt}"))
        left = training_examples(task_file, None)
        train, validation, note = split(left, 0.2, seed=salt)
        assert note is None and 0.1 < len(validation) / (len(train) + len(validation)) < 0.3
