"""A run on a tiny model: what it leaves, that it learns, that it goes on exactly, that its ways do not matter."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from halfbyte.config import AdapterConfig, DataConfig, RunConfig, TuneConfig
from halfbyte.data.dataset import TrainingData, load_training
from halfbyte.errors import ConfigError, TrainingError
from halfbyte.model import build, offload
from halfbyte.model.build import Model, load_model
from halfbyte.tune import loop
from halfbyte.tune.folder import prepare_folder
from halfbyte.tune.loop import StepRecord
from halfbyte.tune.run import Outcome, Watch, run_training
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("model") / "tiny", dtype="float32")


@pytest.fixture
def data_file(folder: Path) -> Path:
    file = folder / "train.jsonl"
    lines = [
        {"prompt": f"item {i} of {i % 7}:", "completion": f" {i % 7} pieces" + " more" * (i % 5)} for i in range(40)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def options(source: Path, data_file: Path, out: Path, **tune: Any) -> RunConfig:
    settings: dict[str, Any] = {"epochs": 2, "batch": 8, "micro_batch": 4, "recompute": 0, "learning_rate": 5e-3}
    return RunConfig(
        model=str(source),
        weights="nf4",
        adapter=AdapterConfig(rank=4, dropout=0.1),
        data=DataConfig(train=str(data_file), validation=0.2),
        tune=TuneConfig(**settings | tune),
        out=str(out),
    )


def run(config: RunConfig, *, resume: bool = False, watch: Watch | None = None) -> tuple[Outcome, Model, str]:
    config = prepare_folder(config, resume)
    model = load_model(config.model, weights="nf4", compute="fp32")
    data: TrainingData = load_training(config.data, model.tokenizer, config.seed)
    console = Console(file=io.StringIO(), width=120)
    outcome = run_training(
        model, data, config, lambda _: {"planned": True}, resume=resume, console=console, watch=watch
    )
    return outcome, model, console.file.getvalue()  # type: ignore[attr-defined]


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_leaves_what_it_promises(source: Path, data_file: Path, folder: Path) -> None:
    config = options(source, data_file, folder / "run", epochs=4)
    outcome, _, said = run(config)
    lines = metrics(folder / "run")
    assert outcome.finished and len(lines) == outcome.steps == lines[-1]["step"]
    wanted = {
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "gradient_norm",
        "tokens",
        "learned_tokens",
        "seconds",
        "tokens_per_second",
        "peak_bytes",
        "mapped_bytes",
    }
    assert all(wanted <= set(line) for line in lines)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert lines[-1]["epoch"] == pytest.approx(4) and "validation_loss" in lines[-1]
    stored = yaml.safe_load((folder / "run" / "run.yaml").read_text())
    assert stored["tune"]["micro_batch"] == 4 and stored["adapter"]["dropout"] == 0.1
    for name in (
        "plan.json",
        "environment.json",
        "adapter/adapter_config.json",
        "adapter-last/adapter_model.safetensors",
    ):
        assert (folder / "run" / name).is_file()
    assert f"step {outcome.steps}/{outcome.steps}" in said
    best = min(line["validation_loss"] for line in lines if "validation_loss" in line)
    assert outcome.best_loss == best


def test_a_step_leaves_its_gradients_block_and_no_graph(
    source: Path, data_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever holds the loss would hold the adapter's copies beside those of the next pass."""
    graphs: list[weakref.ref[Any]] = []
    blocks: set[int] = set()
    made = loop.batch_loss

    def watched(model: Model, batch: Any) -> torch.Tensor:
        assert not graphs or graphs[-1]() is None
        blocks.update(p.grad.untyped_storage().data_ptr() for p in model.net.parameters() if p.grad is not None)
        total = made(model, batch)
        graphs.append(weakref.ref(total))
        return total

    monkeypatch.setattr(loop, "batch_loss", watched)
    config = options(source, data_file, folder / "run", max_steps=3)
    run(config)
    assert len(graphs) >= 6 and len(blocks) == 1  # of validations, too


