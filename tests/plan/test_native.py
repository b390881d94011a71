"""Which parts are native: what is foretold is what the kernels choose, and the processor's flags decide it."""

import pytest
import torch

from halfbyte.environment import has_bf16
from halfbyte.errors import ConfigError
from halfbyte.kernels import BF16, multiplies_many, product_int8, product_of, torch_is_slow_in_bf16
from halfbyte.kernels import native as library
from halfbyte.kernels.choice import choose
from halfbyte.model.blocks import Replacement
from halfbyte.plan import native as native_module
from halfbyte.plan.activations import shape_info
from halfbyte.plan.catalogue import find
from halfbyte.plan.ladder import plan_model
from halfbyte.plan.native import (
    foretold,
    has_bf16_products,
    has_fp32_products,
    int8_missing,
    multiplies_bf16,
    of_model,
)

LLAMA = {"model_type": "llama"}
ZEN3 = "flags\t\t: fpu fma avx f16c avx2"
ZEN4 = f"{ZEN3} avx512f avx512dq avx512bw avx512vl avx512_vnni avx512_bf16"


def test_what_is_foretold_is_what_the_kernels_choose():
    chosen, before = choose("cpu"), foretold(LLAMA)
    assert before.norms == before.mlp == before.attention == (chosen.isa is not None)
    assert before.products == multiplies_many(chosen.isa, torch.bfloat16)
    assert foretold(LLAMA, dtype_bytes=4).products == multiplies_many(chosen.isa, torch.float32)


def test_a_plan_refuses_kernels_that_do_not_exist(monkeypatch):
    monkeypatch.setenv("HALFBYTE_KERNELS", "cpu-avx3")
    for ask in (multiplies_bf16, lambda: foretold(LLAMA)):
        with pytest.raises(ConfigError, match="names no kernels"):
            ask()


def test_a_plan_knows_where_torch_is_slow_in_bf16():
    if choose().isa in BF16:
        assert torch_is_slow_in_bf16(torch.device("cpu")) == (not has_bf16())
    assert not torch_is_slow_in_bf16(torch.device("cuda"))


@pytest.mark.parametrize("forced", ["", "cpu", "reference", *(f"cpu-{isa}" for isa in library.isas())])
def test_the_forced_kernels_are_foretold(forced, monkeypatch):
    if choose().isa is None:
        pytest.skip("the native library was not built")
    monkeypatch.setenv("HALFBYTE_KERNELS", forced)
    chosen, before = choose("cpu"), foretold(LLAMA)
    assert before.norms == (chosen.isa is not None)
    assert before.products == multiplies_many(chosen.isa, torch.bfloat16)
    assert foretold(LLAMA, dtype_bytes=4).products == multiplies_many(chosen.isa, torch.float32)


def test_the_processor_says_it(tmp_path):
    for text, in_bf16, in_fp32 in (
        (ZEN4, True, True),
        (ZEN4 + " amx_bf16", True, True),
        (ZEN4.replace("avx512_bf16", ""), True, True),
        (ZEN4.replace("avx512_vnni avx512_bf16", ""), False, True),
        (ZEN3, True, True),
        (ZEN3.replace("fma", ""), False, False),
        ("", False, False),
    ):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{text}\n")
        assert has_bf16_products(tmp_path / "cpuinfo") is in_bf16
        assert has_fp32_products(tmp_path / "cpuinfo") is in_fp32
    assert not has_bf16_products(tmp_path / "nowhere") and not has_fp32_products(tmp_path / "nowhere")


@pytest.mark.parametrize("forced", ["", "cpu", "reference", *(f"cpu-{isa}" for isa in library.isas())])
def test_bf16_is_planned_where_its_products_are_native(forced, monkeypatch, tmp_path):
    if choose().isa is None:
        pytest.skip("the native library was not built")
    monkeypatch.setenv("HALFBYTE_KERNELS", forced)
    isa = choose("cpu").isa
    assert multiplies_bf16() == (has_bf16() or (isa != "avx512bf16" and multiplies_many(isa, torch.bfloat16)))
    monkeypatch.setattr("halfbyte.plan.native.has_bf16", lambda: False)
    if forced not in ("", "cpu"):  # else AVX512-BF16 is chosen where it is fast, which has_bf16 denies now
        assert multiplies_bf16() == (isa != "avx512bf16" and multiplies_many(isa, torch.bfloat16))
    monkeypatch.setattr("halfbyte.plan.native._KERNELS", tmp_path)
    assert not multiplies_bf16()
    monkeypatch.setattr("halfbyte.plan.native.has_bf16", lambda: True)
    assert multiplies_bf16()


