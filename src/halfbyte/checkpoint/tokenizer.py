"""The fingerprint of a model's tokenizer: the files that make tokens of text, in a checkpoint's folder. No torch."""

from __future__ import annotations

from pathlib import Path

from halfbyte.provenance import digest, file_digest

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
         "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json")  # fmt: skip


def tokenizer_fingerprint(folder: Path) -> str | None:
    """A SHA-256 over the names and all bytes of the tokenizer's files; None where there is none of them."""
    found = {name: file_digest(folder / name) for name in FILES if (folder / name).is_file()}
    return digest(found) if found else None
