"""Tiny checkpoints, made once a session; whoever changes one copies it first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.tiny import tiny_checkpoint

Make = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """tiny(family, **options) -> a folder to be read, never written."""
    made: dict[str, Path] = {}

    def make(family: str, **options: Any) -> Path:
        key = family + repr(sorted(options.items()))
        if key not in made:
            made[key] = tiny_checkpoint(family, tmp_path_factory.mktemp(family), **options)
        return made[key]

    return make


@pytest.fixture
def copied(tiny: Make, tmp_path: Path) -> Make:
    """copied(family, **options) -> a folder of the test's own."""

    def make(family: str, **options: Any) -> Path:
        return Path(shutil.copytree(tiny(family, **options), tmp_path / "model"))

    return make
