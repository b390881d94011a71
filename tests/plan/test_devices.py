"""Devices by name, by amount, several of them, and those of this machine."""

import pytest

from halfbyte.errors import ConfigError
from halfbyte.plan import devices
from halfbyte.plan.devices import CARDS, find_device
from halfbyte.plan.ladder import plan_model
from halfbyte.plan.machine import CudaDevice

GB = 10**9


@pytest.mark.parametrize(
    ("asked", "name", "count", "size"),
    [
        ("T4", "T4", 1, 15360 << 20),
        ("tesla t4", "T4", 1, 15360 << 20),
        ("NVIDIA A100-80GB", "A100 80GB", 1, 81920 << 20),
        ("2xA100 40GB", "A100 40GB", 2, 40960 << 20),
        ("H100", "H100 80GB", 1, 81559 << 20),
        ("rtx3090", "RTX 3090", 1, 24268 << 20),
        ("4090", "RTX 4090", 1, 24564 << 20),
        ("24GB", "a card with 24GB", 1, 24 * GB),
        ("2x80GB", "a card with 80GB", 2, 80 * GB),
        ("8 x 16GiB", "a card with 16GiB", 8, 16 << 30),
    ],
)
def test_a_device_that_is_named(asked, name, count, size):
    found = find_device(asked)
    assert (found.name, found.count, found.memory_bytes, found.kind, found.here) == (name, count, size, "cuda", False)
    assert found.bf16 is (name != "T4") and found.reason


def test_a_name_that_several_cards_have_lists_these():
    with pytest.raises(ConfigError, match="write which one: A100 40GB or A100 80GB"):
        find_device("2xA100")


@pytest.mark.parametrize("asked", ["T5", "lots", "0xT4", "0GB", "cuda:x"])
def test_what_is_no_device_lists_what_there_is(asked):
    with pytest.raises(ConfigError, match=r"A100 80GB|needs memory|at least one"):
        find_device(asked)


def test_the_cards_of_the_table_are_plausible():
    for name, (mib, _) in CARDS.items():
        assert find_device(name).name == name
        told = [int(word.removesuffix("GB")) for word in name.split() if word.endswith("GB")]
        assert not told or 0.9 < mib / 1024 / told[0] <= 1.03


@pytest.mark.parametrize(
    ("built", "cards", "kind", "reason"),
    [
        (False, (CudaDevice("Tesla T4", 16 * GB, 15 * GB),), "cpu", "without CUDA"),
        (True, (), "cpu", "no CUDA device"),
        (True, (CudaDevice("Tesla T4", 16 * GB, 15 * GB),), "cuda", "is there"),
    ],
)
def test_auto_takes_a_card_that_torch_can_use(built, cards, kind, reason, monkeypatch):
    monkeypatch.setattr(devices, "torch_has_cuda", lambda: built)
    monkeypatch.setattr(devices, "cuda_devices", lambda: cards)
    found = find_device("auto")
    assert found.kind == kind and reason in found.reason and found.here
    if kind == "cuda":
        assert found.memory_bytes == 15 * GB and not found.bf16
        assert find_device("cuda").memory_bytes == find_device("cuda:0").memory_bytes == 15 * GB
        with pytest.raises(ConfigError, match="nvidia-smi lists 1"):
            find_device("cuda:1")


def test_the_cards_of_this_machine_are_known_by_their_full_names():
    names = {"NVIDIA A100-SXM4-40GB": True, "Tesla V100-SXM2-32GB": False, "NVIDIA GeForce GTX 1080": False,
             "NVIDIA H100 80GB HBM3": True, "Tesla T4": False, "Quadro P4000": False, "Quadro GV100": False,
             "GeForce MX150": False, "NVIDIA RTX 2000 Ada Generation": True, "NVIDIA GeForce RTX 2080 Ti": False,
             "NVIDIA L4": True}  # fmt: skip
    for name, bf16 in names.items():
        assert devices._of(CudaDevice(name, 10, 5), "").bf16 is bf16


def test_torch_is_asked_without_importing_it(tmp_path, monkeypatch):
    import torch

    assert devices.torch_has_cuda() == (torch.version.cuda is not None)


def test_on_a_card_the_weights_are_part_of_the_peak_and_nothing_is_mapped():
    plan = plan_model("llama-3.1-8b", device="RTX 4090")
    tune = plan.phases["tune"]
    held = plan.weights_bytes["nf4"] + plan.constants_bytes["nf4"]
    assert tune.parts["weights"] == held and tune.mapped_bytes == 0 and tune.parts["context"] > 0
    assert "runtime" not in tune.parts and tune.peak_bytes == sum(tune.parts.values())
    assert plan.memory_bytes == 24564 << 20 and plan.device["kind"] == "cuda"
    assert any("no native kernel for cuda" in reason for reason in plan.reasons)


@pytest.mark.parametrize(("model", "weights", "width"), [("llama-3.2-1b", "nf4", 2), ("llama-3.2-1b", "bf16", 4),
                                                          ("gemma-2-2b", "nf4", 4)])  # fmt: skip
def test_a_card_without_bf16_computes_in_fp16_where_that_holds_the_activations(model, weights, width):
    with_it, without = (plan_model(model, device=card, memory="16GB", weights=weights) for card in ("L4", "T4"))
    assert (with_it.settings["dtype_bytes"], without.settings["dtype_bytes"]) == (2, width)
    assert (without.phases["tune"].peak_bytes > with_it.phases["tune"].peak_bytes) == (width == 4)


def test_an_amount_without_its_unit_is_guessed_at():
    with pytest.raises(ConfigError) as caught:
        find_device("24")
    assert str(caught.value.do).startswith("with a unit, 24GB is an amount of memory")
