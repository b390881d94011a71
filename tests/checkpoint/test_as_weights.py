"""The cache of packed copies: made once, mended, by several at once."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from halfbyte.checkpoint import pack as packing
from halfbyte.checkpoint.pack import as_weights
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.errors import CheckpointError
from tests.checkpoint.conftest import Make


def test_as_weights_makes_a_copy_once(
    tiny: Make, copied: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))
    source = open_checkpoint(str(tiny("llama")))
    assert as_weights(source, "bf16") is source
    half = open_checkpoint(str(tiny("llama", dtype="float16")))
    assert as_weights(half, "bf16") is half
    single = open_checkpoint(str(tiny("llama", dtype="float32")))
    assert as_weights(single, "fp32") is single
    first = as_weights(source, "nf4")
    assert (first.weights, first.name) == ("nf4", source.name) and first.path.parent == tmp_path / "cache"
    assert as_weights(first, "nf4") is first
    written = copied("llama")
    os.utime(written / "model.safetensors", ns=(1, 10**18))
    again = open_checkpoint(str(written))  # of the same fingerprint: whether all is as it was is not known
    assert again.fingerprint == source.fingerprint and as_weights(again, "nf4").path.name[-16:] != first.path.name[-16:]
    monkeypatch.setattr(packing, "_write_tensors", None)  # it must not be made again
    assert as_weights(source, "nf4").path == first.path


def test_as_weights_fuses_experts_and_mends_a_damaged_copy(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))
    source = open_checkpoint(str(tiny("mixtral")))
    fused = as_weights(source, "bf16")
    assert fused is not source and "model.layers.0.mlp.experts.gate_up_proj" in fused.tensors
    assert as_weights(fused, "bf16") is fused
    (fused.path / "model.safetensors").write_bytes(b"damaged")
    assert as_weights(source, "bf16").tensors == fused.tensors


def test_two_at_once(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(as_weights(open_checkpoint(str(tiny("smollm3"))), "nf4").path)
        except BaseException as error:
            found.append(error)

    tiny("smollm3")
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and found[0].is_dir(), found
    assert list((tmp_path / "cache").iterdir()) == [found[0]]


def test_a_cache_that_cannot_be_written(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Path, "mkdir", deny)
    with pytest.raises(CheckpointError, match="set HALFBYTE_CACHE"):
        as_weights(open_checkpoint(str(tiny("llama"))), "nf4")
