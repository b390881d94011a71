from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from halfbyte.config import AdapterConfig, RunConfig, TaskConfig, load_run, load_task
from halfbyte.errors import ConfigError
from halfbyte.option_files import to_dict, write_yaml
from halfbyte.options import check_option, describe, parse_bytes


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_defaults_are_those_of_the_contract(folder: Path) -> None:
    run = load_run(write(folder, "model: org/name\n"))
    assert run.model == "org/name" and run.weights == "nf4" and run.out == str(folder / "runs" / "run")
    assert (run.adapter.rank, run.adapter.alpha, run.adapter.targets) == (16, 32, "all")
    assert (run.tune.batch, run.tune.learning_rate, run.tune.epochs) == (16, 2.0e-4, 3)
    assert (run.data.learn, run.data.max_tokens, run.data.validation) == ("completion", 1024, 0.05)


def test_paths_are_relative_to_the_file_and_hub_ids_stay(folder: Path) -> None:
    (folder / "local").mkdir()
    text = "model: local\ndata: {train: train.jsonl, validation: held.csv}\ntask: task.yaml\nout: here\n"
    run = load_run(write(folder, text))
    assert run.model == str(folder / "local") and run.data.train == str(folder / "train.jsonl")
    assert run.data.validation == str(folder / "held.csv") and run.out == str(folder / "here")
    assert load_run(write(folder, "model: Qwen/Qwen3-0.6B\n")).model == "Qwen/Qwen3-0.6B"


def test_a_path_in_set_is_relative_to_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = load_run(write(folder, "model: a/b\n"), ["data.train=x.csv", "tune.learning_rate=1e-3", "adapter.rank=8"])
    assert run.data.train == str(elsewhere / "x.csv")
    assert run.tune.learning_rate == 1e-3 and run.adapter.rank == 8


