"""The fingerprint of a model's tokenizer: the files that make tokens of text, in a checkpoint's folder. No torch."""

from __future__ import annotations

from pathlib import Path

from halfbyte.provenance import digest, file_digest

# What transformers makes a tokenizer of, chat templates included
PATTERNS = ("tokenizer*", "*.model", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json",
            "chat_template*", "additional_chat_templates/*.jinja", "*.tiktoken")  # fmt: skip
GENERATION = "generation_config.json"


def tokenizer_fingerprint(folder: Path, *also: str) -> str | None:
    """A SHA-256 over the names and all bytes of the tokenizer's files, and of those that `also` names (GENERATION: what
    else answers depend on, beside weights and config.json); None where there is none of them."""
    files = {file for pattern in (*PATTERNS, *also) for file in folder.glob(pattern) if file.is_file()}
    return digest({file.relative_to(folder).as_posix(): file_digest(file) for file in files}) if files else None
