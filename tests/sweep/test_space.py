"""SPACE.yaml: what it may say, in the words of config.py, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfbyte.config import AdapterConfig, DataConfig, RunConfig, TuneConfig
from halfbyte.errors import ConfigError
from halfbyte.sweep.space import Knob, load_space

RUN = RunConfig(model="m", tune=TuneConfig(epochs=2), adapter=AdapterConfig(rank=16, targets="all"))


def written(folder: Path, text: str) -> Path:
    file = folder / "space.yaml"
    file.write_text(text)
    return file


def test_the_example_is_read(folder: Path) -> None:
    space = load_space(
        written(
            folder,
            "tune.learning_rate: {low: 1e-5, high: 1e-3, log: true}\n"
            "adapter.rank: [8, 16, 32]\n"
            "adapter.targets: [all, [q_proj, v_proj]]\n"
            "tune.epochs: {low: 1, high: 3}\n"
            "tune.batch: {low: 4, high: 17, step: 4}\n",
        ),
        RUN,
    )
    made = {key: type(one).__name__ for key, one in space.distributions().items()}
    assert made == {"tune.learning_rate": "FloatDistribution", "adapter.rank": "CategoricalDistribution",
                    "adapter.targets": "CategoricalDistribution", "tune.epochs": "FloatDistribution",
                    "tune.batch": "IntDistribution"}  # fmt: skip
    assert space.knobs[4].high == 16
    codes = {"tune.learning_rate": 1e-4, "adapter.rank": 8, "adapter.targets": '["q_proj", "v_proj"]',
             "tune.epochs": 1.5, "tune.batch": 8}  # fmt: skip
    values = space.values(codes)
    assert values["adapter.targets"] == ["q_proj", "v_proj"]
    changed = space.apply(RUN, values)
    assert changed.adapter == AdapterConfig(rank=8, targets=["q_proj", "v_proj"])
    assert (changed.tune.learning_rate, changed.tune.epochs, changed.tune.batch, changed.model) == (1e-4, 1.5, 8, "m")
    assert space.own(RUN) == {"tune.learning_rate": 2e-4, "adapter.rank": 16, "adapter.targets": "all",
                              "tune.epochs": 2, "tune.batch": 16}  # fmt: skip
    assert load_space(written(folder, "adapter.rank: [8, 32]\n"), RUN).own(RUN) is None
    assert space.to_json()["tune.batch"] == {"low": 4, "high": 16, "step": 4}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tune.lerning_rate: [1]", "unknown key 'tune.lerning_rate': did you mean 'learning_rate'?"),
        ("adapter: [1, 2]", "'adapter' is a group of options: name one of them, e.g. adapter.rank"),
        ("adapter.rank: [8, many]", "'adapter.rank' must be a whole number, not 'many'"),
        ("adapter.rank: [0, 8]", "'adapter.rank' must be at least 1 and at most 4096; it is 0"),
        ("adapter.rank: 8", "'adapter.rank' must be a list of values or a range"),
        ("adapter.rank: [8]", "at least two values"),
        ("adapter.rank: [8, 8]", "each once"),
        ("adapter.rank: {low: 8, high: 5000}", "at most 4096; it is 5000"),
        ("adapter.rank: {low: 1.5, high: 8}", "must be a whole number, not 1.5"),
        ("tune.epochs: {low: 3, high: 1}", "low must be under high, not 3 to 1"),
        ("tune.epochs: {low: 1, hihg: 3}", "must be a list of values or a range"),
        ("tune.epochs: {low: 1, high: many}", "'tune.epochs': high must be a number, not 'many'"),
        ("tune.weight_decay: {low: 0, high: 1, log: true}", "begins above 0"),
        ("tune.batch: {low: 4, high: 16, step: 2.5}", "step must be a whole number"),
        ("tune.schedule: {low: 1, high: 2}", "takes text and has no range"),
        ("tune.schedule: [cosine, wave]", "must be one of cosine, linear, constant; it is 'wave'"),
        ("model: [a, b]", "'model' can't be searched"),
        ("data.max_tokens: [64, 128]", "what the validation loss is taken of"),
        ("tune.micro_batch: [1, 2]", "does not change what is learned"),
        ("seed: [0, 1]", "unless data.validation is a file"),
        ("task: [a.yaml, b.yaml]", "not there to choose by"),
        ("", "names no option"),
    ],
)
def test_a_fault_is_named_before_anything_is_loaded(folder: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_space(written(folder, line + "\n"), RUN)
    assert said in str(caught.value) and str(folder / "space.yaml") in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_faults_are_told_at_once(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)3 faults.*tune\.lr.*adapter\.rank.*tune\.epochs"):
        load_space(written(folder, "tune.lr: [1]\nadapter.rank: [0, 8]\ntune.epochs: {low: 2, high: 1}\n"), RUN)


def test_the_seed_may_be_searched_where_the_split_does_not_hang_on_it(folder: Path) -> None:
    run = RunConfig(model="m", data=DataConfig(train="t.jsonl", validation="v.jsonl"))
    assert load_space(written(folder, "seed: [0, 1, 2]\n"), run).knobs == (Knob("seed", choices=(0, 1, 2)),)