def test_yaml_numbers_with_an_exponent_are_numbers(folder: Path) -> None:
    assert load_run(write(folder, "model: a/b\ntune: {learning_rate: 2e-4}\n")).tune.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: a/b\nmodell: c\n", "unknown key 'modell': did you mean 'model'?"),
        ("model: a/b\ntune: {epoch: 3}\n", "unknown key 'tune.epoch': did you mean 'epochs'?"),
        ("model: a/b\ntune: {batch: many}\n", "'tune.batch' must be a whole number, not 'many'"),
        ("model: a/b\ntune: {batch: 0}\n", "'tune.batch' must be at least 1; it is 0"),
        ("model: a/b\ntune: {batch: true}\n", "must be a whole number, not True"),
        ("model: a/b\ntune: {batch: .inf}\n", "must be a whole number"),
        ("model: a/b\nweights: nf5\n", "'weights' must be one of nf4, nf4-single, int8, bf16, fp32"),
        ("model: a/b\ntune: 3\n", "'tune' must be a mapping"),
        ("model: a/b\nmodel: c/d\n", "stands twice"),
        ("model: [a\n", "no valid YAML"),
        ("- a\n", "holds no mapping"),
        ("seed: 1\n", "no model is named"),
        (
            "model: a/b\nmemory: 8\n",
            "a number of bytes needs its unit; write auto, or e.g. 8GB",
        ),
        ("model: a/b\nadapter: {targets: []}\n", "'adapter.targets' names no layer"),
        ("model: a/b\nadapter: {rank: 5000}\n", "at most 4096"),
        ("model: !!python/object/apply:os.system ['true']\n", "no valid YAML"),
    ],
)
def test_a_fault_is_one_clear_error(folder: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(write(folder, text))
    assert said in str(caught.value) and "run.yaml" in str(caught.value) and "  do: " in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_faults_are_named_at_once(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(write(folder, "model: a/b\nweigths: nf4\ntune: {warmup: 7}\n"))
    assert "2 faults" in str(caught.value) and "'weights'" in str(caught.value) and "tune.warmup" in str(caught.value)


def test_a_missing_file_and_a_folder_are_said_to_be_that(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_run(folder / "none.yaml")
    with pytest.raises(ConfigError, match="folder"):
        load_run(folder)


def test_set_needs_an_equals_sign(folder: Path) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        load_run(write(folder, "model: a/b\n"), ["tune.epochs"])


def test_what_is_written_is_read_back_the_same(folder: Path) -> None:
    run = load_run(write(folder, "model: a/b\nadapter: {targets: [q_proj, 'layers.0.*']}\n"))
    write_yaml(run, folder / "again.yaml")
    assert load_run(folder / "again.yaml") == run
    assert yaml.safe_load((folder / "again.yaml").read_text()) == to_dict(run)


def test_a_task_needs_data_and_a_name_that_can_be_a_folder(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no test data"):
        load_task(write(folder, "kind: exact\n", "t.yaml"))
    with pytest.raises(ConfigError, match="folder's name"):
        load_task(write(folder, "data: d.csv\nname: ../up\n", "t.yaml"))
    with pytest.raises(ConfigError, match="needs options"):
        load_task(write(folder, "data: d.csv\nkind: choice\n", "t.yaml"))
    assert load_task(write(folder, "data: d.csv\n", "t.yaml")).name == "t"


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("7.5 GiB", int(7.5 * 2**30)), ("8000000000", 8 * 10**9), ("1kb", 1000)]
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "8 apples", "GB", "-1GB"])
def test_no_amount_of_memory(text: str) -> None:
    with pytest.raises(ConfigError, match="no amount of memory"):
        parse_bytes(text)


def test_every_option_has_a_meaning() -> None:
    rows = list(describe(RunConfig))
    assert len(rows) > 25 and all(text for _, _, _, text in rows)


def test_an_option_of_a_few_words_names_them_all_once() -> None:
    told = {key: text for key, _, _, text in [*describe(RunConfig), *describe(TaskConfig)]}
    assert told["tune.schedule"].endswith("(cosine, linear, constant)")
    assert told["weights"].endswith("(nf4, nf4-single, int8, bf16, fp32)") and told["kind"].count("exact") == 1
    assert told["tune.optimiser"].count("adamw8bit") == 1  # its meaning explains each already


@pytest.mark.parametrize("text", ["8", "0", "50"])
def test_a_bare_number_that_can_only_have_lost_its_unit_is_refused(text):
    with pytest.raises(ConfigError, match=f"needs its unit(.|\n)*{text if float(text) else 8}GB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["8000000000", "'8000000000'", "8e9", "8GB"])
def test_memory_is_the_same_as_a_number_and_as_text(text: str, folder: Path) -> None:
    assert parse_bytes(load_run(write(folder, f"model: a/b\nmemory: {text}\n")).memory) == 8 * 10**9


def test_words_that_yaml_1_2_takes_for_texts_are_told_as_texts(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(write(folder, "model: a/b\nadapter: {rslora: yes}\nseed: 1:30\ntune: {batch: 1_000}\n"))
    for said in ("'adapter.rslora' must be true or false, not 'yes'", "'seed' must be a whole number, not '1:30'",
                 "'tune.batch' must be a whole number, not '1_000'"):  # fmt: skip
        assert said in str(caught.value)
    task = load_task(write(folder, "data: a.jsonl\nkind: choice\noptions: [yes, no, 1]\n"))
    assert task.options == ["yes", "no", "1"]


def test_a_fault_of_set_is_blamed_on_it_and_one_of_the_file_on_the_file(folder: Path) -> None:
    file = write(folder, "model: a/b\nweigths: nf4\n")
    with pytest.raises(ConfigError) as caught:
        load_run(file, ["tune.epochs=many", "seed=1"])
    assert caught.value.where == str(file) and "not 'many' (by --set tune.epochs)" in str(caught.value)
    assert "unknown key 'weigths': did you mean 'weights'?\n" in str(caught.value)
    for given in ("tune.epochs=many", "tune={epochs: many}", "tune=3"):
        with pytest.raises(ConfigError) as caught:
            load_run(write(folder, "model: a/b\n"), ["seed=1", given])
        assert caught.value.where == f"--set {given.partition('=')[0]}" and str(file) not in str(caught.value)


def test_the_limits_of_an_option_hold_for_the_command_line_too() -> None:
    check_option(AdapterConfig, "rank", 4096, "--lora-rank")
    with pytest.raises(ConfigError, match="--lora-rank must be at least 1 and at most 4096; it is 4097"):
        check_option(AdapterConfig, "rank", 4097, "--lora-rank")


def test_long_answers_have_their_own_decoding_unless_it_is_set(folder: Path) -> None:
    for kind, tokens, stop in (("json", 256, []), ("text", 256, []), ("exact", 16, ["\n"])):
        task = load_task(write(folder, f"data: d.csv\nkind: {kind}\n", "t.yaml"))
        assert (task.decoding.max_new_tokens, task.decoding.stop) == (tokens, stop)
    task = load_task(write(folder, "data: d.csv\nkind: json\ndecoding: {stop: [END]}\n", "t.yaml"))
    assert (task.decoding.max_new_tokens, task.decoding.stop) == (256, ["END"])
    with pytest.raises(ConfigError, match="'decoding' must be a mapping"):
        load_task(write(folder, "data: d.csv\nkind: json\ndecoding: 5\n", "t.yaml"))


def test_what_the_kinds_have_no_use_for(folder: Path) -> None:
    (folder / "s.json").write_text("{}")
    for text, said in (
        ("kind: exact\nschema: s.json\n", "'schema' is for kind 'json'"),
        ("kind: exact\nscorer: s.py:score\n", "'scorer' is for kind 'python'"),
        ("kind: choice\noptions: [a, b]\nanswer: generated\nnormalise: bytes\n", "no likelihood to normalise"),
        ("kind: choice\noptions: [a, b]\nnormalise: words\n", "must be one of none, tokens, bytes"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_task(write(folder, f"data: d.csv\n{text}", "t.yaml"))
    task = load_task(write(folder, "data: d.csv\nkind: json\nschema: s.json\n", "t.yaml"))
    assert task.schema == str(folder / "s.json") and task.generates
    assert not load_task(write(folder, "data: d.csv\nkind: choice\noptions: [a, b]\n", "t.yaml")).generates


def test_a_scoring_function_runs_only_if_the_command_line_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tasks").mkdir()
    monkeypatch.chdir(folder)
    file = write(folder / "tasks", "data: d.csv\nkind: python\nscorer: scorer.py:score\n", "t.yaml")
    absolute = f"{folder}/tasks/scorer.py:score"
    with pytest.raises(ConfigError, match=r"(?s)runs Python code.*do: read it, then add --scorer .*score"):
        load_task(file)
    for other in ("scorer.py:score", "tasks/scorer.py:other"):  # relative to the current folder
        with pytest.raises(ConfigError, match="another scoring function than the task"):
            load_task(file, other)
    assert load_task(file, "tasks/scorer.py:score").scorer == load_task(file, absolute).scorer == absolute
    assert load_task(file, runs=False).scorer == absolute
    bare = write(folder, "data: d.csv\nkind: python\n", "bare.yaml")
    assert load_task(bare, "tasks/scorer.py:score").scorer == absolute
    with pytest.raises(ConfigError, match=r"(?s)names no function.*scorer.py:score"):
        load_task(bare, "tasks/scorer.py")
    with pytest.raises(ConfigError, match="--scorer is for a task of kind 'python'"):
        load_task(write(folder, "data: d.csv\n", "exact.yaml"), "tasks/scorer.py:score")
