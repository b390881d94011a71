"""Packing a folder, and what a folder holds."""

from pathlib import Path
from typing import Any

from halfbyte.checkpoint.load import load_state
from halfbyte.checkpoint.pack import PackReport, pack
from halfbyte.checkpoint.skeleton import skeleton
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.formats import Weights


def state_of(folder: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(str(folder))
    return dict(load_state(checkpoint, skeleton(checkpoint)))


def packed(folder: Path, out: Path, weights: Weights) -> PackReport:
    return pack(open_checkpoint(str(folder)), out, weights)
