"""The script that measures what a check of the data costs."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks import check


def test_it_measures_the_verb_and_the_tokenizer_alone(tmp_path: Path) -> None:
    assert check.main(["--items", "60", "--only", "middle", "--results", str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / "check" / "check.csv").open()))
    found = {(row["who"], row["figure"]): float(row["median"]) for row in rows}
    assert {"seconds", "cpu_seconds", "peak_bytes"} <= {figure for who, figure in found if who == "halfbyte"}
    assert 0 < found["limit", "cpu_seconds"] < found["halfbyte", "cpu_seconds"]
    assert 200 < found["limit", "tokens"] / 60 < 300  # as the module says


def test_the_same_numbers_give_the_same_bytes_and_no_two_items_are_the_same(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run = check.write_run(tmp_path / name, sets=2, items=500)
        made.append((run.parent / "train.csv").read_bytes())
    assert made[0] == made[1] and len(set(made[0].splitlines())) == 501
