"""What a probe trains on: the task's own data, cut as the task says."""

from __future__ import annotations

from pathlib import Path

from halfbyte.config import load_task
from halfbyte.select.tuning import read_tuning
from tests.select.folders import task_file


def test_a_probe_on_the_tasks_data_keeps_its_groups_together(folder: Path) -> None:
    task = load_task(task_file(folder, group="prompt"))
    tuning = read_tuning(None, task, probing=True)
    assert tuning.config.data.group == "prompt" and tuning.train is not None and len(tuning.train) == 30


def test_the_digest_is_of_the_data_and_not_of_its_place(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    one, same = (read_tuning(None, load_task(task_file(folder / name)), probing=True).digest for name in "ab")
    assert one == same
    train = folder / "b" / "train.jsonl"
    train.write_text(train.read_text().replace("1.99", "2.99"))
    assert read_tuning(None, load_task(folder / "b" / "task.yaml"), probing=True).digest != one
