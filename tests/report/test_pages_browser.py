"""The pages of `compare --report`, `select` and `sweep` in a real browser with scripts off: on a screen, a telephone
and paper, with plain and with hostile names and texts."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import pytest

from tests.browser import PAPER, Box, Seen, View, browser, call, look
from tests.report.pages import PAGES, SCRIPT

SCREEN, PHONE = (1280, 900), (390, 844)
WHERE = {"screen": SCREEN, "phone": PHONE, "paper": PAPER}
SELECTOR = "h1, .lead, .tile, figure svg, .stack tbody tr, main script, main h1, .plain li, .said"
Key = tuple[str, bool, str]  # the page, whether it is hostile, where it is seen


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    browser()  # skips first
    return {
        (name, hostile): make(tmp_path_factory.mktemp(name), hostile=hostile)
        for name, make in PAGES.items()
        for hostile in (False, True)
    }


@pytest.fixture(scope="module")
def seen(pages: dict[tuple[str, bool], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Key, Seen]:
    """All pages in all places, in one start of the browser."""
    keys = [(*page, where) for page in pages for where in WHERE]
    views = [View(pages[name, hostile], WHERE[where], SELECTOR, where == "paper") for name, hostile, where in keys]
    return dict(zip(keys, look(views, tmp_path_factory.mktemp("browser")), strict=True))


def first_screen(found: Seen, size: tuple[int, int]) -> list[Box]:
    return [box for box in found.boxes if box.within(*size)]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_cut_off_and_nothing_overlaps(name: str, hostile: bool, where: str, seen: dict[Key, Seen]) -> None:
    found = seen[name, hostile, where]
    assert found.width == WHERE[where][0]
    assert not found.beyond and not found.overlaps and not found.scrolled


@pytest.mark.parametrize("size", ["screen", "phone"])
def test_the_first_screen_of_a_comparison_has_the_verdict_with_its_interval(size: str, seen: dict[Key, Seen]) -> None:
    shown = first_screen(seen["comparison", False, size], WHERE[size])
    assert shown[0].text.startswith("tuned is better than base-nf4: mean absolute error $")
    base, tuned = [box.text for box in shown if "tile" in box.classes]
    assert "base-nf4" in base and "95 % interval $" in base
    assert "better" in tuned and "difference from base-nf4" in tuned and "95 % interval −" in tuned and "wins" in tuned


@pytest.mark.parametrize("size", ["screen", "phone"])
def test_the_first_screen_of_a_selection_has_the_recommendation_and_the_picture(
    size: str, seen: dict[Key, Seen]
) -> None:
    for hostile in (False, True):
        shown = first_screen(seen["selection", hostile, size], WHERE[size])
        assert shown[0].text.startswith("Recommended: ")
        assert any("memory to tune it (GB)" in box.text for box in shown)
    if size == "screen":
        shown = first_screen(seen["selection", False, size], SCREEN)
        assert any("Item by item, each of the 2 others is worse" in box.text for box in shown)


@pytest.mark.parametrize("size", ["screen", "phone"])
def test_the_first_screen_of_a_sweep_has_the_best_trial_and_what_mattered(size: str, seen: dict[Key, Seen]) -> None:
    for hostile in (False, True):
        shown = first_screen(seen["sweep", hostile, size], WHERE[size])
        assert re.match(r"Best of 14 trials: tune.learning_rate 0.00\d+, .*\(validation loss 1\.2", shown[0].text)
        assert any(re.search("What mattered.*: tune.learning_rate [0-9]+ %", box.text) for box in shown)
        assert any("On the test set, against the base" in box.text for box in shown)
        assert any("Winner" in box.text for box in shown)
    if size == "screen":
        drawn = [box.text for box in first_screen(seen["sweep", False, size], SCREEN)]
        assert any("share" in text and "adapter.rank" in text for text in drawn)  # the picture


@pytest.mark.parametrize("name", PAGES)
def test_what_models_and_data_say_is_text(
    name: str, seen: dict[Key, Seen], pages: dict[tuple[str, bool], Path]
) -> None:
    found = seen[name, True, "screen"].boxes
    headings = [box for box in found if box.text == "taken"]
    assert not headings and any(SCRIPT.partition("<h1")[0] in box.text for box in found)
    text = pages[name, True].read_text(encoding="utf-8")
    assert "<script" not in text and "\u202e" not in text
    if name == "comparison":  # a character that turns the text around it shows as its code
        assert any(r"\u202egnihtyna tsomla" in box.text for box in found)


@pytest.mark.parametrize("name", PAGES)
def test_it_prints(name: str, pages: dict[tuple[str, bool], Path], tmp_path: Path) -> None:
    """That nothing is cut off on paper is seen above; here, that pages with text come out of it."""
    file = tmp_path / "page.pdf"
    call(pages[name, False], tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={file}")
    made = file.read_bytes()
    assert made.startswith(b"%PDF") and 1 <= made.count(b"/Type /Page\n") <= 6
    drawn = b"".join(_unpacked(part) for part in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", made, re.DOTALL))
    assert drawn.count(b"TJ") + drawn.count(b"Tj") > 40  # pieces of text


def _unpacked(part: bytes) -> bytes:
    try:
        return zlib.decompress(part)
    except zlib.error:
        return b""
