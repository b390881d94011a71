"""A real browser, headless: what pages show, and where, in windows of given sizes; one start for many of them.

A page of halfbyte holds no script and forbids any by its Content-Security-Policy. So each is opened in a frame of its
own in which scripts are off, its policy untouched, and the document around the frames measures them.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PAPER = (718, 1046)  # what is printed of an A4 page, in pixels, within the browser's own margins
_MEASURE = (Path(__file__).parent / "measure.js").read_text(encoding="utf-8")


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


@dataclass(frozen=True)
class View:
    """A page in a window of `size`, of which the elements of `selector` are looked at; `printed`: as on paper."""

    page: Path
    size: tuple[int, int]
    selector: str = "h1"
    printed: bool = False


@dataclass(frozen=True)
class Seen:
    """What is seen in a view, and what is wrong with it."""

    boxes: list[Box]  # the selector's elements, in order
    width: int  # that the page takes
    beyond: list[str]  # texts and pictures that leave the window, outside of what can be scrolled
    overlaps: list[str]  # texts that lie upon each other
    scrolled: list[str]  # tables that are wider than their room


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


def look(views: Sequence[View], folder: Path) -> list[Seen]:
    """What is seen in each of `views`; `folder` is for the browser's files."""
    frames = []
    for view in views:
        (width, height), text = view.size, html.escape(view.page.read_text(encoding="utf-8"))
        asked = html.escape(json.dumps({"selector": view.selector, "printed": view.printed}))
        frames.append(f'<iframe sandbox="allow-same-origin" width="{width}" height="{height}" style="border:0"'
                      f' data-asked="{asked}" srcdoc="{text}"></iframe>')  # fmt: skip
    around = folder / "frames.html"
    around.write_text(f"<!doctype html><meta charset=utf-8>{''.join(frames)}<script>{_MEASURE}</script>")
    shown = call(around, folder / "profile", "--window-size=1400,1000", "--dump-dom").stdout.decode()
    match = re.search(r'<pre id="measured">(.*?)</pre>', shown, re.DOTALL)
    assert match, shown[:500]
    found = json.loads(html.unescape(match[1]))
    assert len(found) == len(views)
    return [Seen(**{**one, "boxes": [Box(**box) for box in one["boxes"]]}) for one in found]


def seen(page: Path, folder: Path, selector: str, size: tuple[int, int] = (1280, 800)) -> tuple[list[Box], int]:
    """(the elements of `selector`, in order; the width that the page takes) in a window of `size`."""
    (found,) = look([View(page, size, selector)], folder)
    return found.boxes, found.width
