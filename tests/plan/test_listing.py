"""`plan --list`: the catalogue in a table, and as JSON."""

from __future__ import annotations

import json

import pytest

from halfbyte.cli import main
from halfbyte.plan import catalogue
from halfbyte.plan.ladder import plan_model
from halfbyte.plan.listing import listed


def test_every_model_is_listed_with_what_its_plan_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["id"]: row for row in found["models"]}
    assert found["schema"] == 1 and list(rows) == [entry.name for entry in catalogue.entries()]
    row, plan = rows["meta-llama/Llama-3.1-8B"], plan_model("llama-3.1-8b", memory="8GB")
    assert row["name"] == "llama-3.1-8b" and row["licence"] == "Llama 3.1 Community License"
    assert (row["parameters"], row["nf4_bytes"], row["context"]) == (
        plan.parameters,
        plan.phases["open"].mapped_bytes,
        131072,
    )
    assert rows["ibm-granite/granite-3.3-8b-base"]["nf4_bytes"] is None


def test_a_word_filters_by_name_and_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert {row.family for row in listed(["llama 3.1"])} == {"Llama 3.1"}
    assert main(["plan", "--list", "QWEN3-4B"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("qwen3-4b") and "4.02 B" in said[1] and "of 198 models" in said[-1]
    assert all(line == line.rstrip() for line in said[1:])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--list", "no-such-model"], "no model of the catalogue"),
        (["--list", "qwen", "--memory", "8GB", "--check"], "found: --memory, --check"),
        ([], "no model is named"),
    ],
)
def test_a_mistake_is_one_clear_error(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and "do: " in error
