"""What a notebook shows of the objects that the public functions return."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from halfbyte import compare_folders, evaluate_task, plan_model
from halfbyte.config import TaskConfig
from halfbyte.evaluate.compare import compare_several
from halfbyte.notebook import table
from halfbyte.tune.run import Outcome
from tests.evaluate.models import plain_model

EVIL = "<script>alert('x')</script>"


class Reader(HTMLParser):
    """The cells of a table, and every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags[-1] in ("td", "th") and data.strip():
            self.rows[-1][-1] += data


def test_a_table_is_escaped() -> None:
    made = Reader(table(EVIL, ("a", EVIL), [(EVIL, 3)], [EVIL]))
    assert "script" not in made.tags and made.rows == [["a", EVIL], [EVIL, "3"]] and made.text.count(EVIL) == 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("notebook")
    lines = [{"prompt": f"{k} or", "completion": " red", "options": ["red", "green"]} for k in range(12)]
    (home / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = TaskConfig(name="colours", data=str(home / "t.jsonl"), kind="choice", options="options")
    for seed, name in enumerate(("a", "b")):
        result = evaluate_task(plain_model(seed=seed), task, home / name, variant=f"<b>{name}")
        assert result == json.loads((home / name / "result.json").read_text())
        shown = Reader(result._repr_html_())
        assert shown.text.startswith(f"colours: <b>{name}, 12 items") and shown.tags.count("b") == 1
        row = next(row for row in shown.rows if row[0] == "accuracy")
        assert row[1] == f"{100 * result['metrics']['accuracy']['value']:.1f} %" and row[3] == "12"
        assert "only 12 independent items" in shown.text
    return [home / "a", home / "b"]


def test_a_comparison(folders: list[Path]) -> None:
    made = compare_folders(*folders)
    shown = Reader(made._repr_html_())
    rows = dict(row for row in shown.rows if len(row) == 2)
    assert rows["verdict"] == made["verdict"] and rows["<b>b"].endswith(" %") and rows["difference"].endswith(" pp")
    assert rows["wins, losses, ties"] == f"{made['wins']}, {made['losses']}, {made['ties']}"
    assert json.loads(json.dumps(made)) == made
    again = shutil.copytree(folders[1], folders[1].with_name("again"))
    one, _ = compare_several([*folders, again])
    rows = dict(row for row in Reader(one._repr_html_()).rows if len(row) == 2)
    assert "97.5 % interval" in rows and "(adjusted for 2 comparisons, Holm" in rows["p"]


def test_a_plan() -> None:
    shown = Reader(plan_model("llama-3.1-8b", rank=32, targets="attention")._repr_html_())
    rows = dict(row for row in shown.rows if len(row) == 2)
    assert rows["nf4"] == "5,591,539,712" and rows["adapter"] == "109,051,904" and "peak of tune" in rows


def test_an_outcome() -> None:
    made = Outcome(Path("runs/<x>"), steps=7, finished=True, best_loss=1.25, seconds=3.2, peak_bytes=640_000_000,
                   mapped_bytes=5_400_000)  # fmt: skip
    shown = Reader(made._repr_html_())
    rows = dict(row for row in shown.rows if len(row) == 2)
    assert shown.text.startswith("runs/<x>: finished") and "x" not in shown.tags
    assert rows == {"optimiser steps": "7", "time": "3 s", "best validation loss": "1.25 nats a token",
                    "peak memory": "0.64 GB", "mapped": "5.40 MB"}  # fmt: skip
    assert "not finished" in Outcome(Path("x"), 1, False, None, 1.0, None, None)._repr_html_()
