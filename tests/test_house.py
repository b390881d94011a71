"""The rules that shape the code, kept by tests: one way through, light imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import halfbyte

PACKAGE = Path(halfbyte.__file__).parent
STAGES = ("checkpoint", "plan", "model", "data", "tune", "evaluate", "select", "report", "sweep", "export", "demo")
BASE = {
    "config",
    "durable",
    "environment",
    "errors",
    "formats",
    "kernels",
    "memory",
    "notebook",
    "option_files",
    "options",
    "output",
    "progress",
    "provenance",
    "safe_yaml",
    "targets",
    "terminal",
}


def rank(module: str) -> int:
    """Place of `halfbyte.<part>...` on the one way through: base 0, stages in order, the top last."""
    part = module.removeprefix("halfbyte").lstrip(".").split(".")[0] or "__init__"
    if part in BASE:
        return 0
    return 1 + STAGES.index(part) if part in STAGES else 1 + len(STAGES)


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("halfbyte.")}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_stage_imports_only_from_stages_before_it(file: Path) -> None:
    here = file.relative_to(PACKAGE).with_suffix("").parts[0]
    wrong = {name for name in imported(file) if rank(name) > rank(here) and name != "halfbyte.__version__"}
    assert not wrong, f"{file.name} imports from later stages: {wrong}"


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "llama-3.1-8b"], ["tune", "--options"]])
def test_light_verbs_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from halfbyte.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("name", sorted(halfbyte.__all__))
def test_public_names_are_there_and_documented(name: str) -> None:
    assert getattr(halfbyte, name).__doc__


def test_no_public_name_hides_a_stage() -> None:
    assert not set(halfbyte.__all__) & {*STAGES, *BASE}
