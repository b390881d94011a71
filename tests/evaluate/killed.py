"""Evaluate a tiny model and die of SIGKILL after N batches: `python -m tests.evaluate.killed TASK OUT N`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from halfbyte.config import load_task
from halfbyte.evaluate.evaluate import evaluate_task
from tests.evaluate.models import plain_model

if __name__ == "__main__":
    torch.set_num_threads(1)
    task, out, batches = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    seen = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == batches:
            os.kill(os.getpid(), signal.SIGKILL)

    evaluate_task(plain_model(), load_task(task), out, variant="x", batch=4, progress=progress)
