import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from halfbyte.checkpoint.source import open_checkpoint, packed_format
from halfbyte.errors import CheckpointError
from tests.checkpoint.conftest import Make


def refused(model: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(model))
    return str(caught.value)


def edit(file: Path, change: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_folder(tiny: Make, dtype: str) -> None:
    folder = tiny("llama", dtype=dtype)
    found = open_checkpoint(str(folder))
    held = load_file(folder / "model.safetensors")
    assert {name: stored.shape for name, stored in found.tensors.items()} == {
        n: tuple(t.shape) for n, t in held.items()
    }
    assert (found.path, found.name, found.dtype, found.weights) == (folder, folder.name, dtype, None)
    assert found.config["model_type"] == "llama" and found.nbytes == sum(t.nbytes for t in held.values())


def test_shards_are_one_checkpoint(tiny: Make) -> None:
    whole, sharded = open_checkpoint(str(tiny("llama"))), open_checkpoint(str(tiny("llama", max_shard_size="40KB")))
    assert len(sharded.files) > 2
    assert {n: (s.dtype, s.shape) for n, s in sharded.tensors.items()} == {
        n: (s.dtype, s.shape) for n, s in whole.tensors.items()
    }


def test_all_missing_shards_are_named(copied: Make) -> None:
    folder = copied("llama", max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    for shard in shards[1:]:
        shard.unlink()
    said = refused(folder)
    assert f"{len(shards) - 1} of {len(shards)} shards are missing" in said
    assert all(shard.name in said for shard in shards[1:]) and shards[0].name not in said


def test_an_index_that_contradicts_its_shards(copied: Make) -> None:
    folder = copied("llama", max_shard_size="40KB")
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    first, *others = sorted(set(places.values()))
    moved = next(name for name, file in places.items() if file == first)
    lost = next(name for name, file in places.items() if file == others[0])
    wrong = {name: file for name, file in places.items() if name != lost} | {moved: others[0], "invented": first}
    edit(index, {"weight_map": wrong})
    said = refused(folder)
    assert "contradict" in said and all(f"{name}: " in said for name in (moved, lost, "invented"))
    edit(index, {"weight_map": {"a": "../outside.safetensors"}})
    assert "do not lie beside it" in refused(folder)
    edit(index, {"weight_map": None})
    assert "no weight_map" in refused(folder)


def test_folders_that_hold_no_model(copied: Make, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in refused(empty)
    (empty / "notes.md").touch()
    assert "neither model.safetensors nor" in refused(empty)
    for name, says in (
        ("pytorch_model.bin", "save_pretrained"),
        ("consolidated.00.pth", "save_pretrained"),
        ("adapter_config.json", "--adapter"),
        ("model-q4.gguf", "gguf_file='model-q4.gguf'"),
    ):
        other = tmp_path / name.replace(".", "-")
        other.mkdir()
        (other / name).touch()
        assert says in refused(other) and str(other) in refused(other)
    folder = copied("llama")
    assert f"give the folder that holds it: {folder}" in refused(folder / "model.safetensors")
    assert "GGUF" in refused(tmp_path / "model-q4-gguf" / "model-q4.gguf")
    (folder / "config.json").write_text("{")
    assert "no valid JSON" in refused(folder)
    (folder / "config.json").write_text("{}")
    assert "model_type" in refused(folder)
    (folder / "config.json").unlink()
    assert "no config.json" in refused(folder)


@pytest.mark.parametrize("name", ["no/such/folder", "./here", "/nowhere/at/all", "a b", "", "../up", "x--y"])
def test_neither_a_folder_nor_a_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "":  # the current folder
        assert "empty" in refused(name)
    else:
        said = refused(name)
        assert "no folder of that name" in said and "hub id" in said


FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"}


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        (None, None),
        (FOUR, "nf4-single"),
        (FOUR | {"bnb_4bit_use_double_quant": True}, "nf4"),
        ({"load_in_8bit": True}, "int8"),
        ({"_load_in_8bit": True, "quant_method": "bitsandbytes"}, "int8"),
    ],
)
def test_formats_that_are_read(settings: dict[str, Any] | None, weights: str | None, tmp_path: Path) -> None:
    assert packed_format({"quantization_config": settings}, tmp_path) == weights


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (FOUR | {"bnb_4bit_quant_type": "fp4"}, "bitsandbytes fp4"),
        ({"load_in_4bit": True}, "bitsandbytes fp4"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "bitsandbytes"}, "neither, or both"),
        ({"load_in_8bit": True, "llm_int8_has_fp16_weight": True}, "llm_int8_has_fp16_weight"),
    ],
)
def test_formats_that_are_refused_by_name(settings: dict[str, Any], named: str, copied: Make) -> None:
    folder = copied("llama")
    edit(folder / "config.json", {"quantization_config": settings})
    said = refused(folder)
    assert "not read" in said and named in said


