"""What the tokenizer says: lengths, what lies beyond the context, and how numbers are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from halfbyte.config import DataConfig, TaskConfig
from halfbyte.data.encode import Encoder
from halfbyte.data.template import load_examples
from halfbyte.errors import DataError
from halfbyte.evaluate.tasks import load_task_set
from halfbyte.select.reading import asked_lengths, context_of, numbers_of, training_lengths
from tests.select.folders import data_file
from tests.tiny import tiny_tokenizer


def tokenizer(pattern: str, words: list[str]) -> Any:
    """One whose tokens are the pieces that `pattern` matches, as far as they are in `words`; else single characters."""
    names = ["</s>", *dict.fromkeys([*words, *" 0123456789"])]
    made = Tokenizer(models.WordPiece({name: at for at, name in enumerate(names)}, unk_token="</s>",
                                      continuing_subword_prefix=""))  # fmt: skip
    made.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="</s>")


THREE = [f"{number:03}" for number in range(1000)] + [f"{number:02}" for number in range(100)]


@pytest.mark.parametrize(
    ("pattern", "words", "style"),
    [
        ("[0-9]", [], "digit by digit"),
        ("[0-9]{1,3}", THREE, "in threes, from the left"),
        ("[0-9]{1,3}(?=(?:[0-9]{3})*(?![0-9]))", THREE, "in threes, from the right"),
        ("[0-9]+", [str(number) for number in range(10000)], "whole numbers, as far as its vocabulary has them"),
        ("[0-9]+", ["42", "365", "19", "84"], "in pieces of its vocabulary, of any length"),
    ],
)
def test_how_numbers_are_written(pattern: str, words: list[str], style: str) -> None:
    found = numbers_of(tokenizer(pattern, words), ["it costs 1999", "7"])
    assert found.style == style
    assert found.example.startswith("1999 → ") and found.example.count("|") == len(found.example.split("|")) - 1


def test_the_example_is_the_longest_number_of_the_data() -> None:
    found = numbers_of(tiny_tokenizer(), ["9.99", "1,299.50 dollars", "none"])
    shown, pieces = found.example.split(" → ")
    assert shown == "1,299.50" and pieces.replace(" | ", "") == "1,299.50"
    assert numbers_of(tiny_tokenizer(), ["none at all"]).example.startswith("1234567 → ")


def test_the_context_is_read_from_either_name() -> None:
    assert context_of({"max_position_embeddings": 512}) == 512
    assert context_of({"n_positions": 1024}) == 1024 and context_of({}) is None


@pytest.mark.parametrize(("kind", "more"), [("number", {}), ("loss", {}), ("choice", {"options": ["1.99", "12.99"]})])
def test_lengths_are_those_that_evaluate_checks(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    lines = [{"prompt": f"set {'very ' * at}big costs $", "completion": ("1.99", "12.99")[at % 2]} for at in range(12)]
    task = TaskConfig(name="t", kind=kind, data=str(data_file(tmp_path / "test.jsonl", lines)), **more)
    encoder = Encoder(tiny_tokenizer())
    whole = asked_lengths(encoder, load_task_set(task), None)
    assert whole.items == 12 and whole.beyond == 0 and whole.mean < whole.longest
    limit = whole.longest - 1
    assert asked_lengths(encoder, load_task_set(task), limit).beyond >= 1
    assert asked_lengths(encoder, load_task_set(task), whole.longest).beyond == 0


def test_training_items_are_cut_at_the_context(tmp_path: Path) -> None:
    lines = [{"prompt": f"set {'very ' * at}big costs $", "completion": "9.99"} for at in range(12)]
    examples = load_examples(str(data_file(tmp_path / "train.jsonl", lines)))
    encoder = Encoder(tiny_tokenizer())
    whole = training_lengths(encoder, examples, DataConfig(), None)
    assert whole.cut == 0 and whole.items == 12 and whole.most == 1024
    short = training_lengths(encoder, examples, DataConfig(), whole.longest - 4)
    assert short.cut >= 1 and short.longest == short.most == whole.longest - 4


def test_no_training_item_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        training_lengths(Encoder(tiny_tokenizer()), [], DataConfig(), None)
