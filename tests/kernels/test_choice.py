from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from halfbyte import kernels
from halfbyte.errors import ConfigError
from halfbyte.kernels import choice, native


@pytest.fixture(autouse=True)
def nothing_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HALFBYTE_KERNELS", raising=False)


def test_the_choice_names_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    found = kernels.choose("cpu")
    library, missing = native.load()
    if library is None:
        assert found.name == "reference" and missing in found.reason
    else:
        assert found == kernels.Choice(
            "cpu", f"native library: {native.ISA_NAMES[native.preferred()]}", native.preferred()
        )
    monkeypatch.setenv("HALFBYTE_KERNELS", "reference")
    assert kernels.choose().name == "reference" and "HALFBYTE_KERNELS" in kernels.choose().reason


def test_other_devices_have_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.choose("mps").name == "reference" and "mps" in kernels.choose("mps").reason
    monkeypatch.setenv("HALFBYTE_KERNELS", "cpu")
    assert kernels.choose("cuda").name == "reference"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, tuple[int, int]], None]]:
    """Say which card torch has."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")

    def has(name: str, capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(name))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(choice, "_triton", lambda: ("3.7.1", ""))
        choice._choose_triton.cache_clear()

    yield has
    choice._choose_triton.cache_clear()


def test_a_card_has_triton_and_what_the_card_lacks_is_said(card: Callable[[str, tuple[int, int]], None]) -> None:
    card("NVIDIA H100", (9, 0))
    found = kernels.choose("cuda:1")
    assert found.name == "gpu" and found.isa is None and found.bf16 and "Triton 3.7.1 on NVIDIA H100" in found.reason
    assert found.triton(torch.bfloat16) and "Triton" in found.beside and found.beside != found.reason
    card("Tesla T4", (7, 5))
    found = kernels.choose("cuda")
    assert found.name == "gpu" and not found.bf16 and "fp16 with sums in fp32" in found.reason
    assert found.triton(torch.float16) and not found.triton(torch.bfloat16)
    card("Tesla P100", (6, 0))
    found = kernels.choose("cuda")
    assert found.name == "reference" and "6.0, below" in found.reason


def test_without_triton_or_a_card_the_reference_runs_and_says_why(
    card: Callable[[str, tuple[int, int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    card("", (0, 0))
    assert kernels.choose("cuda").reason == "plain PyTorch: torch finds no cuda device"
    monkeypatch.setenv("HALFBYTE_KERNELS", "gpu")
    for device in ("cpu", "cuda"):
        with pytest.raises(ConfigError, match="torch finds no cuda device") as caught:
            kernels.choose(device)
        assert "TRITON_INTERPRET=1" in str(caught.value)
    card("NVIDIA H100", (9, 0))
    assert kernels.choose("cuda").name == "gpu" and kernels.choose("cpu").name != "gpu"  # what was forced is the card's
    monkeypatch.setattr(choice, "_triton", lambda: ("", "triton is not installed: pip install it"))
    choice._choose_triton.cache_clear()
    with pytest.raises(ConfigError, match="not installed"):
        kernels.choose("cuda")
    monkeypatch.delenv("HALFBYTE_KERNELS")
    assert kernels.choose("cuda") == kernels.Choice(
        "reference", "plain PyTorch: triton is not installed: pip install it"
    )


def test_a_triton_that_is_not_there_or_does_not_load_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, said in ((None, "pip install 'halfbyte[gpu]'"), (object(), "can't be loaded")):
        monkeypatch.setitem(sys.modules, "triton", found)  # type: ignore[arg-type]
        choice._triton.cache_clear()
        assert said in choice._triton()[1]
    choice._triton.cache_clear()


def test_a_library_that_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: (None, "the native library was not built: install a compiler"))
    assert kernels.choose() == kernels.Choice(
        "reference", "plain PyTorch: the native library was not built: install a compiler"
    )
    monkeypatch.setenv("HALFBYTE_KERNELS", "cpu")
    with pytest.raises(ConfigError, match="was not built"):
        kernels.choose()


def test_a_processor_that_lacks_what_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: (object(), ""))
    monkeypatch.setattr(native, "isas", lambda: ("portable",))
    monkeypatch.setattr(native, "preferred", lambda: "portable")
    assert kernels.choose().isa == "portable"
    monkeypatch.setenv("HALFBYTE_KERNELS", "cpu-avx2")
    with pytest.raises(ConfigError, match="portable code"):
        kernels.choose()


def test_an_unknown_name_gets_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFBYTE_KERNELS", "referense")
    with pytest.raises(ConfigError, match="did you mean 'reference'"):
        kernels.choose()


def test_a_library_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.load()[0] is None:
        pytest.skip(native.load()[1])
    monkeypatch.setattr(native, "NATIVE_INTERFACE", native.NATIVE_INTERFACE + 1)
    native.load.cache_clear()
    try:
        library, reason = native.load()
        assert library is None and "other sources" in reason
    finally:
        native.load.cache_clear()


def test_importing_brings_no_more_than_torch() -> None:
    heavy = {"transformers", "bitsandbytes", "scipy", "triton"}
    code = f"import sys, halfbyte.kernels; print(sorted({heavy} & sys.modules.keys()))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
