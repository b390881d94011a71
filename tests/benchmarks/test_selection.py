"""The selection on real weights runs to its end, with few items, and prints a table a task."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks import selection
from halfbyte.config import load_run, load_task
from halfbyte.evaluate.tasks import load_task_set


def banking(folder: Path) -> Path:
    folder.mkdir()
    for name, rows in (("banking77_train.csv", 12), ("banking77_test.csv", 6)):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "category"])
            writer.writerows(
                [f"where is my  card {row}?", ("card_arrival", "lost_card")[row % 2]] for row in range(rows)
            )
    return folder


def test_a_table_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--banking77", str(banking(tmp_path / "data")), "--folder", str(tmp_path / "out"), "--limit", "4"]
    assert selection.main([*options, "--weights", "nf4", "--shots", "0"]) == 0
    said = capsys.readouterr().out
    tables = said[said.index("## lego-price: mae on 4 items") :]
    assert "## banking77: accuracy on 4 items" in tables and tables.count("- Recommended") == 1
    assert tables.count("- Not recommended, but first: ") == 1  # four messages can't show more than chance
    starts = ("| tiny-base | 7,475,456 | nf4 | 0 |", "| stories260K | 260,032 | nf4 | 0 |")
    assert "- Choosing at random scores 50.0 %: " in tables
    rows = [line for line in tables.splitlines() if line.startswith(starts)]
    assert len(rows) == 4 and all(row.endswith(("| best |", "| tied |", "| worse |")) for row in rows)


def test_the_task_of_the_intents(tmp_path: Path) -> None:
    task_file, run_file = selection.write_banking77(banking(tmp_path / "data"), tmp_path / "task", tmp_path)
    task, run = load_task(task_file), load_run(run_file)
    items = load_task_set(task).items
    assert items[0].options == (" card arrival", " lost card") and items[1].reference == " lost card"
    assert items[0].example.prompt == "A customer asks a bank: where is my card 0?\nThis is about:"
    assert run.data.template == task.template
    with pytest.raises(SystemExit, match=r"no banking77_train\.csv"):
        selection.write_banking77(tmp_path, tmp_path / "task", tmp_path)


def test_a_candidate_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such folder"):
        selection.place_candidates(tmp_path, [f"mine={tmp_path / 'gone'}"])
