from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from halfbyte import kernels
from halfbyte.errors import ConfigError
from halfbyte.kernels import native


@pytest.fixture(autouse=True)
def nothing_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HALFBYTE_KERNELS", raising=False)


def test_the_choice_names_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = kernels.choose("cpu")
    library, missing = native.load()
    if library is None:
        assert choice.name == "reference" and missing in choice.reason
    else:
        assert choice == kernels.Choice(
            "cpu", f"native library: {native.ISA_NAMES[native.isas()[-1]]}", native.isas()[-1]
        )
    monkeypatch.setenv("HALFBYTE_KERNELS", "reference")
    assert kernels.choose().name == "reference" and "HALFBYTE_KERNELS" in kernels.choose().reason


def test_other_devices_have_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.choose("cuda:1").name == "reference" and "cuda" in kernels.choose(torch.device("cuda")).reason
    monkeypatch.setenv("HALFBYTE_KERNELS", "cpu")
    assert kernels.choose("cuda").name == "reference"


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
    heavy = {"transformers", "bitsandbytes", "scipy"}
    code = f"import sys, halfbyte.kernels; print(sorted({heavy} & sys.modules.keys()))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
