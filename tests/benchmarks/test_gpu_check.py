"""The check of a card runs all its stages on a toy, keeps to its limits, and says what is missing."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from benchmarks import contenders, gpu_check, gpu_table, parity, results, shapes, turns
from tests.benchmarks.test_scripts import Inline


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(turns, "Worker", Inline)
    monkeypatch.setattr(gpu_check, "PARITY_STEPS", 2)
    monkeypatch.setattr(gpu_check, "ROUNDS", 1)
    monkeypatch.setattr(gpu_check, "SIZES", {"tiny": ((16, 32), (1, 2), 2)})
    monkeypatch.setitem(gpu_check.NEEDS, "unsloth", ("no_such_module",))


def check(folder: Path, *arguments: str) -> int:
    given = ["--device", "cpu", "--shape", "tiny", "--folder", str(folder / "models"), "--results", str(folder)]
    return gpu_check.main([*given, *arguments])


def test_all_stages_run_and_the_page_has_them(tmp_path, quick, monkeypatch, capsys):
    def speed(**_):
        yield {}

    monkeypatch.setattr(parity, "speed", speed)
    assert check(tmp_path) == 0, capsys.readouterr().out
    assert "HALFBYTE_KERNELS" not in os.environ
    found = results.Results.read(tmp_path)
    for op, who in (("pack", "halfbyte"), ("kernels", "halfbyte"), ("open", "peer"), ("decode", "halfbyte"),
                    ("decode", "peer"), ("loss", "processor"), ("loss", "torch"), ("loss", "streamed")):  # fmt: skip
        assert any((row.op, row.who) == (op, who) for row in found.rows), (op, who)
    for case in ("16 tokens, batch 1", "32 tokens, batch 2"):
        ours, theirs = (found.get("step", "tiny", case, who, "loss") for who in ("halfbyte", "peer"))
        assert ours and theirs and ours.median == pytest.approx(theirs.median, rel=0.01)
        assert found.get("step", "tiny", case, "halfbyte", "planned_peak_bytes")
    alike = found.get("step", "tiny", "16 tokens, batch 1", "streamed", "loss")
    assert alike and alike.median == found.get("step", "tiny", "16 tokens, batch 1", "halfbyte", "loss").median
    page = (tmp_path / "gpu_check.md").read_text()
    assert "| loss, all of 2 steps, streamed: that differ from those with all on the card | 0 | 0 |" in page
    assert "| kernels: values that differ from the reference's | 0 | 0 |" in page
    assert "- unsloth: not here, as no_such_module is not installed" in page and page.count("\n| step, ") == 4


def test_a_checkpoint_whose_writing_was_ended_is_made_anew(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shapes, "write_weights", killed)
        with pytest.raises(KeyboardInterrupt):
            next(gpu_check.make(str(tmp_path), "tiny"))
    assert not (tmp_path / "bf16").exists() and (tmp_path / "bf16.partial" / "config.json").is_file()
    next(gpu_check.make(str(tmp_path), "tiny"))
    made = (tmp_path / "bf16" / "model.safetensors").stat()
    assert made.st_size > 0 and not (tmp_path / "bf16.partial").exists()
    next(gpu_check.make(str(tmp_path), "tiny"))
    assert (tmp_path / "bf16" / "model.safetensors").stat().st_mtime_ns == made.st_mtime_ns


def test_losses_that_do_not_fit_are_named(tmp_path, quick, monkeypatch):
    def full(**_):
        yield {}
        while True:
            yield {"out_of_memory": 1.0}

    monkeypatch.setattr(contenders, "session", full)
    made = gpu_check.Check("tiny", "cpu", tmp_path, tmp_path, gpu_check.Table(tmp_path / "gpu_check.csv"), math.inf)
    gpu_check.run(made, ["parity"])
    assert made.notes == ["parity is not complete: the losses of processor: a step of 128 tokens does not fit"]


def test_goals_are_ratios_in_one_run(tmp_path):
    table = gpu_check.Table(tmp_path / "gpu_check.csv")
    made = gpu_check.Check("8b", "cpu", tmp_path, tmp_path, table, 0.0)
    for who, speed, peak in (("halfbyte", 3000.0, 8e9), ("peer", 2000.0, 10e9)):
        made.add("step", "2048 tokens, batch 4", who, [{"tokens_per_second": speed, "peak_bytes": peak}])
    made.add("step", "8192 tokens, batch 8", "peer", [{"out_of_memory": 1.0}])
    made.add("kernels", "64x64", "halfbyte", [{"wrong_values": 3.0, "error_ratio": 1.5}])
    page = gpu_table.page(tmp_path, [])
    assert "| 2048 tokens, batch 4: speed by peer's | 1.5 x | 1.5 x |" in page
    assert "| 2048 tokens, batch 4: peak by peer's | below 1 x | 0.8 x |" in page
    assert "| kernels: values that differ from the reference's | 0 | 3 |" in page
    assert "| step, 8192 tokens, batch 8 |  |  |  |  | does not fit |" in page


def test_what_other_runs_have_left_is_no_goal(tmp_path, quick, monkeypatch, capsys):
    row = gpu_check.common.Row("copy", "64x64", "bf16 to bf16", "limit", "bytes_per_second", (1e12,))
    ours = gpu_check.common.Row("dequantise", "64x64", "nf4 to bf16", "halfbyte gpu", "bytes_per_second", (9e11,))
    wrong = gpu_check.common.Row("kernels", "64x64", "64x64", "halfbyte", "wrong_values", (1.0,))
    gpu_check.Table(tmp_path / "gpu.csv").add([row, ours])
    assert "dequantising NF4" in gpu_table.page(tmp_path, [])
    gpu_check.Table(tmp_path / "bandwidth.csv").add([row, ours, wrong])
    monkeypatch.setitem(gpu_check.STAGES, "parity", (45.0, lambda *_: None))
    assert check(tmp_path, "--stages", "parity") == 0, capsys.readouterr().err
    assert "dequantising NF4" not in (tmp_path / "gpu_check.md").read_text()


def test_what_takes_too_long_is_ended_and_named(tmp_path, monkeypatch):
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="longer than it may"):
        turns.Worker("tests.benchmarks.test_gpu_check:sleeps", {}, 0.5)
    assert time.monotonic() - began < 20

    def slow(made: gpu_check.Check, seconds: float) -> None:
        raise RuntimeError("it took longer than it may")

    monkeypatch.setattr(gpu_check, "STAGES", {"peer": (60.0, slow), "unsloth": (60.0, slow)})
    made = gpu_check.Check("tiny", "cpu", tmp_path, tmp_path, gpu_check.Table(tmp_path / "gpu_check.csv"), began)
    gpu_check.run(made, ["peer", "unsloth"])
    assert made.notes == [f"{name} is not complete: no time was left" for name in ("peer", "unsloth")]
    made.until = time.monotonic() + 60
    assert gpu_check.run(made, ["peer"]) == ["peer"]
    assert "peer is not complete: it took longer than it may" in (tmp_path / "gpu_check.md").read_text()


def test_a_kernel_that_errs_is_counted(monkeypatch):
    pytest.importorskip("triton", reason="there is no triton for this system")
    from halfbyte.kernels.dequantise import gpu
    from halfbyte.kernels.product import gpu as product

    monkeypatch.setenv("HALFBYTE_KERNELS", "gpu")

    def figures():
        phase = parity.kernels("cpu", [(16, 64)])
        assert next(phase) == {}
        return next(phase)

    assert figures()["wrong_values"] == 0 and figures()["error_ratio"] <= 2
    right = gpu.dequantise_int8

    def wrong(packed, first, last, out):
        right(packed, first, last, out)
        out[0, 0] = 3

    with monkeypatch.context() as patched:
        patched.setattr(gpu, "dequantise_int8", wrong)
        assert figures()["wrong_values"] > 0
    few = product.few

    def not_a_number(*given):
        made = few(*given)
        made[0, 0] = math.nan
        return made

    monkeypatch.setattr(product, "few", not_a_number)
    assert figures()["error_ratio"] == math.inf


@pytest.mark.parametrize(("wrong", "ratio", "words"), [
    (3.0, 1.0, "error: 3 values of the kernels are not the reference's"),
    (0.0, 2.5, "error: a product's error is 2.5 times torch's; 2 is allowed"),
    (0.0, math.inf, "error: a product's error is inf times torch's"),
    (0.0, 2.0, ""),
])  # fmt: skip
def test_wrong_values_end_it_with_an_error(tmp_path, quick, monkeypatch, capsys, wrong, ratio, words):
    def kernels(check: gpu_check.Check, seconds: float) -> None:
        check.add("kernels", "64x64", "halfbyte", [{"wrong_values": wrong, "error_ratio": ratio}])

    monkeypatch.setitem(gpu_check.STAGES, "kernels", (45.0, kernels))
    assert check(tmp_path, "--stages", "kernels") == (1 if words else 0)
    said = capsys.readouterr().err
    assert words in said and ("error: " in said) == bool(words)


def test_a_stage_that_is_not_complete_ends_it_with_an_error(tmp_path, quick, monkeypatch, capsys):
    def ends(check: gpu_check.Check, seconds: float) -> None:
        raise RuntimeError("it ended")

    ran = []
    monkeypatch.setitem(gpu_check.STAGES, "parity", (55.0, ends))
    monkeypatch.setitem(gpu_check.STAGES, "peer", (55.0, lambda *_: ran.append("peer")))
    assert check(tmp_path, "--stages", "parity", "peer", "unsloth") == 1
    said = capsys.readouterr()
    assert "error: not complete, for the reasons above: parity" in said.err
    assert "- parity is not complete: it ended" in said.out and ran == ["peer"]
    monkeypatch.setitem(gpu_check.STAGES, "checkpoints", (55.0, ends))
    assert check(tmp_path, "--stages", "checkpoints", "peer") == 1
    said = capsys.readouterr()
    assert "error: not complete, for the reasons above: checkpoints" in said.err
    assert "checkpoints is not complete: it ended" in said.out
    assert ran == ["peer"] and not (tmp_path / "gpu_check.md").exists()


def test_what_was_not_tried_is_named(tmp_path):
    class Full:
        tried = 0

        def turn(self, case):
            self.tried += 1
            return {"out_of_memory": 1.0}

    made = gpu_check.Check("8b", "cpu", tmp_path, tmp_path, gpu_check.Table(tmp_path / "gpu_check.csv"), math.inf)
    worker, pace = Full(), gpu_check.Pace()
    for batch in (4, 8):
        gpu_check._train(made, worker, "peer", 2048, batch, pace, math.inf)
    assert worker.tried == 1
    assert made.notes == ["peer, 2048 tokens, batch 8: not tried: 8,192 tokens at once did not fit"]


def test_the_limits_add_up_to_less_than_nine_minutes():
    assert sum(seconds for seconds, _ in gpu_check.STAGES.values()) <= gpu_check.WHOLE < 9 * 60


def test_without_a_card_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_check.main([]) == 1
    assert "error: gpu_check measures a card and there is none" in capsys.readouterr().err


def sleeps():
    time.sleep(60)
    yield {}
