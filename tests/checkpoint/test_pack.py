import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from halfbyte import kernels
from halfbyte.checkpoint import pack as packing
from halfbyte.checkpoint import writer
from halfbyte.checkpoint.load import load_state
from halfbyte.checkpoint.pack import PackReport, as_weights, pack
from halfbyte.checkpoint.skeleton import linear_names, skeleton
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.errors import CheckpointError
from halfbyte.formats import QUANTISED, Weights, packed_bytes
from tests.checkpoint.conftest import Make
from tests.checkpoint.plain import logits, plain_model
from tests.tiny import FAMILIES


def state_of(folder: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(str(folder))
    return dict(load_state(checkpoint, skeleton(checkpoint)))


def packed(folder: Path, out: Path, weights: Weights) -> PackReport:
    return pack(open_checkpoint(str(folder)), out, weights)


@pytest.mark.parametrize("weights", QUANTISED)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_packs_and_opens(family: str, weights: Weights, tiny: Make, tmp_path: Path) -> None:
    folder, out = tiny(family), tmp_path / "packed"
    report, source = packed(folder, out, weights), state_of(folder)
    assert open_checkpoint(str(out)).weights == weights
    names = {f"{name}.weight" for name in linear_names(skeleton(open_checkpoint(str(out))))}
    state = state_of(out)
    assert set(state) == set(source) and report.quantised == len(names)
    sizes = [packed_bytes(weights, *source[name].shape) for name in names]
    assert report.quantised_nbytes == sum(size.codes + size.constants for size in sizes)
    assert report.nbytes == (out / "model.safetensors").stat().st_size
    for name, value in state.items():
        if name in names:
            expected = kernels.dequantise(kernels.quantise(source[name], weights), torch.float32)
            assert torch.equal(kernels.dequantise(value, torch.float32), expected)
        else:
            assert torch.equal(value, source[name])


@pytest.mark.parametrize("weights", QUANTISED)
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_it_and_computes_the_same(family: str, weights: Weights, tiny: Make, tmp_path: Path) -> None:
    """In train mode, without dropout: in eval mode bitsandbytes repacks. Ours are plain torch over decoded weights."""
    packed(tiny(family), tmp_path / "packed", weights)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype="auto", device_map="cpu").train()
    kind = bitsandbytes.nn.Linear8bitLt if weights == "int8" else bitsandbytes.nn.Linear4bit
    assert sum(isinstance(module, kind) for module in theirs.modules()) == len(
        linear_names(skeleton(open_checkpoint(str(tmp_path / "packed"))))
    )
    exact = logits(plain_model(tmp_path / "packed", torch.float32))
    same_precision = (logits(plain_model(tmp_path / "packed", torch.bfloat16)) - exact).abs().max()
    assert (logits(theirs) - exact).abs().max() <= 2 * same_precision
    assert AutoTokenizer.from_pretrained(tmp_path / "packed")("a castle").input_ids


def test_what_waits_for_the_disk_is_bounded_by_half_the_bytes_of_the_largest_tensor(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(str(tiny("llama")))
    jobs, _ = packing._jobs(checkpoint, skeleton(checkpoint), "nf4")
    assert packing._limit(jobs) == writer.FLUSH
    monkeypatch.setattr(packing, "FLUSH", 1)
    embedding = state_of(checkpoint.path)["model.embed_tokens.weight"]
    assert packing._limit(jobs) == embedding.nbytes // 2


def save_theirs(folder: Path, out: Path, weights: Weights, **settings: Any) -> Any:
    config = BitsAndBytesConfig(load_in_8bit=True) if weights == "int8" else BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_use_double_quant=weights == "nf4",
        **{"bnb_4bit_quant_type": "nf4"} | settings,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map="cpu", dtype=torch.bfloat16
    )
    model.save_pretrained(out)
    return model


