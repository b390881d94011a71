"""The tokenizer's file alone gives the tokens that transformers gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from halfbyte.data.bare import BareTokenizer, has_chat_template
from halfbyte.data.encode import Encoder
from halfbyte.data.template import Example
from halfbyte.errors import DataError
from tests import stories
from tests.tiny import tiny_tokenizer

TEXTS = ("", "a", "Once upon a time", "äöü 漢字 9.99\n", "  two  spaces ")


@pytest.fixture(params=["stories", "tiny", "no bos"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tokenizer = stories.tokenizer() if request.param == "stories" else tiny_tokenizer(add_bos=request.param == "tiny")
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_tokens_prompts_and_items_are_those_of_transformers(folder: Path) -> None:
    ours, theirs = Encoder(BareTokenizer(folder), "off"), Encoder(AutoTokenizer.from_pretrained(folder), "off")
    assert (ours.eos, ours.pad, ours.prefix) == (theirs.eos, theirs.pad, theirs.prefix)
    for text in TEXTS:
        example = Example(text, "12.50", None, Example.of_prompt(text).record)
        assert ours.prompt(example) == theirs.prompt(example)
        assert ours.item(example) == theirs.item(example)


def test_what_is_missing_or_broken_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        BareTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="can't be read"):
        BareTokenizer(tmp_path)


def test_a_chat_template_is_seen_wherever_it_stands(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    assert not has_chat_template(tmp_path)
    tiny_tokenizer(chat_template="{{ messages }}").save_pretrained(tmp_path)
    assert has_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert has_chat_template(tmp_path)
