"""A real browser, headless: what a page shows, and where, in a window of a given size.

A page of halfbyte holds no script and forbids any by its Content-Security-Policy. To learn where things stand, `seen`
opens a copy without that line and with a script that only measures.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
_MEASURE = """<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll(%s)].map(one => {
    const box = one.getBoundingClientRect();
    return {text: one.innerText, classes: one.className, top: box.top, bottom: box.bottom, left: box.left,
            right: box.right};
  });
  const width = document.documentElement.scrollWidth;
  document.body.innerHTML = "<pre id='measured'></pre>";
  document.getElementById("measured").textContent = JSON.stringify({found, width});
});
</script>"""


@dataclass(frozen=True)
class Box:
    """An element: its text as it is shown, its classes, its place in pixels from the window's upper left corner."""

    text: str
    classes: str
    top: float
    bottom: float
    left: float
    right: float

    def within(self, width: int, height: int) -> bool:
        return self.left >= 0 and self.top >= 0 and self.right <= width + 0.5 and self.bottom <= height + 0.5


def browser() -> str:
    """The browser's program; skips the test where there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    return found


def call(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    """Open `page` with `options`; `profile` is the folder of the browser's own files."""
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               "--disable-extensions", "--hide-scrollbars", "--enable-logging=stderr", f"--user-data-dir={profile}",
               *options, page.resolve().as_uri()]  # fmt: skip
    return subprocess.run(command, capture_output=True, timeout=120, check=True)


def seen(page: Path, folder: Path, selector: str, size: tuple[int, int] = (1280, 800)) -> tuple[list[Box], int]:
    """(the elements of `selector`, in order; the width that the page takes) in a window of `size`."""
    text, count = _POLICY.subn("", page.read_text(encoding="utf-8"))
    assert count == 1, "the page forbids no scripts"
    copy = folder / "measured.html"
    copy.write_text(text.replace("</body>", _MEASURE % json.dumps(selector) + "</body>"), encoding="utf-8")
    shown = call(copy, folder / "profile", f"--window-size={size[0]},{size[1]}", "--dump-dom").stdout.decode()
    match = re.search(r'<pre id="measured">(.*?)</pre>', shown, re.DOTALL)
    assert match, shown[:500]
    measured = json.loads(html.unescape(match[1]))
    return [Box(**one) for one in measured["found"]], int(measured["width"])
