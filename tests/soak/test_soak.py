"""A small soak; `make soak` is the large one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.soak.__main__ import Soak
from tests.soak.child import TRAINS, WRITES, WRITTEN, Child

ROOT = Path(__file__).parents[2]
SMALL = ["--kills", "3", "--inside", "1", "--between", "1", "--epochs", "1", "--no-task"]
FORGETS = """if True:
    import shutil, sys
    from pathlib import Path
    from halfbyte.tune import run
    from tests.soak.__main__ import main

    restore = run._restore
    def forgets(state, model, config, *rest):
        shutil.rmtree(Path(config.out) / "checkpoints", ignore_errors=True)
        restore(state, model, config, *rest)
    run._restore = forgets
    sys.exit(main())
"""


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.soak", *SMALL, "--out", folder / "soak.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((folder / "soak.json").read_text())
    assert found["kills"] >= 3 and found["where"]["inside a checkpoint write"] >= 1 and not found["faults"]


def test_a_resume_that_begins_anew_is_found_though_it_comes_to_the_same_end(folder: Path) -> None:
    command = [sys.executable, "-c", FORGETS, *SMALL, "--out", folder / "soak.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(folder)})
    assert done.returncode == 1, done.stdout + done.stderr
    (fault, *_) = json.loads((folder / "soak.json").read_text())["faults"]
    assert "it did not go on from step" in fault or "was lost" in fault


def test_the_time_of_a_write_is_learned() -> None:
    child, soak = object.__new__(Child), Soak(Path("nowhere"), 0, task=False)
    child.seen, child.began, child.trains_after, child.writes, child._write_began = b"", time.monotonic(), 0.0, [], None
    child._reader, writer = os.pipe()
    for byte, pause in ((TRAINS, 0.0), (WRITES, 0.2), (WRITTEN, 0.0), (WRITES + WRITTEN, 0.0)):
        os.write(writer, byte)
        assert child._read(1)
        time.sleep(pause)
    os.close(writer)
    os.close(child._reader)
    soak._learn(child)
    assert len(child.writes) == 1 and soak.write >= 0.1 and child.trains_after > 0
