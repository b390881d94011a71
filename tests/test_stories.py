"""The pretrained test model says what its author prints, and its tokenizer reads what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.stories import STORY, stories


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stories(tmp_path_factory.mktemp("stories") / "stories260K")


def test_greedy_continuation_is_the_published_one(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    start = torch.tensor([[tokenizer.bos_token_id]])
    made = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=110, do_sample=False)
    text = tokenizer.decode(made[0], skip_special_tokens=True).strip()
    assert text.startswith(STORY)
    written = made[0].tolist()[: len(tokenizer(STORY)["input_ids"])]
    assert tokenizer(STORY)["input_ids"] == written  # our merges cut the text as the model's own pieces do


def test_tokenizer_knows_words_bytes_and_one_bos(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(STORY)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.unk_token_id not in ids
    assert len(ids) < len(STORY) / 2
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == STORY
    for text in ("A cake costs 5 €.", "naïve\ttabs"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text
