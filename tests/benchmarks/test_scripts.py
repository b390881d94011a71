"""Every benchmark runs to its end, with tiny shapes, and leaves the rows that the page needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compute, gpu, kernels, limits, linear, ops, packing, plan, render, results, run, shapes, turns
from halfbyte.kernels import compute as measuring

ROOT = Path(__file__).parents[2]


class Inline:
    """A `turns.Worker` in this process: importing transformers in a dozen processes would take a minute."""

    def __init__(self, phase, arguments, seconds=None):
        self._turns = turns.phase_of(phase, arguments)
        self.opened = next(self._turns)
        self.alive = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def turn(self, case=None):
        return self._turns.send(case or {})

    def close(self, stop=False):
        self._turns.close()
        self.alive = False


def written(folder: Path) -> set[tuple[str, str]]:
    found = results.Results.read(folder)
    assert all(row.least <= row.median <= row.most for row in found.rows)
    return {(row.op, row.who) for row in found.rows}


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(turns, "Worker", Inline)
    monkeypatch.setattr(limits, "READ_FLOATS", 1 << 20)
    monkeypatch.setattr(limits.Memory.__init__, "__defaults__", (1 << 20,))


def test_a_whole_run_leaves_every_row(tmp_path, inline, capsys):
    code = run.main(["--shape", "tiny", "--limit", "2", "--seconds", "0.1", "--results", str(tmp_path)])
    said = capsys.readouterr().out
    assert code == 0, said
    by_both = {(op, who) for op in ("open", "step", "decode", "evaluate") for who in ("halfbyte", "peer")}
    limits_ = {(op, "limit") for op in ("pack", "step", "decode")}
    alone = {("pack", "halfbyte"), ("step", f"{compute.name()} LoRA"), ("tune", "halfbyte")}
    assert written(tmp_path) == by_both | limits_ | alone
    found = results.Results.read(tmp_path)
    for who in ("halfbyte", "peer"):
        assert found.get("decode", "tiny", "1 sequence, without adapter", who, "first_token_seconds")
        assert found.get("step", "tiny", "r=32 on q, k, v, o, every layer recomputed", who, "mapped_bytes")
    assert found.get("tune", "tiny", "memory: 500MB", "halfbyte", "planned_peak_bytes")
    assert "halfbyte tune, TINY, memory: 500MB, 0 layers recomputed" in render.page(tmp_path, "")


def test_a_benchmark_that_fails_keeps_its_rows_and_the_others(tmp_path, inline, monkeypatch):
    def broken(bench):
        run.load.measure(bench)
        raise ValueError("the reason")

    monkeypatch.setitem(run.WITH_A_MODEL, "load", broken)
    arguments = ["--shape", "tiny", "--seconds", "0.1", "--results", str(tmp_path), "--only", "load", "tune"]
    assert run.main(arguments) == 1
    assert {("pack", "halfbyte"), ("open", "peer"), ("tune", "halfbyte")} <= written(tmp_path)


def test_the_large_shape_runs_the_same_stages(tmp_path, inline, monkeypatch):
    """8B's order of stages, with the tiny model in its place."""
    for mapping in (run.bench.ROUNDS, run.bench.SECONDS, run.tune.MEMORY, run.tune.STEPS, run.shapes.SHAPES):
        monkeypatch.setitem(mapping, "8b", mapping["tiny"])
    monkeypatch.setattr(run.decode, "NEW_TOKENS", 4)
    assert run.main(["--shape", "8b", "--results", str(tmp_path)]) == 0
    found = results.Results.read(tmp_path)
    for budget, who in (("7.5GB", "peer"), ("7.5GB", "halfbyte"), ("12GB", "halfbyte"), ("12GB", "limit")):
        assert found.get("step", "8b", f"r=32 on q, k, v, o, within {budget}", who, "seconds"), (budget, who)
    lines = {line.what.split(",")[0]: line for line in render.goals(found) if "8B" in line.what}
    assert all(None not in [kept for _, kept in line.checks] for line in lines.values())


@pytest.mark.parametrize(
    ("script", "arguments", "ops_"),
    [
        (limits, ["--size", "64", "--floats", "4096"], {"machine"}),
        (kernels, ["--matrix", "64", "64"], {"copy", "quantise", "dequantise"}),
        (linear, ["--matrix", "64", "64", "--distinct", "9000"], {"linear", "rows"}),
        (ops, ["--shapes", "tiny"], {"attention", "norm", "gate", "loss"}),
    ],
)
def test_what_needs_no_model_runs_alone(tmp_path, script, arguments, ops_):
    script.main([*arguments, "--rounds", "1", "--results", str(tmp_path)])
    assert {op for op, _ in written(tmp_path)} == ops_


