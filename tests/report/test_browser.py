"""The report in a real browser: what its first screen shows, on paper, and that no script can run in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfbyte.report.page import report
from tests.browser import browser, call, seen
from tests.report.synthetic import write_run

SIZE = (1280, 800)
FIRST = "h1, .tile, .two.wide h2, .worst tbody tr"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    browser()  # skips first
    return report(write_run(tmp_path_factory.mktemp("run") / "run"))


def test_the_first_screen_answers_the_five_questions(page: Path, tmp_path: Path) -> None:
    boxes, width = seen(page, tmp_path, FIRST, SIZE)
    assert width <= SIZE[0]
    shown = [box for box in boxes if box.within(*SIZE)]
    base, tuned, difference, memory = [box for box in shown if "tile" in box.classes]
    assert "Base model" in base.text and "$729.93" in base.text and "95 % interval" in base.text
    assert "Tuned model" in tuned.text and "$7.39" in tuned.text and "95 % interval" in tuned.text
    assert "better" in difference.text and "70 wins, 8 losses, 2 ties" in difference.text
    assert "600\xa0MB" in memory.text and "640\xa0MB planned" in memory.text
    assert shown[0].text.startswith("Tuning made it better")
    wrong = next(at for at, box in enumerate(shown) if box.text == "What the tuned model still gets wrong")
    worst = [box.text for box in shown[wrong + 1 :]]
    assert len(worst) == 3 and all("LEGO set Set" in text for text in worst)


def test_it_fits_a_narrow_window(page: Path, tmp_path: Path) -> None:
    boxes, width = seen(page, tmp_path, ".tile", (500, 900))
    assert width <= 500 and all(box.left >= 0 and box.right <= 500 for box in boxes)
    assert len({box.top for box in boxes}) > 1  # one below the other


def test_it_prints(page: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.pdf"
    call(page, tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={file}")
    made = file.read_bytes()
    assert made.startswith(b"%PDF") and 2 <= made.count(b"/Type /Page\n") <= 12


def test_no_script_runs_in_it(page: Path, tmp_path: Path) -> None:
    """Its policy turns JavaScript off, and what a model wrote is text."""
    evil = "<script>document.title = 'taken'</script>"
    copy = tmp_path / "evil.html"
    copy.write_text(page.read_text().replace("</main>", f"{evil}</main>"))
    answered = call(copy, tmp_path / "profile", "--dump-dom")
    assert "taken" in answered.stdout.decode() and "<title>taken" not in answered.stdout.decode()
    assert b"Content Security Policy" in answered.stderr
    lines = call(page, tmp_path / "profile", "--dump-dom")
    assert b"Content Security Policy" not in lines.stderr and b"Tuning made it better" in lines.stdout


@pytest.mark.parametrize("text", ["<img src=x onerror=\"document.title='taken'\">", "<h1>Tuning made it worse</h1>"])
def test_what_a_model_says_is_shown_as_text(text: str, tmp_path: Path) -> None:
    browser()
    made = report(write_run(tmp_path / "run", items=20, tuned=lambda lot, true: f"{lot.randint(500, 900)} {text}"))
    boxes, _ = seen(made, tmp_path, "h1, img, .worst td .said", SIZE)
    assert len(boxes) == 1 + 3  # one heading, no picture, three worst answers
    assert [text in box.text for box in boxes] == [False, True, True, True]