@pytest.mark.parametrize("weights", QUANTISED)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "phi3", "qwen3_moe"])
def test_what_transformers_with_bitsandbytes_saved_opens_here(
    family: str, weights: Weights, tiny: Make, tmp_path: Path
) -> None:
    theirs = save_theirs(tiny(family), tmp_path / "theirs", weights)
    assert open_checkpoint(str(tmp_path / "theirs")).weights == weights
    state, modules = state_of(tmp_path / "theirs"), dict(theirs.named_modules())
    compared = 0
    for name, value in state.items():
        if isinstance(value, Tensor):
            continue
        weight = modules[name.removesuffix(".weight")].weight
        if weights == "int8":
            expected = bitsandbytes.functional.int8_vectorwise_dequant(weight.data, weight.SCB)
            assert torch.equal(kernels.dequantise(value, torch.float32), expected)
        else:
            expected = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            assert torch.equal(kernels.dequantise(value, torch.bfloat16), expected)
        compared += 1
    assert compared == len(linear_names(skeleton(open_checkpoint(str(tmp_path / "theirs")))))


@pytest.mark.parametrize("weights", QUANTISED)
def test_every_tensor_is_what_bitsandbytes_writes_byte_for_byte(weights: Weights, tiny: Make, tmp_path: Path) -> None:
    save_theirs(tiny("llama"), tmp_path / "theirs", weights)
    packed(tiny("llama"), tmp_path / "ours", weights)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def test_other_storage_types_and_fp4_of_transformers(tiny: Make, tmp_path: Path) -> None:
    save_theirs(tiny("mistral"), tmp_path / "bf16", "nf4", bnb_4bit_quant_storage=torch.bfloat16)
    save_theirs(tiny("mistral"), tmp_path / "uint8", "nf4")
    stored, usual = state_of(tmp_path / "bf16"), state_of(tmp_path / "uint8")
    assert open_checkpoint(str(tmp_path / "bf16")).tensors["model.layers.0.mlp.up_proj.weight"].dtype == "BF16"
    for name, value in usual.items():
        if not isinstance(value, Tensor):
            assert torch.equal(stored[name].codes, value.codes) and stored[name].offset == value.offset
    save_theirs(tiny("mistral"), tmp_path / "fp4", "nf4", bnb_4bit_quant_type="fp4")
    with pytest.raises(CheckpointError, match="bitsandbytes fp4"):
        open_checkpoint(str(tmp_path / "fp4"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("weights", ["nf4", "int8", "bf16", "fp32"])
def test_dtypes(dtype: str, weights: Weights, tiny: Make, tmp_path: Path) -> None:
    """What is not quantised becomes bf16, but fp16 stays fp16; linear layers are quantised from what is stored."""
    source = state_of(tiny("qwen2", dtype=dtype))
    packed(tiny("qwen2", dtype=dtype), tmp_path / "out", weights)
    out, state = open_checkpoint(str(tmp_path / "out")), state_of(tmp_path / "out")
    rest = torch.float32 if weights == "fp32" else torch.float16 if dtype == "float16" else torch.bfloat16
    assert f"torch.{out.dtype}" == f"torch.{out.config['dtype']}" == str(rest)
    for name, value in state.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, source[name].to(rest))
        else:
            expected = kernels.quantise(source[name], weights)
            assert torch.equal(value.codes, expected.codes)
    if weights == "nf4":
        state_json = load_file(tmp_path / "out/model.safetensors")
        text = bytes(state_json["model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4"].numpy())
        assert json.loads(text)["dtype"] == str(rest).removeprefix("torch.")


@pytest.mark.parametrize("weights", ["bf16", "fp32"])
@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_plain_copies_are_plain_models(family: str, weights: Weights, tiny: Make, tmp_path: Path) -> None:
    packed(tiny(family), tmp_path / "out", weights)
    dtype = torch.float32 if weights == "fp32" else torch.bfloat16
    expected = AutoModelForCausalLM.from_pretrained(tiny(family), dtype=dtype).eval()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert theirs.dtype == dtype
    assert torch.equal(logits(theirs), logits(expected))
    assert torch.equal(logits(plain_model(tmp_path / "out")), logits(expected))
    assert "quantization_config" not in open_checkpoint(str(tmp_path / "out")).config


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_fused_experts_stay_and_are_named(family: str, tiny: Make, tmp_path: Path) -> None:
    report = packed(tiny(family), tmp_path / "out", "nf4")
    state = state_of(tmp_path / "out")
    left = {item.name: item for item in report.left}
    experts = [name for name in state if "experts" in name]
    assert len(experts) == 4
    for name in experts:
        assert state[name].dtype == torch.bfloat16 and left[name].nbytes == state[name].nbytes
        assert left[name].reason.startswith("no linear layer: [4, ")
    stays = {id(value): value.nbytes for value in state.values() if isinstance(value, Tensor)}
    assert sum(item.nbytes for item in report.left) == sum(stays.values())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu").train()
    assert torch.equal(logits(theirs), logits(plain_model(tmp_path / "out", torch.bfloat16)))


def test_a_model_without_a_linear_layer_is_refused(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no linear layer that can be quantised to nf4") as caught:
        packed(tiny("gpt2"), tmp_path / "out", "nf4")
    assert "Conv1D" in str(caught.value) and not (tmp_path / "out").exists()


def test_shards_in_and_out(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(tiny("mistral"), tmp_path / "one", "nf4")
    monkeypatch.setattr(writer, "SHARD", 30_000)
    packed(tiny("mistral", max_shard_size="50KB"), tmp_path / "many", "nf4")
    assert len(open_checkpoint(str(tmp_path / "many")).files) > 3
    exact = logits(plain_model(tmp_path / "one", torch.float32))
    assert torch.equal(logits(plain_model(tmp_path / "many", torch.float32)), exact)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "many", device_map="cpu").train()
    assert torch.equal(logits(theirs), logits(plain_model(tmp_path / "one", torch.bfloat16)))


def test_what_is_copied_and_what_is_noted(copied: Make, tmp_path: Path) -> None:
    folder = copied("llama", chat_template="{{ messages[0].content }}")
    (folder / "LICENSE").write_text("to anyone")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    done: list[tuple[str, int, int]] = []
    out = tmp_path / "deep" / "er" / "packed"
    report = pack(open_checkpoint(str(folder)), out, "nf4", progress=lambda *step: done.append(step))
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in folder.iterdir()} - {"pytorch_model.bin"} | {"halfbyte.json"}
    assert (out / "LICENSE").read_text() == "to anyone"
    skipped = open_checkpoint(str(out)).config["quantization_config"]["llm_int8_skip_modules"]
    assert skipped == ["lm_head"]
    assert [step[1] for step in done] == sorted(step[1] for step in done) and done[-1][1] == done[-1][2] > 0
    assert {item.name for item in report.left} >= {"model.embed_tokens.weight", "lm_head.weight"}


def test_an_out_that_is_there_already(tiny: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()  # empty: fine
    report = packed(tiny("llama"), out, "nf4")
    again = packed(tiny("llama"), out, "nf4")
    assert again.already and (again.nbytes, again.left, again.quantised) == (report.nbytes, report.left, 14)
    for folder, weights in ((tiny("llama"), "int8"), (tiny("llama", seed=1), "nf4")):
        with pytest.raises(CheckpointError, match="not empty"):
            packed(folder, out, weights)
    with pytest.raises(CheckpointError, match="not empty"):
        packed(tiny("llama"), tiny("llama"), "nf4")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="this is a file"):
        packed(tiny("llama"), tmp_path / "file", "nf4")
    (out / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="not empty"):
        packed(tiny("llama"), out, "nf4")


def test_a_packed_checkpoint_stays_in_its_format(tiny: Make, tmp_path: Path) -> None:
    packed(tiny("llama"), tmp_path / "a", "nf4")
    packed(tmp_path / "a", tmp_path / "b", "nf4")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    for weights in ("int8", "nf4-single", "bf16", "fp32"):
        for change in (lambda c, w: pack(c, tmp_path / "c", w), as_weights):
            with pytest.raises(CheckpointError, match=f"packed as nf4 and can't become {weights}"):
                change(open_checkpoint(str(tmp_path / "a")), weights)


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_was_not_finished(
    fault: BaseException, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    def fail(file: writer._File, offset: int, data: memoryview) -> None:
        nonlocal written
        written += 1
        if written > 20:
            raise fault

    monkeypatch.setattr(writer._File, "write", fail)
    with pytest.raises(CheckpointError if isinstance(fault, OSError) else KeyboardInterrupt) as caught:
        packed(tiny("llama"), tmp_path / "out", "nf4")
    assert list(tmp_path.iterdir()) == []
    if isinstance(fault, OSError):
        assert "the disk is full" in str(caught.value)


def test_room_is_asked_for_first(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 50_000})
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="not enough room"):
        packed(tiny("llama"), tmp_path / "out", "nf4")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tiny: Make, tmp_path: Path) -> None:
    host = packing.socket.gethostname()
    for pid, stays in (("999999999", False), (str(os.getpid()), True)):
        stale = tmp_path / f".out.{host}-{pid}-0123.partial"
        stale.mkdir()
        (stale / "model.safetensors").touch()
        packed(tiny("llama"), tmp_path / "out", "nf4")
        packing.shutil.rmtree(tmp_path / "out")
        assert stale.exists() is stays


