"""A small soak; `make soak` is the large one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.soak", "--kills", "3", "--inside", "1", "--between", "1", "--epochs", "1",
               "--no-task", "--out", folder / "soak.json"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((folder / "soak.json").read_text())
    assert found["kills"] >= 3 and found["where"]["inside a checkpoint write"] >= 1 and not found["faults"]