def test_micro_batches_and_recomputation_change_the_rounding_only(source: Path, data_file: Path, folder: Path) -> None:
    losses = []
    for number, tune in enumerate([{"micro_batch": 8}, {"micro_batch": 1}, {"micro_batch": 3, "recompute": 2}]):
        config = options(source, data_file, folder / f"run{number}", **tune)
        run(dataclasses.replace(config, adapter=AdapterConfig(rank=4)))
        losses.append([line["loss"] for line in metrics(folder / f"run{number}")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and losses[2] == pytest.approx(losses[0], rel=1e-3)


def test_a_stopped_run_goes_on_bit_for_bit(
    source: Path, data_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, _ = run(options(source, data_file, folder / "whole"))

    calls = 0
    original = loop.batch_loss

    def interrupting(model: Model, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return original(model, batch)

    monkeypatch.setattr(loop, "batch_loss", interrupting)
    config = options(source, data_file, folder / "parts")
    first, _, said = run(config)
    assert not first.finished and 0 < first.steps < whole.steps and f"stopped after step {first.steps} of 8" in said
    assert (folder / "parts" / "adapter-last" / "adapter_model.safetensors").is_file()
    monkeypatch.setattr(loop, "batch_loss", original)
    second, _, said = run(config, resume=True)
    assert second.finished and second.steps == whole.steps and "going on from" in said
    for name in ("adapter", "adapter-last"):
        one, two = (load_file(folder / run / name / "adapter_model.safetensors") for run in ("whole", "parts"))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    compared = [[(line["step"], line["loss"]) for line in metrics(folder / run)] for run in ("whole", "parts")]
    assert compared[0] == compared[1]


def test_a_second_run_and_a_changed_resume_are_refused(source: Path, data_file: Path, folder: Path) -> None:
    config = options(source, data_file, folder / "run", max_steps=1)
    run(config)
    with pytest.raises(ConfigError, match="holds a run already"):
        prepare_folder(config, resume=False)
    changed = dataclasses.replace(config, tune=dataclasses.replace(config.tune, learning_rate=1.0))
    with pytest.raises(ConfigError, match=r"tune.learning_rate: 0.005 -> 1.0"):
        prepare_folder(changed, resume=True)
    with pytest.raises(ConfigError, match="no run to go on with"):
        prepare_folder(dataclasses.replace(config, out=str(folder / "new")), resume=True)
    (folder / "other").mkdir()
    (folder / "other" / "thesis.doc").write_text("x")
    with pytest.raises(ConfigError, match="something else"):
        prepare_folder(dataclasses.replace(config, out=str(folder / "other")), resume=False)


def test_a_resume_on_other_data_or_another_template_is_refused(source: Path, data_file: Path, folder: Path) -> None:
    config = options(source, data_file, folder / "run", max_steps=1)
    run(config)
    template = {"prompt": "{prompt}", "completion": "{completion}"}
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, template=template))
    with pytest.raises(ConfigError, match=r"data.template: None -> "):
        prepare_folder(changed, resume=True)
    data_file.write_text(data_file.read_text() + json.dumps({"prompt": "one", "completion": "more"}) + "\n")
    with pytest.raises(ConfigError, match=r"has changed(.|\n)*the data: the items"):
        run(config, resume=True)


def test_automatic_choices_are_reused_on_resume(source: Path, data_file: Path, folder: Path) -> None:
    config = options(source, data_file, folder / "run", max_steps=1)
    run(config)
    asked = dataclasses.replace(config, tune=dataclasses.replace(config.tune, micro_batch="auto", recompute="auto"))
    assert prepare_folder(asked, resume=True).tune == config.tune


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state(
    source: Path, data_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = loop.batch_loss, 0

    def poisoned(model: Model, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()  # validation does not count
        return original(model, batch) * (float("nan") if calls == 5 else 1.0)

    monkeypatch.setattr(loop, "batch_loss", poisoned)
    with pytest.raises(TrainingError, match="not finite"):
        run(options(source, data_file, folder / "run"))
    assert (folder / "run" / "checkpoints" / "step-000002" / "state.safetensors").is_file()
    kept = load_file(folder / "run" / "checkpoints" / "step-000002" / "state.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_the_loss_is_the_mean_over_the_learned_tokens_of_the_step(source: Path, data_file: Path, folder: Path) -> None:
    config = options(source, data_file, folder / "run", max_steps=1, batch=40, micro_batch=3)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, validation=0), adapter=AdapterConfig())
    run(config)
    record = metrics(folder / "run")[0]
    model = load_model(config.model, weights="nf4", compute="fp32")
    items = load_training(config.data, model.tokenizer, 0).train
    total, learned = 0.0, 0
    with torch.no_grad():
        for item in items:
            ids = torch.tensor([item.ids])
            logits = model.logits(model.hidden(ids))[0, :-1].log_softmax(-1)
            for place in range(1, len(item.ids)):
                if item.learned[place]:
                    total -= float(logits[place - 1, item.ids[place]])
                    learned += 1
    assert record["loss"] == pytest.approx(total / learned, rel=1e-4)
    assert record["learned_tokens"] == learned and record["tokens"] == sum(len(item.ids) for item in items)


def test_records_have_the_keys_of_the_contract() -> None:
    assert {field.name for field in dataclasses.fields(StepRecord)} >= {"step", "loss", "tokens", "validation_loss"}


def test_a_run_ends_where_its_watcher_says_so_and_can_go_on(source: Path, data_file: Path, folder: Path) -> None:
    seen: list[tuple[int, int]] = []

    def watch(record: StepRecord, steps: int) -> bool:
        assert metrics(folder / "run")[-1]["step"] == record.step  # its line is there already
        seen.append((record.step, steps))
        return record.step < 3

    config = prepare_folder(options(source, data_file, folder / "run"), resume=False)
    model = load_model(config.model, weights="nf4")
    data = load_training(config.data, model.tokenizer, config.seed)
    quiet = Console(file=io.StringIO())
    outcome = run_training(model, data, config, lambda _: {}, console=quiet, watch=watch)
    assert not outcome.finished and seen == [(1, 8), (2, 8), (3, 8)]
    assert (folder / "run" / "checkpoints" / "step-000003" / "state.safetensors").is_file()
    again, _, said = run(config, resume=True)
    assert again.finished and again.steps == 8 and "going on from step-000003" in said


def test_a_session_with_other_versions_stays_on_record(
    source: Path, data_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from halfbyte.tune import origin

    config = options(source, data_file, folder / "run", max_steps=2)
    run(config)
    first = origin.read(folder / "run")
    assert first is not None and first["earlier"] == [] and first["seed"] == config.seed
    assert set(first["files"]) == {str(data_file)} and first["adapters"]
    now = origin.environment()
    now["versions"] = now["versions"] | {"torch": "9.9"}
    monkeypatch.setattr(origin, "environment", lambda: now)
    run(config, resume=True)
    second = origin.read(folder / "run")
    assert second is not None and second["versions"]["torch"] == "9.9"
    assert [(one["versions"], one["until_step"]) for one in second["earlier"]] == [(first["versions"], 2)]
    assert second["fingerprints"] == first["fingerprints"]
    # safetensors writes the metadata of a file in any order, so that the digests of two equal adapters may differ
    assert second["adapters"].keys() == first["adapters"].keys()


def test_a_packed_run_is_the_padded_one_to_rounding_and_goes_on_exactly(
    source: Path, data_file: Path, folder: Path
) -> None:
    plain = AdapterConfig(rank=4)  # dropout's masks are those of the batch's shape
    made = {}
    for packing in ("off", "on"):
        config = options(source, data_file, folder / packing, packing=packing)
        run(dataclasses.replace(config, adapter=plain))
        made[packing] = metrics(folder / packing)
    for ours, theirs in zip(made["on"], made["off"], strict=True):
        assert {ours[key] == theirs[key] for key in ("tokens", "learned_tokens")} == {True}
        for key in ("loss", "gradient_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3)
    assert made["on"][-1]["validation_loss"] == pytest.approx(made["off"][-1]["validation_loss"], rel=1e-3)
    assert [line["loss"] for line in made["on"]] != [line["loss"] for line in made["off"]]  # it was another way
    config = options(source, data_file, folder / "whole", packing="on", checkpoint_every=0)
    run(config)
    stopped = options(source, data_file, folder / "stopped", packing="on", checkpoint_every=0)
    _cut_short(stopped, 3)
    run(dataclasses.replace(stopped, tune=dataclasses.replace(stopped.tune, packing="auto")), resume=True)
    assert [line["loss"] for line in metrics(folder / "stopped")] == [
        line["loss"] for line in metrics(folder / "whole")
    ]


def _cut_short(config: RunConfig, steps: int) -> None:
    """Run `steps` steps of `config`, as if it had been stopped then."""
    model = load_model(config.model, weights="nf4", compute="fp32")
    data = load_training(config.data, model.tokenizer, config.seed)
    console = Console(file=io.StringIO())
    run_training(model, data, config, lambda _: {}, console=console, watch=lambda record, _: record.step < steps)


def test_a_run_of_a_version_that_always_padded_goes_on_padded(source: Path, data_file: Path, folder: Path) -> None:
    config = options(source, data_file, folder / "run")
    _cut_short(config, 2)
    stored = folder / "run" / "run.yaml"
    written = yaml.safe_load(stored.read_text())
    del written["tune"]["packing"]
    stored.write_text(yaml.safe_dump(written))
    assert prepare_folder(config, resume=True).tune.packing == "off"
    with pytest.raises(ConfigError, match=r"tune\.packing: 'off' -> 'on'"):
        prepare_folder(dataclasses.replace(config, tune=dataclasses.replace(config.tune, packing="on")), resume=True)


def test_streamed_layers_and_activations_on_the_host_change_no_bit_and_a_resume_may_change_them(
    source: Path, data_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(options(source, data_file, folder / "whole", recompute=1))
    wanted = load_file(folder / "whole" / "adapter-last" / "adapter_model.safetensors")
    monkeypatch.setattr(build, "settle_stream", lambda *_: (True, "as the test asks"))
    monkeypatch.setattr(offload, "LEAST", 0)
    config = options(source, data_file, folder / "away", recompute=1, offload_activations=True)
    _, model, _ = run(config, watch=lambda record, _: record.step < 3)
    assert model.streamer is not None
    monkeypatch.setattr(build, "settle_stream", lambda *_: (False, ""))
    there = dataclasses.replace(config.tune, offload_activations=False)
    outcome, model, _ = run(dataclasses.replace(config, stream="off", tune=there), resume=True)
    assert model.streamer is None and outcome.before == 3 and outcome.finished
    found = load_file(folder / "away" / "adapter-last" / "adapter_model.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