def test_config_and_tensors_must_agree_on_packing(copied: Make) -> None:
    folder = copied("llama")
    edit(folder / "config.json", {"quantization_config": FOUR})
    assert "but no tensor is" in refused(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight.absmax"] = tensors["model.norm.weight"].float()
    save_file(tensors, folder / "model.safetensors")
    edit(folder / "config.json", {"quantization_config": None})
    assert "no quantization_config" in refused(folder)


def test_the_identity_sees_what_the_fingerprints_samples_miss(copied: Make) -> None:
    folder = copied("llama")
    file = folder / "model.safetensors"
    before = open_checkpoint(str(folder))
    assert before.identity == open_checkpoint(str(folder)).identity
    os.utime(file, ns=(1, 10**18))
    after = open_checkpoint(str(folder))
    assert after.fingerprint == before.fingerprint and after.identity != before.identity
    assert open_checkpoint(str(folder)).identity == after.identity
    assert dataclasses.replace(after, revision="a" * 40).identity == after.fingerprint  # a commit does not change


def test_the_fingerprint_tells_checkpoints_apart(tiny: Make, copied: Make) -> None:
    fingerprint = open_checkpoint(str(tiny("llama"))).fingerprint
    folder = copied("llama")
    assert open_checkpoint(str(folder)).fingerprint == fingerprint
    assert open_checkpoint(str(tiny("llama", seed=1))).fingerprint != fingerprint
    assert open_checkpoint(str(tiny("llama", dtype="float16"))).fingerprint != fingerprint
    edit(folder / "config.json", {"rms_norm_eps": 1e-5})
    assert open_checkpoint(str(folder)).fingerprint != fingerprint


@pytest.mark.parametrize("mib", [1.5, 2, 4, 34])
def test_the_fingerprint_reads_what_is_documented(copied: Make, mib: float) -> None:
    """As docs/reliability.md says: the first and the last MiB, and of a file over 4 MiB 16 blocks of 64 KiB."""
    folder, edge = copied("llama"), 1 << 20
    file = folder / "model.safetensors"
    save_file({"weight": torch.zeros(int(mib * edge) // 2 - 50, dtype=torch.bfloat16)}, file)
    size = file.stat().st_size
    before = open_checkpoint(str(folder)).fingerprint

    def flip(place: int) -> None:
        with file.open("r+b") as stream:
            stream.seek(place)
            (held,) = stream.read(1)
            stream.seek(place)
            stream.write(bytes([held ^ 1]))

    def is_seen(place: int) -> bool:
        flip(place)
        found = open_checkpoint(str(folder)).fingerprint
        flip(place)
        return found != before

    blocks = [size * k // 17 for k in range(1, 17)] if mib > 4 else []
    for place in (edge // 2, edge - 1, size - edge, size - 1, *blocks, *(block + (64 << 10) - 1 for block in blocks)):
        assert is_seen(place), place
    for place in (edge, size - edge - 1, *(block - 1 for block in blocks), *(block + (64 << 10) for block in blocks)):
        assert is_seen(place) == (size <= 2 * edge or any(0 <= place - at < 64 << 10 for at in blocks)), place


def test_opening_imports_no_torch(tiny: Make) -> None:
    code = (
        "import sys; from halfbyte.checkpoint.source import open_checkpoint; "
        "open_checkpoint(sys.argv[1]).fingerprint; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny("llama"))], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
