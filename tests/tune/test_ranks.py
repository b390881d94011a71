"""Several processes that train together: the steps of one process, and one message when something goes wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from halfbyte import experiment
from halfbyte.errors import ConfigError
from halfbyte.ledger import Ledger
from halfbyte.pipeline import Target
from halfbyte.tune import ranks as ranks_module
from halfbyte.tune.ranks import Joined, OtherFailed, Ranks, joined
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]
TUNE = "{epochs: 2, batch: 6, micro_batch: 2, learning_rate: 1.0e-3, checkpoint_every: 0, validate_every: 1}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of 2 x 3 steps, of which the last of an epoch has one item."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny_checkpoint("llama", folder / "tiny")
    lines = [{"prompt": f"set {i} costs $", "completion": f"{i % 9}.99" + " or so" * (i % 4)} for i in range(17)]
    for name, part in (("train", lines[:13]), ("test", lines[13:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
    keys = {"model": "tiny", "compute": "fp32", "data": "{train: train.jsonl, validation: test.jsonl}", "tune": TUNE,
            "memory": "2GB"}  # fmt: skip
    (folder / "run.yaml").write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    return folder


def launched(place: Path, *launches: dict[str, Any]) -> list[list[int]]:
    """Exit codes, by launch and rank."""
    variables = os.environ | {"OMP_NUM_THREADS": "1", "HALFBYTE_CACHE": str(place / "cache")}
    command = [sys.executable, "-m", "tests.tune.ranked", json.dumps(launches)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def tuned(place: Path, ranks: int, name: str, session: str = "", **fault: Any) -> dict[str, Any]:
    """A launch of the run in the folder `name`; a `session` after the first one resumes."""
    arguments = ["tune", str(place / "run.yaml"), "--set", f"out={place / name}", *(["--resume"] if session else [])]
    return {"ranks": ranks, "arguments": arguments, "log": str(place / f"{name}{session}.log"), "fault": fault}


def lines(place: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]


def items(place: Path, name: str, ranks: int, per_step: int) -> list[list[list[int]]]:
    """The items of each step in their order, put together from what the ranks took: one here, one there."""
    taken = [json.loads(Path(f"{place / name}.log.{rank}.json").read_text()) for rank in range(ranks)]
    steps = []
    while any(taken):
        count = min(per_step, sum(map(len, taken)), 13 - sum(map(len, steps)) % 13)
        steps.append([taken[number % ranks].pop(0) for number in range(count)])
    return steps


def assert_same(place: Path, name: str, other: str) -> None:
    """To rounding: the records, and both adapters."""
    one, two = lines(place, name), lines(place, other)
    assert len(one) == len(two) == 6
    for a, b in zip(one, two, strict=True):
        same = ("step", "epoch", "learning_rate", "tokens", "learned_tokens")
        assert [a[key] for key in same] == [b[key] for key in same]
        close = [key for key in ("loss", "gradient_norm", "validation_loss") if key in a or key in b]
        assert [a[key] for key in close] == pytest.approx([b[key] for key in close], rel=1e-4)
    for folder in ("adapter", "adapter-last"):
        a, b = (load_file(place / run / folder / "adapter_model.safetensors") for run in (name, other))
        assert a.keys() == b.keys() and any(bool(tensor.any()) for tensor in a.values())
        assert all(torch.dist(a[key], b[key]) <= 1e-3 * b[key].norm() + 1e-6 for key in a)


def test_two_processes_take_the_steps_of_one(place: Path) -> None:
    codes = launched(place, tuned(place, 2, "two"), tuned(place, 1, "one"), tuned(place, 3, "three"))
    assert codes == [[0, 0], [0], [0, 0, 0]], (place / "two.log").read_text()
    whole = items(place, "one", 1, 6)
    assert [len(step) for step in whole] == [6, 6, 1] * 2
    assert items(place, "two", 2, 6) == whole and items(place, "three", 3, 6) == whole
    assert_same(place, "two", "one")
    assert_same(place, "three", "one")
    said = (place / "two.log").read_text()
    assert said.count("step 6/6") == said.count("6 steps in ") == said.count("training data: ") == 1
    assert len(list((place / "cache").iterdir())) == 1


def test_a_run_goes_on_with_another_number_of_processes(place: Path) -> None:
    codes = launched(
        place,
        tuned(place, 1, "straight"),
        tuned(place, 2, "fewer", rank=1, at=3, kind="stop"),
        tuned(place, 1, "fewer", "2"),
        tuned(place, 1, "more", rank=0, at=8, kind="stop"),
        tuned(place, 2, "more", "2"),
    )
    assert codes == [[0], [130, 130], [0], [130], [0, 0]]
    assert "stopped after step 1 of 6" in (place / "fewer.log").read_text()
    assert "stopped after step 3 of 6" in (place / "more.log").read_text()
    for name, change in (("fewer", "processes 2 -> 1"), ("more", "processes 1 -> 2")):
        assert change in (place / f"{name}2.log").read_text()
        assert_same(place, name, "straight")


def test_one_that_fails_ends_all_with_one_message(place: Path) -> None:
    wrong = tuned(place, 2, "wrong")
    wrong["arguments"] += ["--set", "device=cuda:1"]
    codes = launched(
        place,
        tuned(place, 2, "error", rank=1, at=3, kind="error"),
        tuned(place, 2, "killed", rank=1, at=3, kind="kill"),
        tuned(place, 2, "unwritten", rank=0, kind="unwritten"),
        wrong,
    )
    assert codes == [[1, 1], [1, -9], [1, 1], [2, 2]]
    said = {name: (place / f"{name}.log").read_text() for name in ("error", "killed", "unwritten", "wrong")}
    for name, words in (("error", "rank 1 has a fault of its own"), ("killed", "has ended without a word"),
                        ("unwritten", "No space left"), ("wrong", "2 processes can't share one device")):  # fmt: skip
        assert said[name].count("error: ") == 1 and words in said[name], said[name]
        assert "Traceback" not in said[name]
    for name in ("error", "killed"):  # what was good is kept
        assert (place / name / "checkpoints" / "step-000001").is_dir()


@pytest.mark.parametrize(("said", "kind", "words", "do"), [
    ("[pair.cc:534] Connection closed by peer [127.0.0.1]:5", OtherFailed, "has ended without a word", "--resume"),
    ("[pair.cc:534] Read error: Connection reset by peer", OtherFailed, "has ended without a word", "--resume"),
    ("NCCL error: unhandled system error\nmore", OtherFailed, "the connection to another process of", "--resume"),
    ("", OtherFailed, "the connection to another process of this run failed", "found: RuntimeError"),
    ("CUDA out of memory. Tried to allocate 2 GiB", RuntimeError, "CUDA out of memory", ""),
])  # fmt: skip
def test_a_failed_sum_says_what_is_known(said: str, kind: type[Exception], words: str, do: str) -> None:
    one = object.__new__(Joined)
    one.rank = 1
    with pytest.raises(kind) as caught, one._connected():
        raise RuntimeError(said)
    assert type(caught.value) is kind and words in str(caught.value) and do in str(caught.value)
    assert "more" not in str(caught.value)


def test_torchrun_starts_it(place: Path) -> None:
    variables = os.environ | {"OMP_NUM_THREADS": "1", "HALFBYTE_CACHE": str(place / "cache")}
    run = ["-m", "halfbyte", *tuned(place, 2, "real")["arguments"], "--set", "tune.epochs=1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *run]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines(place, "real")] == [1, 2, 3]


def test_the_compute_type_is_the_first_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Second(Ranks):
        rank, count = 1, 2

        def from_first(self, make: Any) -> Any:
            return "fp32"

    opened: list[str] = []
    monkeypatch.setattr(experiment, "load", lambda what, *_: opened.append(what.compute))
    monkeypatch.setattr(experiment, "prepare", lambda *_: pytest.fail("one packs for all"))
    what, console = Target("tiny", None, "nf4", None, None, "auto"), Console(quiet=True)
    experiment._open(what, "cpu", Ledger(folder, console), console, Second())
    assert opened == ["fp32"]


@pytest.mark.parametrize(("changed", "found"), [
    ({"MASTER_PORT": "abc"}, "'abc'"),  # int's
    ({"MASTER_PORT": "99999"}, "99999"),
    ({"RANK": "1"}, ""),  # nobody answers
    ({"RANK": "0"}, ""),  # nobody comes
])  # fmt: skip
def test_processes_that_are_not_met_are_one_error(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], found: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(ranks_module, "_START", timedelta(seconds=1))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
                        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **changed}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="can't find each other") as caught, joined("cpu"):
        pass
    assert caught.value.found and found in str(caught.value.found) and "\n" not in str(caught.value.found)
    assert "unset RANK and WORLD_SIZE" in str(caught.value)


def test_a_process_alone_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    with joined("auto") as ranks:
        assert type(ranks) is Ranks and ranks.leads and ranks.share([3, 1, 2]) == [3, 1, 2]
        assert ranks.seed(7) == 7 and ranks.device("cuda:1") == "cuda:1" and ranks.from_first(lambda: 5) == 5
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
                        "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="several machines") as caught, joined("auto"):
        pass
    assert "2 of 4 processes are here" in str(caught.value)
