"""Faults that a run meets, provoked for real: each has one clear end, and the run goes on to the same bits."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from halfbyte.checkpoint.source import open_checkpoint
from halfbyte.config import AdapterConfig, DataConfig, RunConfig, TuneConfig
from halfbyte.data.dataset import load_training
from halfbyte.errors import CheckpointError, ConfigError, DataError, HalfbyteError, TrainingError
from halfbyte.model.build import Model, load_model
from halfbyte.tune import loop
from halfbyte.tune.folder import prepare_folder
from halfbyte.tune.inputs import inputs_of
from halfbyte.tune.loop import StepRecord
from halfbyte.tune.records import Records
from halfbyte.tune.run import Outcome, run_training
from halfbyte.tune.state import State
from tests.tiny import tiny_checkpoint

UNREADABLE = Path("/proc/self/mem")  # opens, and its first byte can't be read: EIO
UNTIL = 6  # steps


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("model") / "tiny", dtype="float32")


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "train.jsonl"
    lines = [{"prompt": f"item {i}:", "completion": f" {i % 7} pieces" + " more" * (i % 5)} for i in range(24)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def options(source: Path, data_file: Path, out: Path, **tune: Any) -> RunConfig:
    settings: dict[str, Any] = {"max_steps": UNTIL, "batch": 4, "micro_batch": 2, "recompute": 0, "epochs": 9,
                                "validate_every": 0.4, "checkpoint_every": 0, "learning_rate": 5e-3}  # fmt: skip
    return RunConfig(model=str(source), compute="fp32", adapter=AdapterConfig(rank=4, dropout=0.1),
                     data=DataConfig(train=str(data_file), validation=0.2), tune=TuneConfig(**settings | tune),
                     out=str(out))  # fmt: skip


def run(
    config: RunConfig, *, resume: bool = False, watch: Callable[[StepRecord, int], bool] | None = None
) -> tuple[Outcome, Model]:
    config = prepare_folder(config, resume)
    model = load_model(config.model, weights="nf4", compute="fp32")
    data = load_training(config.data, model.tokenizer, config.seed)
    return run_training(model, data, config, lambda _: {}, resume=resume, watch=watch), model


@pytest.fixture(scope="module")
def whole(source: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that meets no fault."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HALFBYTE_CACHE", str(out.parent / "cache"))
        run(options(source, data_file, out))
    return out


def same(one: Path, other: Path) -> bool:
    """Whether two runs left the same adapters and the same lines."""
    for name in ("adapter", "adapter-last"):
        a, b = (load_file(folder / name / "adapter_model.safetensors") for folder in (one, other))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
    lines = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (one, other)]
    said = [[(line["step"], line["loss"], line.get("validation_loss")) for line in part] for part in lines]
    assert said[0] == said[1] and len(said[0]) == UNTIL
    return True


def goes_on_to(whole: Path, config: RunConfig) -> bool:
    outcome, _ = run(config, resume=True)
    return outcome.finished and same(whole, Path(config.out))


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = folder / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"only root can mount a file system: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(file: Path, left: int) -> None:
    """Write zeros until the disk is full, then give `left` bytes back."""
    with file.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            os.ftruncate(stream.fileno(), max(0, stream.tell() - left))


@pytest.mark.parametrize(
    "left", [0, 8 << 10, 40 << 10, 60 << 10]
)  # bytes: room for nothing, a line, an adapter, half a checkpoint
def test_a_full_disk_ends_the_run_and_it_goes_on(
    left: int, source: Path, data_file: Path, whole: Path, small_disk: Path
) -> None:
    config = options(source, data_file, small_disk / "run")

    def watch(record: StepRecord, _: int) -> bool:
        if record.step == 3:
            fill(small_disk / "ballast", left)
        return True

    with pytest.raises(TrainingError, match="free some disk space") as caught:
        run(config, watch=watch)
    assert caught.value.exit_code == 1 and str(small_disk) in str(caught.value)
    assert "step-000003" in checkpoints(small_disk / "run")
    with pytest.raises(HalfbyteError, match="free some disk space"):  # still full
        run(config, resume=True)
    (small_disk / "ballast").unlink()
    assert goes_on_to(whole, config)


def test_a_disk_that_is_full_from_the_start(source: Path, data_file: Path, whole: Path, small_disk: Path) -> None:
    config = options(source, data_file, small_disk / "run")
    fill(small_disk / "ballast", 12 << 10)
    with pytest.raises(HalfbyteError, match=r"free some disk space|can't be made"):
        run(config)
    (small_disk / "ballast").unlink()
    assert run(config, resume=(small_disk / "run" / "run.yaml").exists())[0].finished
    assert same(whole, small_disk / "run")


def test_memory_that_runs_out_is_one_clear_error(source: Path, data_file: Path, whole: Path, folder: Path) -> None:
    """By a limit on the address space, which the process sets itself after two steps."""
    config = options(source, data_file, folder / "run")
    (folder / "run.json").write_text(json.dumps(dataclasses.asdict(config)))
    code = """if True:
        import json, resource, sys
        from halfbyte.config import RunConfig
        from halfbyte.options import build
        from halfbyte.errors import HalfbyteError
        from tests.tune import test_faults

        config = build(RunConfig, json.load(open(sys.argv[1])), "run.json")
        def watch(record, steps):
            if record.step == 2:
                taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (taken, taken))
                def large(*values, original=test_faults.loop.batch_loss):
                    import torch
                    torch.zeros(1 << 28)  # 1 GB: what a batch that is too large would ask for
                    return original(*values)
                test_faults.loop.batch_loss = large
            return True
        try:
            test_faults.run(config, watch=watch)
        except HalfbyteError as error:
            print(error)
            sys.exit(error.exit_code)
    """
    done = subprocess.run([sys.executable, "-c", code, folder / "run.json"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.startswith("memory ran out\n  where: step 3"), done.stderr
    assert "tune.micro_batch (now 2)" in done.stdout and "--resume" in done.stdout
    assert "step-000002" in checkpoints(folder / "run") and goes_on_to(whole, config)


def test_memory_that_runs_out_in_the_optimiser_saves_no_half_step(
    source: Path, data_file: Path, whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, steps = options(source, data_file, folder / "run"), 0

    def update(self: State) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            self.optimiser.step = half  # type: ignore[method-assign]
        original(self)

    def half() -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")

    original = State.update
    with monkeypatch.context() as patched:
        patched.setattr(State, "update", update)
        with pytest.raises(TrainingError, match="memory ran out"):
            run(config)
    assert checkpoints(folder / "run") == ["step-000002", "step-000003"] and goes_on_to(whole, config)


def packed_file() -> Path:
    (file,) = Path(os.environ["HALFBYTE_CACHE"]).glob("tiny-nf4-*/model.safetensors")
    return file


def test_a_model_file_that_is_replaced_during_the_run_ends_it(
    source: Path, data_file: Path, whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALFBYTE_CACHE", str(folder / "cache"))
    config = options(source, data_file, folder / "run")

    def watch(record: StepRecord, _: int) -> bool:
        if record.step == 3:
            shutil.copyfile(packed_file(), folder / "other")
            (folder / "other").replace(packed_file())
        return True

    with pytest.raises(CheckpointError, match=r"changed while it was in use(.|\n)*model.safetensors is another one"):
        run(config, watch=watch)
    assert "step-000003" in checkpoints(folder / "run")
    assert goes_on_to(whole, config)  # it has the same bytes


def test_a_model_data_and_settings_that_changed_are_listed_in_one_error(
    source: Path, data_file: Path, folder: Path
) -> None:
    model, data = folder / "model", folder / "train.jsonl"
    shutil.copytree(source, model)
    shutil.copyfile(data_file, data)
    config = options(model, data, folder / "run", max_steps=1)
    run(config)
    tiny_checkpoint("llama", model, dtype="float32", seed=1, add_bos=False)
    data.write_text(data.read_text().replace("item 3", "item 33"))
    changed = dataclasses.replace(config, seed=5, tune=dataclasses.replace(config.tune, clip=0.5, explosion=0.0))

    def inputs() -> dict[str, str]:
        opened = load_model(str(model), weights="nf4")
        return inputs_of(opened.fingerprint, opened.path, load_training(changed.data, opened.tokenizer, 0))

    with pytest.raises(ConfigError) as caught:
        prepare_folder(changed, True, inputs)
    said = str(caught.value)
    for what in ("seed: 0 -> 5", "tune.clip: 1.0 -> 0.5", "the model: its", "the tokenizer: its", "the data: the"):
        assert what in said, said
    assert "explosion" not in said and caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="the model: its"):  # without being asked beforehand
        run(config, resume=True)


def test_a_flipped_bit_in_a_checkpoint_is_found_and_the_one_before_is_used(
    source: Path, data_file: Path, whole: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = options(source, data_file, folder / "run")
    run(config, watch=lambda record, _: record.step < 4)
    file = folder / "run" / "checkpoints" / "step-000004" / "state.safetensors"
    held = bytearray(file.read_bytes())
    held[-1] ^= 1
    file.write_bytes(held)
    assert goes_on_to(whole, config)
    said = " ".join(capsys.readouterr().err.split())
    assert "step-000004 is not whole and is passed over; it is now broken-step-000004: the digest" in said
    assert "going on from step-000003" in said and "broken-step-000004" in checkpoints(folder / "run")


def test_an_adapter_that_is_written_over_costs_no_checkpoint(
    source: Path, data_file: Path, whole: Path, folder: Path
) -> None:
    config, adapter = (
        options(source, data_file, folder / "run"),
        folder / "run" / "adapter" / "adapter_model.safetensors",
    )
    for until in (3, 4):  # stopped, and gone on with and stopped again
        run(config, resume=until > 3, watch=lambda record, _, until=until: record.step < until)  # type: ignore[misc]
        with adapter.open("r+b") as stream:  # in place, as `cp other adapter/` does
            stream.write(bytes(adapter.stat().st_size))
    assert goes_on_to(whole, config)


def test_a_checkpoint_that_can_not_be_read_is_passed_over(
    source: Path, data_file: Path, whole: Path, folder: Path
) -> None:
    config = options(source, data_file, folder / "run")
    run(config, watch=lambda record, _: record.step < 4)
    file = folder / "run" / "checkpoints" / "step-000004" / "state.safetensors"
    file.unlink()
    file.symlink_to(UNREADABLE)
    assert goes_on_to(whole, config)


def test_a_read_error_in_data_or_model_is_one_clear_error(source: Path, data_file: Path, folder: Path) -> None:
    data, model = folder / "train.jsonl", folder / "model"
    data.symlink_to(UNREADABLE)
    tokenizer = load_model(str(source), weights="nf4").tokenizer
    with pytest.raises(DataError, match=r"can't be read(.|\n)*Input/output error"):
        load_training(DataConfig(train=str(data)), tokenizer, 0)
    shutil.copytree(source, model)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(UNREADABLE)
    with pytest.raises(CheckpointError, match=r"can't be read(.|\n)*Input/output error"):
        open_checkpoint(str(model))


def test_a_truncated_shard_is_found_before_a_run_goes_on(
    data_file: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_checkpoint("llama", folder / "model", dtype="float32", max_shard_size="60KB")
    config = options(model, data_file, folder / "run", max_steps=2)
    run(config, watch=lambda *_: False)
    shard = sorted(model.glob("*.safetensors"))[-1]
    os.truncate(shard, shard.stat().st_size - 100)
    with pytest.raises(CheckpointError, match=rf"{shard.name}(.|\n)*it is cut"):
        run(config, resume=True)


def test_a_stop_while_the_loss_is_too_high_saves_nothing(
    source: Path, data_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = options(source, data_file, folder / "run", max_steps=20, epochs=99, explosion=1e-9)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, validation=0))
    monkeypatch.setattr(loop, "MARGIN", 0.0)  # so every step after the first ten is an explosion

    def watch(record: StepRecord, _: int) -> bool:
        if record.step == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    outcome, _ = run(config, watch=watch)
    assert outcome.stopped and outcome.steps == 12 and checkpoints(folder / "run") == ["step-000009", "step-000010"]
    assert "not saved: step-000010 is what counts" in capsys.readouterr().err
    assert not (folder / "run" / "adapter-last").exists()
    config = dataclasses.replace(config, tune=dataclasses.replace(config.tune, explosion=0.0))
    assert run(config, resume=True)[0].finished
    assert "going on from step-000010" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_items(
    value: float, source: Path, data_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, asked = loop.batch_loss, []

    def poisoned(model: Model, batch: Any) -> torch.Tensor:
        asked.extend([batch] * torch.is_grad_enabled())
        return original(model, batch) * (value if len(asked) == 6 and torch.is_grad_enabled() else 1.0)

    monkeypatch.setattr(loop, "batch_loss", poisoned)
    config = options(source, data_file, folder / "run")
    with pytest.raises(TrainingError, match="not finite") as caught:
        run(config)
    named = str(caught.value.where).removeprefix("step 3: ").split(", ")
    items = {item.origin: item for item in load_training(config.data, load_model(str(source)).tokenizer, 0).train}
    assert len(named) == 2
    for row, name in enumerate(named):
        assert asked[-1].input_ids[row][: len(items[name].ids)].tolist() == items[name].ids
    assert "step-000002" in checkpoints(folder / "run")


def test_a_loss_that_explodes_ends_the_run_at_the_last_good_checkpoint(
    source: Path, data_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.learned_tokens
    calls = 0

    def fewer(items: Any) -> int:  # the loss of a step is divided by so many
        nonlocal calls
        calls += 1
        return original(items) if calls <= 12 else 1

    monkeypatch.setattr(loop, "learned_tokens", fewer)
    config = options(source, data_file, folder / "run", max_steps=20, epochs=99, batch=4)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, validation=0))
    with pytest.raises(TrainingError, match="has exploded") as caught:
        run(config)
    assert "steps 13 to 17" in str(caught.value) and "tune.explosion=0" in str(caught.value)
    assert checkpoints(folder / "run") == ["step-000011", "step-000012"]
    calls = 0
    config = dataclasses.replace(config, tune=dataclasses.replace(config.tune, explosion=0.0))
    assert run(config, resume=True)[0].finished


def test_a_second_ctrl_c_stops_at_once_and_the_run_goes_on(
    source: Path, data_file: Path, whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = loop.batch_loss, 0

    def interrupted(model: Model, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        for _ in range(2 * (calls == 6)):
            os.kill(os.getpid(), signal.SIGINT)
        return original(model, batch)

    config = options(source, data_file, folder / "run")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "batch_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert not (folder / "run" / "adapter-last").exists()  # it was not given the time
    assert goes_on_to(whole, config)


def test_a_stop_while_the_last_of_a_run_is_written_begins_nothing_more(
    source: Path, data_file: Path, whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Records.end

    def end(self: Records, finished: bool) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, finished)

    config = options(source, data_file, folder / "run")
    with monkeypatch.context() as patched:
        patched.setattr(Records, "end", end)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert same(whole, folder / "run") and goes_on_to(whole, config)
