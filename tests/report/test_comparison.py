"""The page of a comparison: whole, self-contained, escaped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from halfbyte.errors import HalfbyteError
from halfbyte.evaluate.compare import compare_several
from halfbyte.report.comparison import write_page
from tests.evaluate.test_compare import exact, folder, numbers
from tests.report.test_page import Page

HOSTILE = '<script>alert("x")</script>'


def page_of(file: Path, folders: list[Path], **options: object) -> tuple[str, Page]:
    write_page(file, folders, compare_several(folders, **options))
    text = file.read_text(encoding="utf-8")
    return text, Page(text)


def three(place: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    truth = list(generator.uniform(10, 100, size=120))
    spreads = {"base-nf4": 20, "tuned": 5, "again": 20}
    return [numbers(place / name, [t + generator.normal(scale=s) for t in truth], truth) for name, s in spreads.items()]


def test_a_page_says_what_was_found_and_stands_alone(tmp_path: Path) -> None:
    a, b, _ = three(tmp_path)
    text, page = page_of(tmp_path / "out" / "page.html", [a, b], detect=1.0)
    told = " ".join(" ".join(page.texts).split())
    assert "tuned is better than base-nf4: mean absolute error" in told and "on the same 120 items" in told
    assert "95 % interval" in told and "wins" in told and "80 % of the time" in told and "1 would take" in told
    assert "Improved most" in told and "Worsened most" in told and "answer " in told and "no number in it" in told
    assert "fingerprint" in told and "Is the difference real?" in told
    assert not {"script", "link", "img", "iframe"} & page.tags
    assert not [value for _, name, value in page.attributes if name in ("src", "href") and not value.startswith("#")]
    assert len(page.ids) == len(set(page.ids)) and "@media print" in text


def test_several_are_one_page(tmp_path: Path) -> None:
    text, page = page_of(tmp_path / "page.html", three(tmp_path))
    told = " ".join(" ".join(page.texts).split())
    assert "2 against base-nf4" in told and "better: tuned" in told and "no detectable difference: 1" in told
    assert "adjusted for the number of comparisons (Holm)" in told
    assert told.count("What changed most:") == 2
    assert text.count("<figure") == 1


def test_two_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    a = exact(tmp_path / "one" / "tuned", [True] * 50 + [False] * 70)
    b = exact(tmp_path / "two" / "tuned", [True] * 80 + [False] * 40)
    _, page = page_of(tmp_path / "page.html", [a, b])
    told = " ".join(page.texts)
    assert "two/tuned is better than one/tuned" in told
    assert "Improved most" in told and "wins" in told


def test_no_change_at_all_is_said(tmp_path: Path) -> None:
    a, b = (exact(tmp_path / name, [True] * 50 + [False] * 70) for name in "ab")
    _, page = page_of(tmp_path / "page.html", [a, b])
    assert any("Not a single item scored otherwise." in text for text in page.texts)
    assert any("No detectable difference between b and a" in text for text in page.texts)


def test_text_of_models_and_data_is_escaped(tmp_path: Path) -> None:
    places = []
    for name, hit in (("a", 0.0), ("b", 1.0)):
        place = folder(tmp_path / name, [{"exact_match": hit, "answered": 1.0}] * 120, "exact", template=HOSTILE)
        for file in ("predictions.jsonl", "result.json"):
            text = (place / file).read_text()
            for old in ("prompt 1", "answer 1", "reference 1", '"task": "t'):
                text = text.replace(old, old + HOSTILE.replace('"', '\\"'))
            (place / file).write_text(text)
        places.append(place)
    text, page = page_of(tmp_path / "page.html", places)
    assert "script" not in page.tags and "<script" not in text
    assert any(HOSTILE in shown for shown in page.texts)


def test_a_page_that_can_not_be_written_is_an_error(tmp_path: Path) -> None:
    a, b, _ = three(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(HalfbyteError, match="the page can't be written"):
        write_page(tmp_path / "file" / "page.html", [a, b], compare_several([a, b]))
