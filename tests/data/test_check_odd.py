"""Odd letters: what is damaged is named, what belongs to a language is not."""

import pytest

from halfbyte.data.check_odd import oddities


@pytest.mark.parametrize(
    "text",
    [
        "plain text\twith\nlines",
        "naïve façade Ångström €5 — “q” … œuvre, NÃO, São, «CAFÉ», «IRMÃ»",
        "привет ελληνικά 日本語 हिन्दी עברית",
        "👩‍👩‍👧 می‌خواهم 5 °C £5",
    ],
)
def test_ordinary_texts(text):
    assert oddities(text) == []


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("a\x00b", "nul", "'a\\x00b'"),
        ("\x93quoted\x94", "control", "'\\x93quoted\\x94'"),
        ("one\r\ntwo", "carriage_return", "'one\\r\\ntwo'"),
        ("caf\ufffd", "replacement", "'caf\\ufffd'"),
        ("zero\u200bwidth", "invisible", "'zero\\u200bwidth'"),
        ("\ufeffmark", "invisible", "'\\ufeffmark'"),
        ("abc\u202edef", "invisible", "'abc\\u202edef'"),
    ],
)
def test_odd_letters(text, kind, shown):
    assert oddities(text) == [(kind, shown)]


@pytest.mark.parametrize("text", ["café", "don’t", "5 °C", "£5", "TÉ", "cœur", "привет", "😀"])
def test_utf8_read_as_windows_1252(text):
    garbled = "".join(
        bytes([byte]).decode("cp1252") if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(byte)
        for byte in text.encode()
    )
    assert oddities(text) == [] and "mojibake" in dict(oddities(garbled))


def test_each_kind_is_named_once():
    assert [kind for kind, _ in oddities("\x00\x00\r\r\ufffd\u200b\u200b")] == [
        "nul", "carriage_return", "replacement", "invisible",
    ]  # fmt: skip
