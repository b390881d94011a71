"""Odd encodings in a text: what a person does not see, and a model learns to write.

Not odd, as they belong to scripts and emoji: zero-width joiners and non-joiners (U+200C, U+200D), the marks of writing
direction (U+200E, U+200F), no-break spaces.
"""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_INVISIBLE = re.compile("[\u00ad\u200b\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
# UTF-8 that was read as Windows-1252 (or Latin-1): a lead byte and those that follow it, as that code page shows them
_BYTES = "".join(bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xC0)) + "\x81\x8d\x8f\x90\x9d"
_TAIL = f"[\x80-\xbf{re.escape(_BYTES)}]"
_QUOTES = "»”“’"  # may follow a capital letter in their own right: „CAFÉ“, «IRMÃ»
_MOJIBAKE = re.compile(
    f"(?:(?<![A-ZÀ-Þ])[ÂÃ]{_TAIL}|[ÂÃ](?![{_QUOTES}]){_TAIL}"  # two bytes: é as Ã©
    f"|(?<=[A-Za-z])Å“(?=[a-z])"  # œ
    f"|â{_TAIL}{_TAIL}|ð{_TAIL}{_TAIL}{_TAIL}"  # three bytes: ’ as â€™; four: emoji
    f"|(?:[ÎÏÐÑØÙ]{_TAIL}){{3,}})"  # Greek, Cyrillic, Arabic: only several in a row, as each alone may be meant
)
_SHOWN = 12  # characters on each side of what is shown


def oddities(text: str) -> list[tuple[str, str]]:
    """(kind, the place in the text) of every kind of odd character that `text` holds, each kind once."""
    found = []
    if _CONTROL.search(text):
        nul = text.find("\x00")
        at = _CONTROL.search(text)
        assert at is not None
        found.append(("nul", _around(text, nul, 1)) if nul >= 0 else ("control", _around(text, at.start(), 1)))
    if "\r" in text:
        found.append(("carriage_return", _around(text, text.index("\r"), 1)))
    if text.isascii():
        return found
    if "\ufffd" in text:
        found.append(("replacement", _around(text, text.index("\ufffd"), 1)))
    for kind, pattern in (("invisible", _INVISIBLE), ("mojibake", _MOJIBAKE)):
        if at := pattern.search(text):
            found.append((kind, _around(text, at.start(), at.end() - at.start())))
    return found


def _around(text: str, at: int, length: int) -> str:
    """The place, with what can't be seen as an escape."""
    part = text[max(0, at - _SHOWN) : at + length + _SHOWN]
    return "'" + "".join(_visible(letter) for letter in part) + "'"


def _visible(letter: str) -> str:
    if letter.isprintable() and letter != "\ufffd":
        return letter
    return letter.encode("unicode_escape").decode() if letter != "\ufffd" else "\\ufffd"
