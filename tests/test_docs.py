"""The documents say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from halfbyte.config import RunConfig, TaskConfig

ROOT = Path(__file__).parents[1]


def options_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("options_table", ROOT / "tools" / "options_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("cls", [RunConfig, TaskConfig])
def test_every_option_stands_in_the_documents(cls: type) -> None:
    text = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    missing = [line for line in options_table().table(cls).splitlines() if line not in text]
    assert not missing, f"run tools/options_table.py and put these into docs/files.md: {missing}"


def test_what_the_readme_points_to_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("docs/files.md", "NOTICE", "CONTRIBUTING.md", "constraints.txt", "docs/performance.md",
                 "docs/choosing.md"):  # fmt: skip
        assert name in text and (ROOT / name).exists()
