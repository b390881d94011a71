"""What a run puts on disks: the copy is counted to the byte but for headers, and what lacks room is said."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from halfbyte.checkpoint.pack import as_weights
from halfbyte.checkpoint.source import open_folder
from halfbyte.plan import disk
from halfbyte.plan.disk import disk_of, makes_copy
from halfbyte.plan.inventory import from_folder
from halfbyte.plan.ladder import plan_model
from halfbyte.plan.shapes import TensorSpec
from tests.tiny import tiny_checkpoint


@pytest.mark.parametrize("weights", ["nf4", "nf4-single", "int8", "bf16", "fp32"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_copy_is_made_where_it_is_foretold_and_is_as_large(weights, dtype, tmp_path):
    model = tiny_checkpoint("llama", tmp_path / "model", dtype=dtype)
    inventory = from_folder(model)
    made = as_weights(open_folder(model), weights)
    copied = made.path != model
    assert makes_copy(inventory, weights) == copied
    planned = disk_of(inventory, weights, 0, 0, here=True)
    assert planned.download == 0 and planned.run == 0 and planned.new in (0, planned.packed)
    if copied:
        size = sum(file.stat().st_size for file in made.path.glob("*.safetensors"))
        assert planned.packed is not None and abs(size - planned.packed) < 16_384  # the header, and the digits in JSON
    else:
        assert planned.packed == 0


def test_files_that_hold_fewer_layers_than_the_configuration_says_are_noted(tmp_path):
    model = tiny_checkpoint("llama", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    assert not any("layers" in note for note in from_folder(model).notes)
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert any("says 3 layers, and the files hold 2" in note for note in from_folder(model).notes)


def test_experts_that_stand_apart_are_copied_even_in_their_own_type(tmp_path):
    inventory = from_folder(tiny_checkpoint("llama", tmp_path / "model", dtype="bfloat16"))
    for name, copied in (("layers.0.mlp.experts.3.up_proj.weight", True), ("layers.0.mlp.experts.up_proj", False)):
        expert = TensorSpec(name, (4, 64, 64), "expert")
        assert makes_copy(replace(inventory, tensors=(*inventory.tensors, expert)), "bf16") is copied


def test_a_disk_that_is_too_small_is_said(monkeypatch, tmp_path):
    def said(**more) -> str:
        plan = plan_model("llama-3.1-8b", memory="64GB", **more)
        return next(reason for reason in plan.reasons if reason.startswith("disk:"))

    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(disk, "_free", lambda folder: 5_000_000_000)
    plan = plan_model("llama-3.1-8b", memory="64GB")
    packed = plan.weights_bytes["nf4"] + plan.constants_bytes["nf4"] + plan.tables_bytes["nf4"] + plan.json_bytes["nf4"]
    assert plan.disk_bytes == {"download": 2 * 8_030_261_248, "packed": packed, "free": 5_000_000_000,
                               "run": 3 * (4 + 8) * plan.adapter_parameters + 8 * plan.adapter_parameters}  # fmt: skip
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(disk, "_same_disk", lambda one, other: True)
    assert "downloads 16.1 GB" in said() and "does not fit, 18.6 GB too much" in said()  # all of it goes there
    (tmp_path / "hub" / "models--meta-llama--Llama-3.1-8B").mkdir(parents=True)
    assert "does not fit, 2.55 GB too much" in said()
    assert "free on" not in said(device="24GB") and "packed copy" not in said(weights="bf16")
    monkeypatch.setattr(disk, "_same_disk", lambda one, other: False)
    assert "does not fit, 703 MB too much" in said()
    (tmp_path / "cache" / "meta-llama--Llama-3.1-8B-nf4-0123456789abcdef").mkdir(parents=True)
    assert "free on" in said() and "too much" not in said()  # it may be there
