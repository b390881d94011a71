"""Plans of hub models: from headers alone, packed ones as what they are, without torch and at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from halfbyte.errors import CheckpointError
from halfbyte.plan.inventory import from_folder, take_inventory
from halfbyte.plan.ladder import plan_model
from halfbyte.plan.shapes import dimensions, tensors_from
from tests.checkpoint.rangehub import RangeHub, serving, use
from tests.plan.conftest import write_model
from tests.plan.test_inventory import packed_llama

CODE = """
import sys, time
from halfbyte.cli import main
started = time.process_time()  # a machine that does something else, too, is no fault of the plan
code = main(sys.argv[1:])
heavy = {'torch', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)
print(f"{time.process_time() - started:.3f} {' '.join(sorted(heavy))}", file=sys.stderr)
sys.exit(code)
"""


def planned(url: str, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`halfbyte plan` in a process of its own, as a user runs it."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **environment}
    command = [sys.executable, "-c", CODE, "plan", *arguments]
    return subprocess.run(command, env=plain | own, cwd=home, capture_output=True, text=True, timeout=60)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def plain_llama(llama: dict[str, Any], tmp_path: Path) -> Path:
    tensors = {spec.name: ("BF16", spec.shape) for spec in tensors_from(dimensions(llama))}
    return write_model(tmp_path / "plain", llama, tensors)


def test_a_hub_model_is_planned_as_its_folder_is_without_torch_and_at_once(
    plain_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(RangeHub(files_of(plain_llama))) as hub:
        done = planned(hub.url, tmp_path, "org/model", "--memory", "8GB", "--json")
    assert done.returncode == 0, done.stderr
    seconds, _, heavy = done.stderr.strip().splitlines()[-1].partition(" ")
    assert heavy == "" and float(seconds) < 1
    monkeypatch.undo()  # that process plans for the processor that is here
    plan, here = json.loads(done.stdout), plan_model(str(plain_llama), memory="8GB").to_json()
    for key in ("parameters", "weights_bytes", "constants_bytes", "adapter_bytes", "phases"):
        assert plan[key] == here[key]
    assert plan["model"] == "org/model" and "bytes of weights in 1 file on the hub" in plan["notes"][0]
    assert hub.sent == sum(len(content) for content in hub.files.values()) - 2 * plan["parameters"]


@pytest.mark.parametrize("kind", ["nf4", "nf4-single", "int8"])
def test_a_packed_hub_model_counts_as_what_it_is(
    kind: str, llama: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = packed_llama(llama | {"num_hidden_layers": 3}, tmp_path / "packed", kind)
    with serving(RangeHub(files_of(folder))) as hub:
        use(hub.url, monkeypatch, str(tmp_path))
        taken, here = take_inventory("org/model"), from_folder(folder)
        plan = plan_model("org/model", memory="8GB")
    assert (taken.tensors, taken.packed, taken.quantised) == (here.tensors, kind, here.quantised)
    assert plan.settings["weights"] == kind and not plan.phases["pack"].parts
    states = {asked.range for asked in hub.log[: len(hub.log) // 2] if asked.file == "model.safetensors"}
    assert len(states) == 2 + (7 if kind != "int8" else 0)  # the header, and a state for each kind of layer, not each


def test_layers_that_a_packed_checkpoint_keeps_in_16_bits_stay_there(llama: dict[str, Any], tmp_path: Path) -> None:
    whole = from_folder(packed_llama(llama, tmp_path / "all", "int8"))
    some = from_folder(packed_llama(llama, tmp_path / "some", "int8", skip="mlp.down_proj"))
    assert some.linears == whole.linears and set(whole.quantised) - set(some.quantised) == some.kept
    plans = [plan_model(str(tmp_path / name), memory="8GB") for name in ("all", "some")]
    size = 64 * 100
    assert plans[1].weights_bytes["int8"] == plans[0].weights_bytes["int8"] + size
    assert plans[1].constants_bytes["int8"] == plans[0].constants_bytes["int8"] - 4 * 64
    assert plans[1].adapter_bytes == plans[0].adapter_bytes
    assert any("1 linear layers in it are not (model.layers.0.mlp.down_proj" in note for note in plans[1].notes)


@pytest.mark.parametrize("shape", ["[64, 65]", "[4096]", "[-64, -64]", "[true, 4096]", "4096", '"ab"', "[" * 50_000])
def test_a_quant_state_that_does_not_fit_its_codes(shape: str, llama: dict[str, Any], tmp_path: Path) -> None:
    folder = packed_llama(llama, tmp_path, "nf4", state='{"shape": ' + shape + "}")
    with pytest.raises(CheckpointError, match="quant state"):
        from_folder(folder)


def test_without_a_network_the_catalogue_still_answers(tmp_path: Path) -> None:
    done = planned("http://127.0.0.1:1", tmp_path, "meta-llama/Llama-3.1-8B", "--memory", "64GB")
    assert done.returncode == 0 and "8,030,261,248" in done.stdout
    done = planned("http://127.0.0.1:1", tmp_path, "someone/llama-3.1-8b-tuned")
    assert done.returncode == 1 and "can't be reached" in done.stderr and "has llama-3.1-8b" in done.stderr
    assert "Traceback" not in done.stderr
    done = planned("http://127.0.0.1:1", tmp_path, "meta-llama/Llama-3.1-8B", "--revision", "v1")
    assert "can't be reached" in done.stderr  # the catalogue knows nothing of revisions
