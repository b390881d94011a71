"""The doctor: what it looks at, that its table of versions is pyproject's, and its exit code."""

import io
import re
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from halfbyte.plan import doctor as module
from halfbyte.plan.doctor import EXTRAS, LIBRARIES, Finding, doctor, render_doctor
from halfbyte.plan.machine import CudaDevice, Machine
from tests.tiny import FAMILIES


def test_the_versions_are_those_of_pyproject():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"\w+", line)[0]: line for line in project["dependencies"]}
    written = {
        name: f"{name}>={low}" + (f",<{ceiling}" if ceiling else "") for name, (low, ceiling) in LIBRARIES.items()
    }
    assert written == declared
    for name, packages in EXTRAS.items():
        assert [re.match(r"\w+", line)[0] for line in project["optional-dependencies"][name]] == list(packages)


def test_everything_is_looked_at():
    findings = doctor()
    looked = {finding.what for finding in findings}
    assert {"Python", "system", "processor", "memory", "torch", "transformers", "kernels", "compute", "compiler",
            "CUDA", "cache", "free disk", "extra 'data'"} <= looked  # fmt: skip
    assert not [finding for finding in findings if finding.mark == "problem"]
    assert render_doctor(findings, Console(file=io.StringIO())) == 0


def test_a_problem_shows_and_decides_the_exit_code():
    out = io.StringIO()
    findings = [Finding("ok", "a", "b"), Finding("problem", "torch", "1.0, too old", "pip install [new]")]
    assert render_doctor(findings, Console(file=out, width=100)) == 1
    assert (
        "PROBLEM" in out.getvalue() and "pip install [new]" in out.getvalue() and "1 problem, 0 notes" in out.getvalue()
    )


@pytest.mark.parametrize(
    ("version", "mark"), [("5.16.9", "problem"), ("5.17", "ok"), ("5.23.0+x", "ok"), ("6.0.0", "problem")]
)
def test_versions_out_of_the_range_are_problems(version, mark, monkeypatch):
    monkeypatch.setattr(module.metadata, "version", lambda name: version)
    assert module._library("transformers", "5.17", "6").mark == mark


def test_what_is_not_installed_is_a_problem_or_an_extra():
    assert module._library("no-such-library", "1", None).mark == "problem"
    finding = module._extra("data", ("no-such-library",))
    assert finding.mark == "note" and "halfbyte[data]" in finding.do


def test_kernels_that_are_forced_wrongly_are_a_problem(monkeypatch):
    monkeypatch.setenv("HALFBYTE_KERNELS", "fast")
    finding = module._kernels()
    assert finding.mark == "problem" and "HALFBYTE_KERNELS" in finding.found
    monkeypatch.setenv("HALFBYTE_KERNELS", "reference")
    assert module._kernels().mark == "note"


def test_the_families_that_are_named_are_those_that_are_tested(monkeypatch):
    assert sorted(FAMILIES) == list(module.TESTED)
    assert "llama" in module._parts().found
    monkeypatch.setenv("HALFBYTE_KERNELS", "reference")
    assert module._parts().mark == "note"


def test_a_device_that_torch_cannot_use_is_noted(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    card = CudaDevice("Tesla T4", 16 * 10**9, 15 * 10**9)
    finding = module._cuda(Machine("Linux", "cpu", 2, None, None, None, (card,)))
    assert finding.mark == "note" and "pytorch.org" in finding.do
    assert module._hardware(Machine("Linux", "cpu", 2, None, None, None, ()))[1].mark == "note"


def test_the_cache_is_weighed(monkeypatch, tmp_path):
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))
    assert "not made yet" in module._cache().found
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "packed").write_bytes(bytes(5000))
    assert "5.00 kB" in module._cache().found


def test_the_compute_type_is_shown_with_both_figures_and_whether_int8_can_be_had(monkeypatch):
    from halfbyte.kernels import compute, product_int8

    monkeypatch.setattr(compute, "measured", lambda: compute.Measured(bf16=0.009, fp32=0.002))
    for missing, slower, int8 in (("", False, "can be asked for, at some price in quality"),
                                  ("", True, "can be asked for, but bf16 is faster here"),
                                  ("none here", False, "can't be had: none here")):  # fmt: skip
        monkeypatch.setattr(product_int8, "is_slower", lambda slower=slower: slower)
        monkeypatch.setattr(product_int8, "missing", lambda missing=missing: missing)
        assert module._compute() == Finding(
            "ok", "compute",
            "fp32: bf16 is slow here: a product took 9.00 ms in bf16 and 2.00 ms in fp32; int8 " + int8,
        )  # fmt: skip
    out = io.StringIO()
    render_doctor(doctor(), Console(file=out, width=200))
    assert "a product took 9.00 ms in bf16" in out.getvalue()


def test_misspelt_kernels_are_not_blamed_on_torch(monkeypatch):
    monkeypatch.setenv("HALFBYTE_KERNELS", "cpu-nonsense")
    for finding in (module._kernels(), module._compute()):
        assert finding.mark == "problem" and "cpu-nonsense" in finding.found and "known kernels" in finding.do


def test_a_missing_calibration_is_noted_and_one_that_holds_is_shown(monkeypatch, tmp_path):
    from halfbyte.plan.calibration import Calibration, identity, store

    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path))
    assert module._calibration().mark == "note" and "--calibrate" in module._calibration().do
    store(Calibration(identity(), "2026-01-01", 1.0, {"bf16": {}}, {"product_bf16": 4e11, "read": 3e10}))
    assert module._calibration().found == "calibrated here on 2026-01-01: 400 GFLOP/s in bf16, reads 30.0 GB/s"


def test_a_card_has_its_own_line_for_kernels(monkeypatch):
    import torch

    from halfbyte.kernels import choice

    assert module._kernels_on_card() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for found, mark in ((choice.Choice("gpu", "Triton 3.7.1 on NVIDIA L4"), "ok"),
                        (choice.Choice("reference", "plain PyTorch: triton is not installed"), "note")):  # fmt: skip
        monkeypatch.setattr(choice, "choose", lambda device, found=found: found)
        (finding,) = module._kernels_on_card()
        assert finding.mark == mark and found.reason in finding.found


def test_the_parts_on_a_card_have_a_line_of_their_own(monkeypatch):
    import torch

    from halfbyte.kernels import choice, fused

    assert module._parts_on_card() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fused, "choose", lambda device: choice.Choice("gpu", "Triton 3.7.1 on NVIDIA L4"))
    for found, mark, said in ((("0.8.5", ""), "ok", "Liger-Kernel 0.8.5 with Triton 3.7.1 on NVIDIA L4: RMSNorm"),
                              (("", "liger-kernel is not installed"), "note", "not installed")):  # fmt: skip
        monkeypatch.setattr(fused, "liger", lambda found=found: found)
        (finding,) = module._parts_on_card()
        assert finding.mark == mark and said in finding.found
