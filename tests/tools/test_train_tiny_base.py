"""The script that made the demo's base model still makes one that transformers opens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tools.train_tiny_base import SIZES, Recipe, batches, book_pieces, main, make, problems, rate, recipe_of
from transformers import AutoModelForCausalLM, AutoTokenizer

PARAGRAPH = """The kettle sang on the hob, and the cat
looked up at it once, for 12 seconds, and slept again.

"It will rain," said the old man to nobody; and nobody, being busy, did not answer him.
"""
TINY = Recipe(
    vocabulary=300, hidden=32, mlp=48, layers=2, heads=2, context=64, window=16, batch=4, steps=3, warmup=1, hold_out=3
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "books.txt"
    file.write_text("\n<|endofbook|>\n".join([PARAGRAPH * 4] * 6), encoding="utf-8")
    return file


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    file = tmp_path / "problems.jsonl"
    file.write_text(json.dumps({"question": "Half of 48?", "answer": "It is 48/2 = <<48/2=24>>24.\n#### 24"}) + "\n")
    return file


def test_three_steps_make_a_model_that_transformers_opens(text: Path, problem: Path, tmp_path: Path) -> None:
    out = make([text], [problem], tmp_path / "model", TINY)
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    ids = tokenizer("The cat, 12.")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 0
    assert tokenizer.decode(ids[-3:]) == "12."
    assert model(input_ids=torch.tensor([ids])).logits.shape == (1, len(ids), model.config.vocab_size)


def test_a_size_is_a_recipe_and_an_option_goes_before_it(text: Path, tmp_path: Path) -> None:
    assert recipe_of("base", {}) == Recipe()
    assert recipe_of("small", {"steps": 7, "hidden": None}) == Recipe(**SIZES["small"], steps=7)
    options = ["--text", str(text), "--out", str(tmp_path / "model"), "--size", "small", "--vocabulary", "300"]
    main([*options, "--steps", "1", "--window", "16", "--batch", "2", "--layers", "2", "--hold-out", "3"])
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]) == (128, 352, 2)


def test_it_learns_and_is_repeatable(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe(**{**TINY.__dict__, "steps": 60})
    once, again = (make([text], [], tmp_path / name, recipe) / "model.safetensors" for name in ("a", "b"))
    assert once.read_bytes() == again.read_bytes()
    last = float(capsys.readouterr().out.strip().splitlines()[-1].split()[-1])
    assert last < 4.5  # log(300) is 5.7


def test_too_little_text_is_said(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("Rain.")
    with pytest.raises(SystemExit, match="no window"):
        make([file], [], tmp_path / "model", TINY)


def test_pieces_join_wrapped_lines_and_stay_within_a_book(text: Path) -> None:
    pieces = list(book_pieces(text, characters=200))
    assert pieces[0].startswith("The kettle sang on the hob, and the cat looked up")
    assert [len(piece) >= 200 for piece in pieces] == [True, True, False] * 6  # the last of a book is what is left
    assert len(list(book_pieces(text))) == 6


def test_problems_lose_their_calculator_marks(problem: Path) -> None:
    assert list(problems(problem)) == ["Question: Half of 48?\nAnswer: It is 48/2 = 24.\n#### 24"]


def test_rate_rises_stays_and_falls() -> None:
    recipe = Recipe(steps=100, warmup=10, constant=0.7, learning_rate=1.0)
    rates = [rate(step, recipe) for step in range(100)]
    assert (rates[0], rates[9], rates[69]) == (0.1, 1.0, 1.0)
    assert rates[-1] == pytest.approx(0.02)
    assert rates[69:] == sorted(rates[69:], reverse=True)


def test_each_pass_sees_every_window_once() -> None:
    data = torch.arange(8)[:, None]
    stream = batches(data, TINY)
    first, second = (torch.cat([next(stream), next(stream)])[:, 0].tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second
