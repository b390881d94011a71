"""The page of figures is what the CSV files and the remarks make of it, and its verdicts are right."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks import common, goals, render, results, shapes

ROOT = Path(__file__).parents[2]
FORWARD = "forward, without LoRA"


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Writes rows as a benchmark would, and gives the folder."""
    monkeypatch.setattr(common, "about", lambda: {"machine": MACHINE, "versions": '{"torch": "2.13.0"}'})

    def write(*rows: tuple, name: str = "rows") -> Path:
        made = [common.Row(*row[:5], tuple(row[5])) for row in rows]
        common.Table(tmp_path / f"{name}.csv").add(made)
        return tmp_path

    return write


MACHINE = '{"processor": "P", "cores": 2, "threads": 2, "memory_bytes": 8589934592, "system": "Linux x86_64"}'


def test_the_page_is_what_the_renderer_makes_of_the_committed_files():
    remarks = (ROOT / "benchmarks" / "remarks.md").read_text(encoding="utf-8")
    made = render.page(ROOT / "benchmarks" / "results", remarks)
    assert (ROOT / "docs" / "performance.md").read_text(encoding="utf-8") == made, "run benchmarks/render.py"


def test_without_any_file_every_goal_is_not_measured(tmp_path):
    lines = goals.goals(results.Results.read(tmp_path))
    assert len(lines) > 15
    assert {line.cells()[-1] for line in lines} == {"not measured", ""}
    assert "Nothing is measured yet." in render.page(tmp_path, "")


@pytest.mark.parametrize(("seconds", "reached"), [(0.107, "yes"), (0.109, "**no**")])
def test_a_distance_from_the_limit_decides(measured, seconds, reached):
    folder = measured(
        ("linear", goals.MATRIX, FORWARD, "halfbyte", "seconds", [seconds]),
        ("linear", goals.MATRIX, FORWARD, "limit", "seconds", [0.09, 0.1, 0.11]),
        ("linear", goals.MATRIX, FORWARD, "peer", "seconds", [0.214]),
    )
    (line,) = [x for x in goals.goals(results.Results.read(folder)) if x.what.endswith(FORWARD) and "and" not in x.what]
    assert line.cells()[-1] == reached
    assert line.cells()[5] == f"{seconds / 0.1:.3g} x"


def test_what_is_missed_among_several_is_named(measured):
    case, step = f"{goals.R32}, every layer recomputed", ("step", "1b")
    folder = measured(
        (*step, case, "halfbyte", "seconds", [6.0]),
        (*step, case, "peer", "seconds", [12.0]),
        (*step, case, "limit", "seconds", [4.5]),
        (*step, case, "halfbyte", "peak_bytes", [1.1e9]),
        (*step, case, "halfbyte", "mapped_bytes", [1.0e9]),
    )
    lines = {line.what: line.cells() for line in goals.goals(results.Results.read(folder))}
    speed = next(cells for what, cells in lines.items() if what.startswith("training step, 1B") and "every" in what)
    assert speed[1:6] == ["6 s", "12 s", "2 x", "4.5 s", "1.33 x"]
    assert speed[-1] == "**no**: at most 1.3 x the limit"
    memory = next(cells for what, cells in lines.items() if what.startswith("peak memory"))
    assert memory[1] == "2.1 GB (1 GB of it mapped)" and memory[-1] == "**no**"


def test_the_worst_case_is_found_over_all_cases(measured):
    rows = []
    for matrix, ours in (("14336x4096", 0.1), ("64x64", 0.5)):
        rows += [("linear", matrix, FORWARD, who, "seconds", [value]) for who, value in
                 (("halfbyte", ours), ("peer", 0.25), ("limit", 0.1))]  # fmt: skip
    text = render.page(measured(*rows), "")
    assert "| The linear layer, 512 tokens | 0.5 x | 64x64, forward, without LoRA | 5 x | 64x64, forward" in text


def test_of_the_turns_the_worst_is_shown(measured):
    folder = measured(
        ("decode", "1b", "x", "halfbyte", "tokens_per_second", [30.0, 10.0, 20.0]),
        ("step", "1b", "x", "halfbyte", "seconds", [3.0, 1.0, 2.0]),
    )
    text = render.page(folder, "")
    assert "| 20 tokens/s | 10 tokens/s |" in text and "| 2 s | 3 s |" in text


def test_a_row_carries_machine_versions_and_quantiles(measured):
    folder = measured(("step", "1b", "x", "peer", "seconds", [4.0, 1.0, 3.0, 2.0, 5.0]))
    with (folder / "rows.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert [float(row[name]) for name in common.QUANTILES] == [1, 2, 3, 4, 5]
    assert row["turns"] == "5" and row["machine"] == MACHINE and "torch" in row["versions"]


@pytest.mark.parametrize(("shape", "parameters"), [("8b", 8_030_261_248), ("1b", 1_235_814_400)])
def test_the_shapes_are_those_of_the_models(shape, parameters):
    total = 0
    for _, size in shapes.tensors(shapes.SHAPES[shape]):
        rows, *columns = size
        total += rows * (columns[0] if columns else 1)
    assert total == parameters
