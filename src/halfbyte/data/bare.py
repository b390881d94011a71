"""A model's tokenizer from its files alone, by the `tokenizers` library: a plan must not wait for transformers.

It offers the part of a transformers tokenizer that `Encoder` uses for plain text, so that the very same code makes the
same tokens; only what a tokenizer's class adds to its files (some put a BOS of their own) is left out. Chat templates
are programs that transformers runs: `has_chat_template` says that there is one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halfbyte.errors import DataError


class BareTokenizer:
    """tokenizer.json and the names of the special tokens in the other files of `folder`. Raises DataError."""

    chat_template = None

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer  # not before it is needed: a plan of a model does without

        file = folder / "tokenizer.json"
        if not file.is_file():
            raise DataError("the model's folder has no tokenizer.json", where=folder, do="copy it there")
        settings = _settings(folder)
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more special
            raise DataError("tokenizer.json can't be read", where=file, found=str(error).split("\n")[0],
                            do="use the model's own file") from None  # fmt: skip
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.bos_token, eos, pad = (_token(settings, f"{name}_token") for name in ("bos", "eos", "pad"))
        self.eos_token_id, self.pad_token_id = self._id(eos), self._id(pad)

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._tokenizer.token_to_id(token)

    def __call__(self, text: str | Sequence[str], *, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else list(text)
        made = [one.ids for one in self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)]
        return {"input_ids": made[0] if isinstance(text, str) else made}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False, **_: Any) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


def has_chat_template(folder: Path) -> bool:
    """Whether transformers would find a chat template there."""
    files = (folder / "chat_template.jinja", folder / "chat_template.json")
    return any(file.is_file() for file in files) or bool(_settings(folder).get("chat_template"))


def _settings(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json says; of the special tokens, what special_tokens_map.json says where it does not."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            values = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        found |= values if isinstance(values, dict) else {}
    return found


def _token(settings: dict[str, Any], name: str) -> str | None:
    value = settings.get(name)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None
