from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from halfbyte.config import load_task
from halfbyte.errors import ConfigError, DataError
from halfbyte.evaluate import listing
from halfbyte.evaluate.listing import list_results
from halfbyte.evaluate.scores import loss_scores
from halfbyte.evaluate.show import print_results
from halfbyte.evaluate.tasks import load_task_set
from tests.evaluate.test_compare import exact, folder, numbers


def edit(place: Path, **values: object) -> None:
    file = place / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def printed(rows: list[dict[str, object]]) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    print_results(rows, console)
    return console.file.getvalue()


def test_a_folder_is_listed_best_first(tmp_path: Path) -> None:
    truth = [10.0, 20.0, 30.0]
    base = numbers(tmp_path / "one" / "base-nf4", [18.0, 29.0, 45.0], truth)
    tuned = numbers(tmp_path / "two" / "tuned", [11.0, 20.0, 31.0], truth)
    edit(base, model="tiny", weights="nf4", adapter=None, seconds=1.25, peak_bytes=2 * 10**9, unanswered=0.0)
    edit(tuned, model="tiny", weights="nf4", adapter={"rank": 8})
    (tmp_path / "result.json").write_text("[]")  # something else of that name
    rows = list_results(tmp_path)
    assert [(row["variant"], row["metric"]["name"], row["items"]) for row in rows] == [
        ("tuned", "mae", 3), ("base-nf4", "mae", 3)]  # fmt: skip
    assert rows[0]["metric"]["value"] == pytest.approx(2 / 3) and rows[0]["metric"]["low"] is not None
    assert all(row["differs"] == [] for row in rows) and rows[1]["folder"] == str(base)
    text = printed(rows)
    for told in ("t: mae with its 95 % interval", "tuned", "base-nf4", "mae ↓", "rank 8", "2.00 GB", "0.6667 (", "1.2"):
        assert told in text
    json.dumps(rows, allow_nan=False)


def test_losses_are_ranked_by_what_compares_across_tokenizers(tmp_path: Path) -> None:
    folder(tmp_path / "few", [loss_scores(20.0, 4, 20)] * 3, "loss")  # 5 nats a token, 1 a byte
    folder(tmp_path / "many", [loss_scores(40.0, 20, 20)] * 3, "loss")  # 2 nats a token, 2 a byte
    rows = list_results(tmp_path)
    assert [(row["variant"], row["metric"]["name"]) for row in rows] == [
        ("few", "bits_per_byte"), ("many", "bits_per_byte")]  # fmt: skip


def test_other_experiments_stand_apart_and_say_why(tmp_path: Path) -> None:
    exact(tmp_path / "a", [True, False, True])
    exact(tmp_path / "b", [True, True], decoding={"max_new_tokens": 3, "stop": []})
    rows = list_results(tmp_path)
    assert rows[0]["differs"] == [] and rows[1]["differs"][0] == "items: 3 against 2"
    assert any(line.startswith("decoding: null against") for line in rows[1]["differs"])
    text = printed(rows)
    assert "another experiment, items: 3 against 2" in text and text.count("exact_match ↑") == 2