def test_the_kernels_of_a_card_are_measured_where_they_run(tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="there is no triton for this system")
    monkeypatch.setattr(gpu, "MATRICES", 1)
    monkeypatch.setattr(gpu, "TILES", {"sums": [(4, 64, 4)], "dot": [(16, 128, 4)]})
    arguments = ["--matrix", "8", "64", "--rounds", "1", "--results", str(tmp_path), "--device", "cpu"]
    monkeypatch.setattr(gpu, "ROWS", (1, 16))
    monkeypatch.setenv("HALFBYTE_KERNELS", "reference")
    with pytest.raises(SystemExit, match="do not run here: plain PyTorch: forced"):
        gpu.main(arguments)
    monkeypatch.setenv("HALFBYTE_KERNELS", "gpu")
    gpu.main([*arguments, "--tiles"])
    assert {op for op, _ in written(tmp_path)} == {"copy", "quantise", "dequantise", "product"}
    assert any("tile (16, 128, 4)" in row.case for row in results.Results.read(tmp_path).rows)


def test_padded_and_packed_steps_take_turns(tmp_path, monkeypatch):
    slow_bf16 = measuring.Measured(bf16=0.002, fp32=0.001)
    monkeypatch.setattr(measuring, "measured", lambda: slow_bf16)  # in fp32 the products are native on more machines
    packing.main(["--rounds", "1", "--steps", "1", "--micro", "32", "--results", str(tmp_path)])
    found = results.Results.read(tmp_path)
    padded, packed = (
        found.get("packing", "demo", "micro-batch 32", f"halfbyte {way}", "padding_share")
        for way in ("padded", "packed")
    )
    assert padded is not None and packed is not None and packed.median < 0.01 < 0.3 < padded.median


def test_native_ops_err_at_most_twice_as_much_as_torchs(tmp_path):
    ops.main(["--shapes", "tiny", "--rounds", "1", "--results", str(tmp_path)])
    found = results.Results.read(tmp_path)
    errors = [row for row in found.rows if (row.who, row.figure) == ("halfbyte", "relative_error")]
    assert len(errors) == 10
    for row in errors:
        peer = found.get(row.op, row.shape, row.case, "peer", row.figure)
        assert peer is not None and row.median <= 2 * peer.median + 1e-6, row


def test_a_script_runs_from_the_command_line(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "limits.py"), "--size", "64", "--floats", "4096"]
    subprocess.run([*command, "--rounds", "1", "--results", str(tmp_path)], check=True)
    assert written(tmp_path) == {("machine", "limit")}


def test_the_plan_stands_beside_what_runs_take(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "ARCHITECTURES", {"llama": shapes.SHAPES["tiny"]})
    case = plan.Case("llama", 64, 2, 4, "attention", "nf4", 1, "completion", "bf16")
    pairs = plan.compare([case], tmp_path, tmp_path / "results", tmp_path / "plan.svg")
    assert {"tune_peak_bytes", "evaluate_peak_bytes"} <= set(pairs)
    for figure in ("tune_peak_bytes", "evaluate_peak_bytes"):
        ((planned, real),) = pairs[figure]
        assert 0.8 < planned / real < 1.25
    lines = (tmp_path / "results" / "measured.csv").read_text().splitlines()
    assert lines[0].startswith("architecture,sequence,") and len(lines) == 1 + len(pairs)
    assert len((tmp_path / "results" / "predicted.csv").read_text().splitlines()) == 1 + len(pairs)
    assert "<svg" in (tmp_path / "plan.svg").read_text()
    assert plan.summary(pairs)[0].startswith("tune_peak_bytes: 1 cases, mean error")


def test_a_draw_is_the_same_again_and_has_every_value():
    cases = plan.draw(40, 0)
    assert cases == plan.draw(40, 0) and len(set(cases)) == 40
    assert max(case.sequence * case.micro_batch for case in plan.draw(20, 0, tokens=128)) == 128
    assert {case.architecture for case in cases} == set(plan.ARCHITECTURES)
    assert {case.weights for case in cases} == set(plan.SETTINGS["weights"])
    assert {case.recompute == 0 for case in cases} == {True, False}
