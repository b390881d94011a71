import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from halfbyte import kernels
from halfbyte.checkpoint import pack as packing
from halfbyte.checkpoint import writer
from halfbyte.checkpoint.jobs import plan_jobs
from halfbyte.checkpoint.pack import as_weights, pack
from halfbyte.checkpoint.skeleton import linear_names, skeleton
from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.errors import CheckpointError
from halfbyte.formats import QUANTISED, Weights, packed_bytes
from tests.checkpoint.conftest import Make
from tests.checkpoint.packing import packed, state_of
from tests.checkpoint.plain import logits, plain_model
from tests.tiny import FAMILIES


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


def test_what_waits_for_the_disk_is_bounded_by_half_the_bytes_of_the_largest_tensor(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(str(tiny("llama")))
    jobs, _ = plan_jobs(checkpoint, skeleton(checkpoint), "nf4")
    assert packing._limit(jobs) == writer.FLUSH
    monkeypatch.setattr(packing, "FLUSH", 1)
    embedding = state_of(checkpoint.path)["model.embed_tokens.weight"]
    assert packing._limit(jobs) == embedding.nbytes // 2


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