def test_unrelated_tasks_stand_apart_and_hashes_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 80 columns, with nothing cut off."""
    monkeypatch.setenv("COLUMNS", "80")
    variant = "a-name-of-more-than-forty-characters-for-a-variant"
    for place, task in (("a", "prices"), ("b", "intents"), ("c", "intents")):
        edit(exact(tmp_path / place / variant, [True, False], data=place * 64), task=task, model="org/" + "m" * 40,
             weights="nf4", seconds=3723.5, peak_bytes=10**10)  # fmt: skip
    rows = list_results(tmp_path)
    assert [bool(row["differs"]) for row in rows] == [False, True, False]  # a task's first has nothing to differ from
    console = Console(file=io.StringIO(), width=80, color_system=None)
    print_results(rows, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80 and text.count(variant) == text.count("m" * 40) == 3
    told = "intents: 2 results of 2 experiments; only results of the same experiment compare."
    assert told in " ".join(text.split())
    assert "prices: 1 result; none compares with those of another task." in " ".join(text.split())
    assert "data: the items differ, or one" in " ".join(text.split()) and "b" * 9 not in text and "3723.5" in text


def test_a_task_lists_its_own_results(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"prompt": "a", "completion": "x"}\n{"prompt": "b", "completion": "y"}\n')
    (tmp_path / "t.yaml").write_text("data: test.jsonl\nkind: exact\n")
    runs = tmp_path / "runs"
    same, old = exact(runs / "t" / "evaluations" / "now", [True, False]), exact(runs / "r" / "then", [True])
    edit(exact(runs / "other", [True]), task="another")
    tasks = load_task_set(load_task(tmp_path / "t.yaml"))
    edit(same, fingerprint=tasks.fingerprint, fingerprint_parts=tasks.parts)
    rows = list_results(tmp_path / "t.yaml", runs=runs)
    assert [row["folder"] for row in rows] == [str(same), str(old)]
    assert rows[0]["differs"] == [] and any("items: 2 against 1" in line for line in rows[1]["differs"])


def test_a_tasks_results_are_looked_for_here_and_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home := tmp_path / "home").mkdir()
    (here := tmp_path / "here").mkdir()
    (home / "test.jsonl").write_text('{"prompt": "a", "completion": "x"}\n{"prompt": "b", "completion": "y"}\n')
    (home / "t.yaml").write_text("data: test.jsonl\nkind: exact\n")
    exact(home / "runs" / "beside", [True, False])
    exact(here / "runs" / "here", [True, False])
    for place, names in ((here, {"beside", "here"}), (home, {"beside"})):
        monkeypatch.chdir(place)
        rows = list_results(home / "t.yaml")
        assert {Path(row["folder"]).name for row in rows} == names and len(rows) == len(names)
    (within := home / "runs" / "task").mkdir()
    (within / "test.jsonl").write_bytes((home / "test.jsonl").read_bytes())
    (within / "t.yaml").write_bytes((home / "t.yaml").read_bytes())
    exact(within / "runs" / "inner", [True, False])  # beside the task, and below runs/ here
    assert sorted(Path(row["folder"]).name for row in list_results(within / "t.yaml")) == ["beside", "inner"]
    with pytest.raises(ConfigError, match="--runs"):
        list_results(home / "runs", runs=Path("none"))
    with pytest.raises(DataError, match=r"none \(no such folder\)[^,]*--runs FOLDER"):
        list_results(home / "t.yaml", runs=Path("none"))
    with pytest.raises(ConfigError, match="no such task"):
        list_results(home / "u.yaml")


def test_a_runs_own_result_compares_with_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run scores with its own seed, and its training median as the fallback, where the task names none."""
    (tmp_path / "test.jsonl").write_text('{"prompt": "a", "completion": "1"}\n{"prompt": "b", "completion": "2"}\n')
    (tmp_path / "t.yaml").write_text("data: test.jsonl\nkind: number\n")
    place = exact(tmp_path / "runs" / "r", [True, False])
    tasks = load_task_set(dataclasses.replace(load_task(tmp_path / "t.yaml"), fallback=7.5), seed=3)
    edit(place, task="t", seed=3, fingerprint=tasks.fingerprint, fingerprint_parts=tasks.parts)
    shutil.copytree(place, tmp_path / "runs" / "again")
    loads: list[object] = []
    monkeypatch.setattr(listing, "load_task_set", lambda *a, **o: (loads.append(a), load_task_set(*a, **o))[1])
    rows = list_results(tmp_path / "t.yaml", runs=tmp_path / "runs")
    assert [row["differs"] for row in rows] == [[], []] and len(loads) == 1


def test_nothing_yet_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)no result yet.*halfbyte evaluate"):
        list_results(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"prompt": "a", "completion": "x"}\n')
    (tmp_path / "t.yaml").write_text("data: test.jsonl\n")
    with pytest.raises(DataError, match="no such folder"):
        list_results(tmp_path / "t.yaml", runs=tmp_path / "runs")
