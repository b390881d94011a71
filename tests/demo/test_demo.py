"""The embedded default is complete, small, loads, and its test set is really apart."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tools.make_demo_data import COLUMNS, describe, is_test, normalise, tidy
from transformers import AutoTokenizer

import halfbyte.demo
from halfbyte.config import load_run, load_task

DEMO = Path(halfbyte.demo.__file__).parent


def rows(side: str) -> list[dict[str, str]]:
    with (DEMO / f"{side}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_no_name_is_on_both_sides() -> None:
    train, test = rows("train"), rows("test")
    assert not {normalise(row["name"]) for row in train} & {normalise(row["name"]) for row in test}
    assert all(is_test(row["name"]) for row in test)
    assert not any(is_test(row["name"]) for row in train)
    assert (len(train), len(test)) == (5305, 369)


def test_rows_are_whole() -> None:
    items = [row for side in ("train", "test") for row in rows(side)]
    assert len({row["item"] for row in items}) == len(items)
    assert all(tuple(row) == COLUMNS for row in items)
    assert all(float(row["price"]) > 0 for row in items)
    assert all(row["description"] == describe(row) for row in items)
    assert not any("NA" in row.values() for row in items)
    assert not any(f"${row['price']}" in row["description"] for row in items)


def test_tidy_leaves_out_what_is_unknown() -> None:
    row = dict.fromkeys(("Subtheme", "Pieces", "Minifigures"), "NA")
    row |= {
        "Name": "Fire  Station ",
        "Year": "1999",
        "Theme": "Town",
        "USD_MSRP": "20",
        "Image_URL": "http://x/6571-1.jpg",
    }
    (made,) = tidy([row, row | {"USD_MSRP": "NA"}, row | {"USD_MSRP": "0"}])
    assert made["description"] == "Fire Station is a LEGO set of 1999. Theme: Town."
    assert (made["item"], made["price"], made["pieces"]) == ("6571-1", "20", "")
    (made,) = tidy([row | {"Subtheme": "Fire", "Pieces": "1", "Minifigures": "3"}])
    text = "Fire Station is a LEGO set of 1999 with 1 piece and 3 minifigures. Theme: Town, Fire."
    assert made["description"] == text


@pytest.mark.parametrize("name", ["Fire Station", "FIRE-STATION!", "  fire   station "])
def test_normalise(name: str) -> None:
    assert normalise(name) == "fire station"


def test_run_and_task_load_and_agree() -> None:
    run, task = load_run(DEMO / "run.yaml"), load_task(DEMO / "task.yaml")
    assert (run.model, run.task, run.data.train) == (
        str(DEMO / "base"),
        str(DEMO / "task.yaml"),
        str(DEMO / "train.csv"),
    )
    assert (task.data, task.train, task.kind) == (str(DEMO / "test.csv"), run.data.train, "number")
    assert task.template == run.data.template
    assert task.fallback is None
    columns = set(COLUMNS)
    assert {task.id, task.group} <= columns


def test_prompts_fit() -> None:
    tokenizer, limit = AutoTokenizer.from_pretrained(DEMO / "base"), load_run(DEMO / "run.yaml").data.max_tokens
    texts = [f"{row['description']} Each costs ${row['price']}" for side in ("train", "test") for row in rows(side)]
    assert max(map(len, tokenizer(texts)["input_ids"])) < limit
    answer = load_task(DEMO / "task.yaml").decoding.max_new_tokens
    assert len(tokenizer("1234.99", add_special_tokens=False)["input_ids"]) < answer


def test_base_is_what_its_card_says() -> None:
    tensors = load_file(DEMO / "base" / "model.safetensors")
    config = json.loads((DEMO / "base" / "config.json").read_text())
    assert sum(math.prod(tensor.shape) for tensor in tensors.values()) == 7_475_456
    assert all(tensor.dtype == torch.bfloat16 and bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert tensors["model.embed_tokens.weight"].shape == (config["vocab_size"], config["hidden_size"])
    assert len({name.split(".")[2] for name in tensors if ".layers." in name}) == config["num_hidden_layers"]
    assert "7,475,456 parameters" in (DEMO / "base" / "MODEL_CARD.md").read_text()


def test_digits_are_tokens_of_their_own() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    ids = tokenizer("$129.99")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert [tokenizer.decode([index]) for index in ids[1:]] == ["$", "1", "2", "9", ".", "9", "9"]


def test_package_data_is_complete_and_small() -> None:
    names = {
        str(file.relative_to(DEMO)) for file in DEMO.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    }
    expected = {"NOTE.md", "run.yaml", "task.yaml", "train.csv", "test.csv", "base/MODEL_CARD.md", "base/config.json"}
    expected |= {f"base/{name}" for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json")}
    assert expected <= names
    assert sum((DEMO / name).stat().st_size for name in names) < 20e6
    suffixes = {Path(name).suffix for name in names} - {".py"}
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert all(f'"**/*{suffix}"' in project for suffix in suffixes)
