"""Checks of texts, before they are tokens: odd letters, empty prompts, special tokens that are spelt out."""

from __future__ import annotations

import re
from collections.abc import Iterator

from halfbyte.data.check_odd import oddities
from halfbyte.data.check_report import NOTE, WARNING, Finding
from halfbyte.data.check_tally import Says, Tallies
from halfbyte.data.dataset import ends_unanswered
from halfbyte.data.encode import Encoder
from halfbyte.data.template import Example

_SAYS = {
    "special_token": Says(
        WARNING,
        "{count} of {total} items spell out a special token: it becomes that token, as if the text ended or another"
        " turn began there",
        "take it out, unless it is meant",
    ),
    "empty_prompt": Says(WARNING, "{count} of {total} items have an empty prompt", "leave them out, or ask something"),
    "trimmed": Says(
        WARNING,
        "the chat template takes off the outer white space of contents; {count} of {total} items have some",
        "nothing, unless that space is meant",
    ),
    "after_last_answer": Says(
        WARNING,
        "{count} conversations go on after the assistant's last turn; what follows it is left out",
        "end them with an answer",
    ),
    "nul": Says(WARNING, "{count} of {total} items hold NUL characters (U+0000)", "take them out"),
    "control": Says(
        WARNING,
        "{count} of {total} items hold control characters",
        "take them out, or decode the file as what it is (Windows-1252?)",
    ),
    "carriage_return": Says(
        WARNING,
        "{count} of {total} items hold carriage returns (\\r)",
        "write line ends as \\n: the model would learn to write both",
    ),
    "replacement": Says(
        WARNING,
        "{count} of {total} items hold replacement characters (U+FFFD), where a decoder met bytes it did not know",
        "read the source again in its own encoding",
    ),
    "invisible": Says(
        WARNING,
        "{count} of {total} items hold invisible characters (zero-width spaces, byte order marks, soft hyphens,"
        " overrides of the writing direction)",
        "take them out",
    ),
    "mojibake": Says(
        WARNING,
        "{count} of {total} items hold UTF-8 that was read as Windows-1252 (Ã© for é)",
        "read the source again as UTF-8",
    ),
    "space_at_end": Says(
        NOTE,
        "{count} prompts end with a space; most tokenizers join a space to the word after it, so a base model goes on"
        " better where the completion begins with it instead",
        "move it from the prompt to the completion",
    ),
}
_NO_PROMPTS = Says(NOTE, "no item has a prompt: all of them are texts")
_LEAST_SPECIAL = 3  # characters; shorter special tokens stand in any text


class TextCheck:
    """`add` every example of every side."""

    def __init__(self, encoder: Encoder) -> None:
        tokenizer = encoder.tokenizer
        self.plain = encoder.chat is None
        self._bos, self._eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
        self._trimmed = encoder.chat.trimmed() if encoder.chat else frozenset[str]()
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        special = {token for token in special | set(tokenizer.all_special_tokens) if len(token) >= _LEAST_SPECIAL}
        longest_first = sorted(special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._tallies, self._total = Tallies(), 0

    def add(self, example: Example, *, test: bool) -> None:
        self._total += 1
        origin, tallies = example.record.origin, self._tallies
        for role, text in _texts(example):
            for kind, found in oddities(text):
                tallies[kind].add(origin, f"{role}: {found}")
            if at := self._special.search(self._without_ends(role, text)):
                tallies["special_token"].add(origin, f"{role}: {at[0]!r}")
            if role in self._trimmed and text != text.strip():
                tallies["trimmed"].add(origin, role)
            if role == "user" and not text.strip():
                tallies["empty_prompt"].add(origin, "" if example.messages is None else "a message of the user")
        if ends_unanswered(example):
            tallies["after_last_answer"].add(origin)
        if self.plain and not test and example.prompt.endswith(" "):
            tallies["space_at_end"].add(origin)

    def findings(self) -> Iterator[Finding]:
        texts = self._tallies["empty_prompt"].count == self._total
        says = _SAYS | {"empty_prompt": _NO_PROMPTS} if texts else _SAYS
        yield from self._tallies.findings(says, self._total)

    def _without_ends(self, role: str, text: str) -> str:
        """BOS at the beginning of a prompt and EOS at the end of an answer are what the encoder puts there, too."""
        return text.removeprefix(self._bos) if role == "user" else text.removesuffix(self._eos)


def _texts(example: Example) -> Iterator[tuple[str, str]]:
    """(role, text); a prompt is the user's and a completion the assistant's."""
    if example.messages is not None:
        yield from ((turn["role"], turn["content"]) for turn in example.messages)
        return
    if example.system:
        yield "system", example.system
    yield "user", example.prompt
    if example.completion is not None:
        yield "assistant", example.completion
