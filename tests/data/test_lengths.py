"""What a plan says of a run's data is what `load_training` finds, or a bound of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halfbyte.config import DataConfig, TaskConfig
from halfbyte.data.dataset import load_training
from halfbyte.data.lengths import task_lengths, training_lengths
from halfbyte.data.template import Example
from tests.tiny import tiny_tokenizer


@pytest.fixture
def data(tmp_path: Path) -> str:
    lines = [{"prompt": f"set {i} " + "of castles " * (i * 7 % 11), "completion": "9" * (1 + i % 5)} for i in range(90)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(tmp_path / "train.jsonl")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("settings", [{}, {"learn": "all"}, {"max_tokens": 20}, {"validation": 0.5}, {"chat": "off"}])
def test_with_the_tokenizer_it_is_exact(settings: dict[str, object], data: str, model: Path) -> None:
    config = DataConfig(train=data, **settings)  # type: ignore[arg-type]
    found, real = training_lengths(config, model, 3), load_training(config, tiny_tokenizer(), 3)
    assert (found.items, found.validation_items) == tuple(
        c.items + c.dropped for c in (real.counts, real.validation_counts)
    )
    assert found.longest == real.counts.longest and "encoded by tokenizer.json" in found.reason
    assert found.learned == max(item.learned_tokens for item in (*real.train, *real.validation))


def test_without_it_bytes_are_the_bound(data: str) -> None:
    config = DataConfig(train=data)
    found, real = training_lengths(config, None, 0), load_training(config, tiny_tokenizer(), 0)
    assert real.counts.longest <= found.longest < config.max_tokens
    assert max(item.learned_tokens for item in real.train) <= found.learned <= 5 + 4
    assert found.reason.endswith("by the bytes of the longest item: the tokenizer is not here")


def test_a_chat_template_leaves_max_tokens_as_the_bound(data: str, tmp_path: Path) -> None:
    tiny_tokenizer(chat_template="{{ messages }}").save_pretrained(tmp_path / "chat")
    found = training_lengths(DataConfig(train=data, max_tokens=77), tmp_path / "chat", 0)
    assert found.longest == 77 and found.reason.endswith("by data.max_tokens: the model has a chat template")


def test_messages_without_a_template_are_bounded_too(tmp_path: Path, model: Path) -> None:
    turns = [{"role": "user", "content": "how much?"}, {"role": "assistant", "content": "ten"}]
    (tmp_path / "train.jsonl").write_text(3 * (json.dumps({"messages": turns}) + "\n"))
    found = training_lengths(DataConfig(train=str(tmp_path / "train.jsonl")), model, 0)
    assert "can't be used" in found.reason and found.learned < found.longest < 50


def no_options(example: Example) -> tuple[str, ...]:
    raise AssertionError("there are none")


def test_a_task_is_asked_with_its_longest_prompt(data: str, model: Path) -> None:
    task = TaskConfig(data=data)
    asked = task_lengths(task, model, no_options)
    assert asked is not None and asked.items == 90 and asked.longest is not None
    shots, bound = task_lengths(TaskConfig(data=data, shots=2), model, no_options), task_lengths(task, None, no_options)
    assert shots is not None and shots.longest is None
    assert bound is not None and bound.longest is not None and asked.longest < bound.longest < 1024
    texts = task_lengths(TaskConfig(data=data, kind="loss"), model, no_options)
    assert texts is not None and texts.scored is not None and texts.scored.options == 0
    assert texts.longest == training_lengths(DataConfig(train=data), model, 0).longest
    assert task_lengths(TaskConfig(data=data, kind="loss"), None, no_options) is None
