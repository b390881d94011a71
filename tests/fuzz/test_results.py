"""What a fuzzer left, or how it ended, becomes a line of the account."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from fuzz import __main__ as fuzz
from fuzz import build, results

LEAVES = "import sys; open([a for a in sys.argv if 'artifact' in a][0].split('=')[1] + 'crash-1', 'w'); sys.exit(77)"


@pytest.mark.parametrize(
    ("does", "found"),
    [
        ("pass", []),
        (LEAVES, ["header-crash-1"]),
        ("import os; os.kill(os.getpid(), 9)", ["exit -9"]),
        ("import os; os.abort()", ["exit -6"]),
        ("raise ImportError", ["exit 1"]),
        ("import os; os.kill(os.getpid(), 15)", []),
        ("import sys; sys.exit(143)", []),
        ("import sys; sys.exit(72)", []),
    ],
)
def test_a_fuzzer_that_dies_without_an_input_is_a_finding(
    does: str, found: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "results.jsonl").write_text("")
    monkeypatch.setattr(results, "FILE", folder / "results.jsonl")
    monkeypatch.setattr(build, "BUILD", folder)
    monkeypatch.setattr(fuzz, "FINDINGS", folder / "findings")
    monkeypatch.setattr(fuzz, "command", lambda _: [sys.executable, "-c", f"print('#500', flush=True); {does}"])
    options = argparse.Namespace(total=0, runs=10, seconds=1, keep=False)
    assert fuzz.fuzz("header", options) == len(found)
    (run,) = results.of("header")
    assert (run["inputs"], run["findings"]) == (500, found)
    assert results.since_finding("header") == (0 if found else 500)