@pytest.mark.parametrize("weights", QUANTISED)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused_by_name(
    value: float, weights: Weights, copied: Make, tmp_path: Path
) -> None:
    folder, name = copied("llama"), "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[name][3, 4] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=name):
        packed(folder, tmp_path / "out", weights)
    assert not (tmp_path / "out").exists()


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


MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from halfbyte.checkpoint.pack import pack
from halfbyte.checkpoint.source import open_checkpoint

def held():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmSwap"))

small, large, out, weights = sys.argv[1:]
torch.set_num_threads(1)
pack(open_checkpoint(small), Path(out + "-small"), weights)  # the runtime: libraries, kernels, tables
before, peak, done = held(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, held())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
pack(open_checkpoint(large), Path(out), weights)
done = True
thread.join()
print(peak - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process' anonymous memory, in /proc")
@pytest.mark.parametrize(
    ("family", "weights", "shape"),
    [
        # one tensor of 134 MB (the fused gate and up) in a file of 210 MB
        ("phi3", "nf4", {"hidden_size": 512, "intermediate_size": 65536, "num_hidden_layers": 1}),
        # no tensor of the file over 4 MB, one of 67 MB (the fused experts) in the model
        ("mixtral", "nf4", {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 2,
                            "num_local_experts": 8}),
        ("phi3", "fp32", {"hidden_size": 512, "intermediate_size": 32768, "num_hidden_layers": 1}),
    ],
)  # fmt: skip
def test_the_peak_of_memory(family: str, weights: Weights, shape: dict[str, int], tiny: Make, tmp_path: Path) -> None:
    """At most twice the largest tensor above the runtime; what waits for the disk (at most `FLUSH`) counts in full."""
    from tests.tiny import tiny_checkpoint

    large = open_checkpoint(str(tiny_checkpoint(family, tmp_path / "large", head_dim=64, **shape)))
    built = skeleton(large).state_dict().values()
    largest = max(max(tensor.nbytes for tensor in built), max(stored.nbytes for stored in large.tensors.values()))
    assert large.nbytes > 100_000_000 and largest > large.nbytes / 4
    command = [sys.executable, "-c", MEASURE, str(tiny(family)), str(large.path), str(tmp_path / "out"), weights]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout) + writer.FLUSH
    print(
        f"{family} {weights}: file {large.nbytes / 1e6:.0f} MB, largest {largest / 1e6:.0f} MB, peak {peak / 1e6:.0f}"
    )
    assert peak <= 2 * largest


def test_links_out_of_a_folder_are_not_copied(copied: Make, tmp_path: Path) -> None:
    folder = copied("llama")
    (tmp_path / "secret").write_text("mine")
    (folder / "NOTICE.txt").symlink_to(tmp_path / "secret")
    (folder / "LICENSE").write_text("to anyone")
    (folder / "LICENSE.txt").symlink_to(folder / "LICENSE")
    pack(open_checkpoint(str(folder)), tmp_path / "packed", "nf4")
    names = {path.name for path in (tmp_path / "packed").iterdir()}
    assert {"LICENSE", "LICENSE.txt"} <= names and "NOTICE.txt" not in names


def test_the_links_of_the_hubs_cache_are_copied(tiny: Make, tmp_path: Path) -> None:
    folder, blobs = tmp_path / "cache" / "snapshots" / "0123", tmp_path / "cache" / "blobs"
    folder.mkdir(parents=True)
    shutil.copytree(tiny("llama"), blobs)
    for file in blobs.iterdir():
        (folder / file.name).symlink_to(Path("..") / ".." / "blobs" / file.name)
    pack(open_checkpoint(str(folder)), tmp_path / "packed", "nf4")
    assert (tmp_path / "packed" / "tokenizer.json").is_file()