def test_what_the_kernels_do_not_cover_is_plain(monkeypatch, tmp_path):
    assert not foretold(LLAMA, device="cuda:0").norms and not foretold({"model_type": "novel"}).mlp
    assert not foretold(LLAMA | {"attention_dropout": 0.1}).attention
    assert not foretold(LLAMA | {"model_type": "novel"}, dtype_bytes=4).products
    monkeypatch.setattr("halfbyte.plan.native._KERNELS", tmp_path)
    assert "not built" in foretold(LLAMA).reason and not foretold(LLAMA).norms


def test_a_loaded_model_says_it_itself():
    parts = [Replacement("SomeRMSNorm", 3), Replacement("OtherNorm", 1, "it computes something else"),
             Replacement("SomeMLP", 2)]  # fmt: skip
    found = of_model(parts, "sdpa", products=True, reason="")
    assert (found.norms, found.mlp, found.attention, found.products) == (False, True, False, True)
    found = of_model(parts[:1], "halfbyte", products=False, reason="")
    assert (found.norms, found.mlp, found.attention, found.products) == (True, False, True, False)
    assert "norms, attention native" in str(found)


@pytest.mark.parametrize("content", [b"no library", b""])
def test_a_library_that_does_not_load_is_not_trusted(content, monkeypatch, tmp_path):
    from importlib.machinery import EXTENSION_SUFFIXES

    (tmp_path / f"_native{EXTENSION_SUFFIXES[0]}").write_bytes(content)
    monkeypatch.setattr("halfbyte.plan.native._KERNELS", tmp_path)
    found = foretold(LLAMA)
    assert not found.norms and not found.products and "can't be loaded" in found.reason


def test_a_library_of_other_sources_is_not_trusted(monkeypatch):
    if choose().isa is None:
        pytest.skip("there is no native library here")
    monkeypatch.setattr("halfbyte.plan.native.NATIVE_INTERFACE", -1)
    monkeypatch.setattr("halfbyte.plan.native._fault_of", native_module._fault_of.__wrapped__)
    assert "built from other sources" in foretold(LLAMA).reason and not foretold(LLAMA).norms


@pytest.mark.parametrize("forced", ["", "cpu", "reference", *(f"cpu-{isa}" for isa in library.isas())])
def test_a_plan_refuses_int8_where_opening_a_model_would(forced, monkeypatch, tmp_path):
    if choose().isa is None:
        pytest.skip("the native library was not built")
    monkeypatch.setenv("HALFBYTE_KERNELS", forced)
    assert bool(int8_missing()) == bool(product_int8.missing())
    assert "card" in int8_missing("cuda")
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {ZEN3}\n")
    assert int8_missing(cpuinfo=tmp_path / "cpuinfo")
    if int8_missing():
        with pytest.raises(ConfigError, match="AVX512-VNNI"):
            plan_model("llama-3.2-1b", compute="int8")
    else:
        assert plan_model("llama-3.2-1b", compute="int8").settings["compute"] == "int8"
        with pytest.raises(ConfigError, match="packed weights"):
            plan_model("llama-3.2-1b", compute="int8", weights="bf16")


_STORED = [*((stored, "nf4") for stored in ("bfloat16", "float16", "float32")), ("bfloat16", "bf16"),
           ("float16", "bf16"), ("float32", "fp32")]  # fmt: skip


@pytest.mark.parametrize(("stored", "weights"), _STORED)
@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32], ids=str)
def test_dense_matrices_are_planned_by_the_product_that_multiplies_them(stored, weights, compute):
    b = compute.itemsize
    native = foretold(LLAMA, dtype_bytes=b)
    info = shape_info(find("llama-3.2-1b").config, weights=weights, stored=stored, native=native)
    dense = torch.zeros(64, 64, dtype=getattr(torch, info.dense))
    runs = product_of(torch.zeros(99, 64, dtype=compute), dense).name == "cpu"
    assert info.multiplies_dense(b) == runs
