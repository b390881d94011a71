"""A real pretrained model through the whole chain: opened, packed, asked, scored, tuned, saved, compared, reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from halfbyte.cli import main
from halfbyte.config import DecodingConfig
from halfbyte.data.encode import Encoder
from halfbyte.data.template import Example
from halfbyte.evaluate.generate import generate
from halfbyte.model.adapter import quant_linears
from halfbyte.model.build import load_model
from tests.stories import STORY, stories

TALES = [
    "{name} went to the park with a big {thing}. {name} was happy and said thank you.",
    "One day, {name} found a {thing} in the box. The {thing} was red and {name} liked it.",
    "{name} has a {thing}. Mom says: be careful with the {thing}, {name}!",
]
NAMES, THINGS = ("Lily", "Tim", "Anna", "Ben", "Sue"), ("ball", "car", "doll", "kite")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, a run and a task of stories to learn."""
    folder = tmp_path_factory.mktemp("chain")
    stories(folder / "base")
    lines = [
        {"prompt": f"Story {number} of {name}:", "completion": " " + tale.format(name=name, thing=thing)}
        for number, (tale, name, thing) in enumerate((t, n, h) for t in TALES for n in NAMES for h in THINGS)
    ]
    for side, part in (("train", lines[::2]), ("test", lines[1::2])):
        (folder / f"{side}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
    (folder / "task.yaml").write_text("name: tales\nkind: loss\ndata: test.jsonl\n")
    (folder / "run.yaml").write_text(
        "model: base\nout: run\ntask: task.yaml\ndata: {train: train.jsonl}\n"
        "tune: {epochs: 6, batch: 8, learning_rate: 5e-3}\n"
    )
    return folder


@pytest.mark.parametrize("weights", ["fp32", "nf4", "int8"])
def test_it_continues_as_its_author_prints_or_nearly(work: Path, weights: Any) -> None:
    model = load_model(str(work / "base"), weights=weights)
    prompt = Encoder(model.tokenizer).prompt(Example.of_prompt(""))
    made = generate(model, [prompt], DecodingConfig(max_new_tokens=110, stop=[])).texts[0].strip()
    assert made.startswith(STORY if weights == "fp32" else "Once upon a time, there was a little")


def test_the_run_gets_better_and_says_so(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(work / "run.yaml")]) == 0
    comparison = json.loads((work / "run" / "comparison.json").read_text())
    assert comparison["verdict"] == "better" and comparison["difference"]["high"] < 0
    assert "better" in capsys.readouterr().out


def test_peft_computes_the_same_from_the_adapter_it_left(work: Path) -> None:
    model = load_model(str(work / "base"), weights="fp32", adapter=work / "run" / "adapter")
    base = AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, work / "run" / "adapter").eval()
    ids = torch.tensor([[1, 403, 407, 261, 378]])
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model.hidden(ids)), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert all(layer.lora_A is not None for layer in quant_linears(model.net).values())


def test_transformers_with_bitsandbytes_opens_the_packed_model(work: Path) -> None:
    assert main(["pack", str(work / "base"), str(work / "packed")]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(work / "packed", device_map="cpu").train()
    ours = load_model(str(work / "packed"))
    ids = torch.tensor([[1, 403, 407, 261, 378]])
    with torch.no_grad():
        a, b = ours.logits(ours.hidden(ids)).float(), theirs(ids).logits.float()
    assert ours.weights == "nf4" and (a - b).norm() < 0.05 * b.norm()
