"""The harness's tasks on our model: item by item what our own evaluation gives, and comparable results."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from halfbyte.config import AdapterConfig, DecodingConfig, TaskConfig, ToleranceConfig
from halfbyte.errors import ConfigError, DataError, MissingDependency
from halfbyte.evaluate.compare import changes, compare_folders
from halfbyte.evaluate.evaluate import evaluate_task
from halfbyte.evaluate.results import read_evaluation
from halfbyte.model.adapter import quant_linears, save_adapter
from halfbyte.model.build import load_model
from tests.evaluate.models import plain_model
from tests.tiny import tiny_checkpoint

pytest.importorskip("lm_eval")
from halfbyte.evaluate import harness_tasks
from halfbyte.evaluate.harness import evaluate_harness_task
from halfbyte.evaluate.harness_model import HarnessModel
from halfbyte.evaluate.harness_tasks import load_harness_tasks

DATA = Path(__file__).parents[1] / "data" / "harness"
QUESTION = "Question: {question}\nAnswer:"


class Request:
    def __init__(self, *args: Any, item: int = 0) -> None:
        self.args, self.doc_id = args, item


def write_task(folder: Path, name: str, rows: list[dict[str, Any]] | None, **config: Any) -> Path:
    """A task of the harness with its data beside it."""
    folder.mkdir(exist_ok=True)
    whole: dict[str, Any] = {"task": name, "test_split": "test", "metadata": {"version": 1.0}}
    if rows is not None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(folder / "cache")}
        whole |= {"dataset_path": "json", "dataset_kwargs": files}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole | config))
    return folder


def run(folder: Path, name: str, out: Path, model: Any = None, **options: Any) -> dict[str, Any]:
    task = load_harness_tasks(name, folder, options.pop("shots", None))[name]
    return evaluate_harness_task(model or plain_model(), name, task, out, variant="base", **options)


def problems() -> list[dict[str, str]]:
    """GSM8K's questions and final answers."""
    lines = [json.loads(line) for line in (DATA / "gsm8k.jsonl").read_text().splitlines()]
    return [{"question": line["question"], "final": line["answer"].split("####")[1].strip()} for line in lines]


def write_own(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_generated_answers_agree_with_our_own_to_the_item(tmp_path: Path) -> None:
    """GSM8K. Every second reference is replaced by what the model says, so that a random model is right sometimes."""
    model = plain_model(seed=2, max_position_embeddings=512)
    task = TaskConfig(name="gsm8k", kind="number", fallback=0.0, decoding=DecodingConfig(24, ["Question:", "\n\n"]),
                      template={"prompt": QUESTION, "completion": " {final}"}, tolerance=ToleranceConfig(None, 0.0),
                      data=write_own(tmp_path / "first.jsonl", problems()))  # fmt: skip
    evaluate_task(model, task, tmp_path / "first", variant="base")
    rows = problems()
    for row, line in list(zip(rows, read_evaluation(tmp_path / "first").predictions, strict=True))[::2]:
        row["final"] = f"{line['parsed']:g}" if line["parsed"] is not None else row["final"]
    task = TaskConfig(**{**vars(task), "data": write_own(tmp_path / "second.jsonl", rows)})
    evaluate_task(model, task, tmp_path / "ours", variant="base")
    number = {"name": "number", "filter": [{"function": "regex", "regex_pattern": r"([0-9]+\.?[0-9]*|\.[0-9]+)"},
                                           {"function": "take_first"}]}  # fmt: skip
    write_task(tmp_path / "tasks", "problems", rows, output_type="generate_until", filter_list=[number],
               doc_to_text=QUESTION.replace("{question}", "{{question}}"), doc_to_target="{{final}}",
               generation_kwargs={"until": ["Question:", "\n\n"], "do_sample": False, "max_gen_toks": 24},
               metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}])  # fmt: skip
    result = run(tmp_path / "tasks", "problems", tmp_path / "theirs", model)
    ours, theirs = read_evaluation(tmp_path / "ours").predictions, read_evaluation(tmp_path / "theirs").predictions
    for own, other in zip(ours, theirs, strict=True):
        assert (own["prompt"], own["answer"]) == (other["prompt"], other["answer"])
        assert own["scores"]["within"] * own["scores"]["answered"] == other["scores"]["exact_match,number"]
    right = sum(line["scores"]["exact_match,number"] for line in theirs)
    assert 4 <= right <= 20 and result["metrics"]["exact_match,number"]["value"] == right / 24


def test_choices_agree_with_our_own_to_the_item(tmp_path: Path) -> None:
    """Banking77, all 77 intents as options; every second reference is what the model chooses, by bytes or by sums."""
    model = plain_model(seed=2, max_position_embeddings=512)
    intents = [name.replace("_", " ") for name in json.loads((DATA / "banking77_categories.json").read_text())]
    with (DATA / "banking77.csv").open() as file:
        rows: list[dict[str, Any]] = [dict(row) for row in csv.DictReader(file)][:16]
    for row in rows:
        row |= {"category": row["category"].replace("_", " "), "options": intents}
    template = {"prompt": "Message: {text}\nIntent:", "completion": " {category}"}
    task = TaskConfig(name="bank", kind="choice", options="options", template=template,
                      data=write_own(tmp_path / "first.jsonl", rows))  # fmt: skip
    evaluate_task(model, task, tmp_path / "first", variant="base")
    for at, (row, line) in enumerate(zip(rows, read_evaluation(tmp_path / "first").predictions, strict=True)):
        nats = line["log_likelihoods"]
        best = max(nats, key=lambda option: nats[option] / (len(option.strip()) if at % 6 == 0 else 1))
        row |= {"category": best.strip()} if at % 2 == 0 else {}
    task = TaskConfig(**{**vars(task), "data": write_own(tmp_path / "second.jsonl", rows)})
    evaluate_task(model, task, tmp_path / "ours", variant="base")
    metrics = [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes")]
    write_task(tmp_path / "tasks", "bank", rows, output_type="multiple_choice", metric_list=metrics,
               doc_to_text="Message: {{text}}\nIntent:", doc_to_choice="options",
               doc_to_target="{{options.index(category)}}")  # fmt: skip
    result = run(tmp_path / "tasks", "bank", tmp_path / "theirs", model)
    ours, theirs = read_evaluation(tmp_path / "ours").predictions, read_evaluation(tmp_path / "theirs").predictions
    for own, other in zip(ours, theirs, strict=True):
        assert own["log_likelihoods"] == pytest.approx(other["log_likelihoods"], abs=1e-4)
        assert (own["prompt"], own["parsed"], own["reference"].strip()) == (
            other["prompt"], other["parsed"], other["reference"])  # fmt: skip
        assert own["scores"]["accuracy"] == other["scores"]["acc"]
        assert own["scores"]["accuracy_per_byte"] == other["scores"]["acc_bytes"] == other["scores"]["acc_norm"]
    sums, per_byte = (result["metrics"][name]["value"] for name in ("acc", "acc_norm"))
    assert sums != per_byte and min(sums, per_byte) > 0.1 and max(sums, per_byte) < 0.8


TINY = [{"text": f"Item {k} is", "options": ["red", "green", "blue"], "right": k % 3} for k in range(30)]
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_choice": "options", "doc_to_target": "right",
    "metric_list": [{"metric": "acc"}, {"metric": "brier_score"}], "fewshot_split": "test",
}  # fmt: skip


def test_results_have_our_schema_and_compare(tmp_path: Path) -> None:
    write_task(tmp_path / "tasks", "colours", TINY, **CHOICE)
    seen: list[tuple[int, int]] = []
    state = random.getstate()
    result = run(tmp_path / "tasks", "colours", tmp_path / "a", progress=lambda *at: seen.append(at))
    assert random.getstate() == state and seen[-1][0] == seen[-1][1]
    assert json.loads((tmp_path / "a" / "result.json").read_text()) == result
    assert (result["task"], result["kind"], result["items"], result["variant"]) == ("colours", "harness", 30, "base")
    assert result["versions"]["lm_eval"] and result["seed"] == 0 and result["tokens_per_second"] > 0
    found = result["metrics"]["acc"]
    assert found["low"] < found["value"] < found["high"] and found["method"] == "wilson"
    whole = result["metrics"]["brier_score"]
    assert (whole["low"], whole["better"]) == (None, "lower") and 0 < whole["value"] < 2
    assert any(text.startswith("brier_score: ") for text in result["warnings"])
    run(tmp_path / "tasks", "colours", tmp_path / "b", plain_model(seed=1))
    made = compare_folders(tmp_path / "a", tmp_path / "b")
    assert (made["metric"], made["n"], made["wins"] + made["losses"] + made["ties"]) == ("acc", 30, 30)
    assert made["difference"]["test"] == "mcnemar exact"
    improved, _ = changes(tmp_path / "a", tmp_path / "b")
    assert len(improved) == min(10, made["wins"])
    with pytest.raises(ConfigError, match="no such metric"):
        compare_folders(tmp_path / "a", tmp_path / "b", metric="brier_score")


def test_other_prompts_are_another_experiment(tmp_path: Path) -> None:
    write_task(tmp_path / "tasks", "colours", TINY, **CHOICE)
    run(tmp_path / "tasks", "colours", tmp_path / "a", limit=10)
    result = run(tmp_path / "tasks", "colours", tmp_path / "b", limit=10, shots=2)
    line = read_evaluation(tmp_path / "b").predictions[0]
    assert line["prompt"].count("Item") == 3 and result["items"] == 10 and result["shots_seed"] == 1234
    with pytest.raises(ConfigError, match="not of the same experiment") as caught:
        compare_folders(tmp_path / "a", tmp_path / "b")
    assert "shots: 0 against 2" in str(caught.value)


def test_the_place_of_another_experiment_is_refused_before_the_model_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path / "tasks", "colours", TINY, **CHOICE)
    run(tmp_path / "tasks", "colours", tmp_path / "a", limit=10)
    before = (tmp_path / "a" / "result.json").read_text()
    run(tmp_path / "tasks", "colours", tmp_path / "a", limit=10)  # the same one is written again
    assert (tmp_path / "a" / "result.json").read_text() != before
    before = (tmp_path / "a" / "result.json").read_text()
    monkeypatch.setattr("halfbyte.evaluate.harness_model.option_likelihoods", lambda *_, **__: pytest.fail("asked"))
    for options in ({"limit": 12}, {"limit": 10, "shots": 1}):
        with pytest.raises(ConfigError, match="other items, prompts or decoding"):
            run(tmp_path / "tasks", "colours", tmp_path / "a", **options)
    assert (tmp_path / "a" / "result.json").read_text() == before


def test_the_models_own_error_is_not_blamed_on_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path / "tasks", "colours", TINY, **CHOICE)
    for error in (RuntimeError("out of memory"), ValueError("a fault of ours"), DataError("too long")):

        def fails(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr("halfbyte.evaluate.harness_model.option_likelihoods", fails)
        with pytest.raises(type(error)) as caught:
            run(tmp_path / "tasks", "colours", tmp_path / "a")
        assert caught.value is error


def test_an_interrupted_task_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path / "tasks", "colours", TINY, **CHOICE)
    whole = run(tmp_path / "tasks", "colours", tmp_path / "whole")
    monkeypatch.setattr("halfbyte.evaluate.likelihood.token_budget", lambda model: 300)
    monkeypatch.setattr("halfbyte.evaluate.generate.token_budget", lambda model: 300)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "tasks", "colours", tmp_path / "a", progress=stop)
    result = run(tmp_path / "tasks", "colours", tmp_path / "a")
    assert 15 < result["resumed"] < 30 and result["tokens_per_second"] is None
    assert result["metrics"]["acc"] == whole["metrics"]["acc"] and result["fingerprint"] == whole["fingerprint"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["predictions.jsonl", "result.json"]


def test_the_packed_base_and_its_adapter_are_what_answers(folder: Path) -> None:
    """In NF4, with an adapter on disk: item by item what our own evaluation of the same model gives."""
    source = tiny_checkpoint("llama", folder / "model")
    adapter = AdapterConfig(rank=4, targets="all")
    model = load_model(str(source), weights="nf4", adapter=adapter)
    for layer in quant_linears(model.net).values():
        if layer.lora_B is not None:
            torch.nn.init.normal_(layer.lora_B, std=0.3)
    save_adapter(model.net, folder / "adapter", adapter, str(source), model.fingerprint)
    write_task(folder / "tasks", "colours", TINY, **CHOICE)
    rows = [{"prompt": row["text"], "completion": " " + row["options"][row["right"]]} for row in TINY]
    task = TaskConfig(name="ours", kind="choice", options=["red", "green", "blue"],
                      data=write_own(folder / "t.jsonl", rows))  # fmt: skip
    nats = {}
    for name, chosen in (("base", None), ("tuned", folder / "adapter")):
        model = load_model(str(source), weights="nf4", adapter=chosen)
        result = run(folder / "tasks", "colours", folder / name, model)
        assert result["weights"] == "nf4" and (result["adapter"] is None) == (chosen is None)
        evaluate_task(model, task, folder / f"own-{name}", variant=name)
        theirs, ours = (read_evaluation(folder / f"{own}{name}").predictions for own in ("", "own-"))
        for line, own in zip(theirs, ours, strict=True):
            assert line["log_likelihoods"] == pytest.approx(own["log_likelihoods"], abs=1e-3)
        nats[name] = [line["log_likelihoods"] for line in theirs]
    assert nats["base"] != nats["tuned"]
    assert compare_folders(folder / "base", folder / "tuned")["n"] == 30


def test_details_name_the_worst_items_whichever_way_is_better(tmp_path: Path) -> None:
    write_task(tmp_path / "tasks", "colours", TINY, **CHOICE)
    found = run(tmp_path / "tasks", "colours", tmp_path / "a")["details"]
    lines = read_evaluation(tmp_path / "a").predictions
    wrong = [line for line in lines if not line["scores"]["acc"]]
    assert {row["id"] for row in found["worst"]} <= {line["id"] for line in wrong} and found["worst"]
    gaps = [row["score"] for row in found["worst"]]
    assert gaps == sorted(gaps) and gaps[0] < 0
    assert {row["class"] for row in found["classes"]} == {"red", "green", "blue"}
    assert sum(row["count"] for row in found["confusions"]) == len(wrong)
    texts = ["a set of the little castle " * k for k in (1, 3, 40)] + ["qqq zzz"]
    write_task(tmp_path / "tasks", "texts", [{"text": text} for text in texts], output_type="loglikelihood_rolling",
               doc_to_text="", doc_to_target="{{text}}",
               metric_list=[{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}])  # fmt: skip
    result = run(tmp_path / "tasks", "texts", tmp_path / "texts")
    scores = {line["id"]: line["scores"]["bits_per_byte"] for line in read_evaluation(tmp_path / "texts").predictions}
    assert [row["id"] for row in result["details"]["worst"]] == sorted(scores, key=lambda name: -scores[name])
    assert all(result["metrics"][name]["better"] == "lower" for name in ("bits_per_byte", "byte_perplexity"))


def test_a_lower_perplexity_is_better(tmp_path: Path) -> None:
    rows = [{"text": "a set of the little castle " * (1 + k % 5)} for k in range(30)]
    write_task(tmp_path / "tasks", "texts", rows, output_type="loglikelihood_rolling", doc_to_text="",
               doc_to_target="{{text}}", metric_list=[{"metric": "word_perplexity"}])  # fmt: skip
    results = {name: run(tmp_path / "tasks", "texts", tmp_path / name, plain_model(seed=seed))
               for name, seed in (("a", 0), ("b", 1))}  # fmt: skip
    values = {name: result["metrics"]["word_perplexity"]["value"] for name, result in results.items()}
    low, high = sorted("ab", key=lambda name: float(values[name]))
    assert compare_folders(tmp_path / high, tmp_path / low)["verdict"] == "better"
    assert compare_folders(tmp_path / low, tmp_path / high)["verdict"] == "worse"
    improved, worsened = changes(tmp_path / high, tmp_path / low)
    assert improved[0].b_score < improved[0].a_score and len(improved) > len(worsened)


def test_a_metric_of_a_tasks_own_keeps_its_direction(tmp_path: Path) -> None:
    config = {**CHOICE, "metric_list": [{"metric": "error", "aggregation": "mean", "higher_is_better": False}]}
    write_task(tmp_path / "tasks", "colours", TINY, **config)
    (tmp_path / "tasks" / "judge.py").write_text(
        "def judge(doc, results):\n    return {'error': -results[doc['right']][0] / 10}\n"
    )
    with (tmp_path / "tasks" / "colours.yaml").open("a") as file:
        file.write("process_results: !function judge.judge\n")
    for name, seed in (("a", 0), ("b", 1)):
        run(tmp_path / "tasks", "colours", tmp_path / name, plain_model(seed=seed))
    made = compare_folders(tmp_path / "a", tmp_path / "b")
    assert made["better"] == "lower" and made["metric"] == "error"
    mean = [sum(line["scores"]["error"] for line in read_evaluation(tmp_path / name).predictions) / 30 for name in "ab"]
    assert made["difference"]["value"] == pytest.approx(mean[1] - mean[0]) and mean[0] != mean[1]


def test_perplexity_of_whole_texts(tmp_path: Path) -> None:
    """In windows of the context (256 tokens), each token once, as the harness cuts them; the ratio of sums is ours."""
    texts = ["a set of the little castle " * k for k in (1, 3, 40)]
    write_task(tmp_path / "tasks", "texts", [{"text": text} for text in texts], output_type="loglikelihood_rolling",
               doc_to_text="", doc_to_target="{{text}}",
               metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}])  # fmt: skip
    model = plain_model()
    result = run(tmp_path / "tasks", "texts", tmp_path / "out", model)
    nats = 0.0
    for text in texts:
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), 256):
            own = ids[start : start + 256]
            before = [model.tokenizer.bos_token_id] if start == 0 else ids[: start + len(own) - 1][-256:]
            row = [*before, *own][-257:] if start == 0 else [*before[: 256 - len(own) + 1], *own]
            logp = model.net(torch.tensor([row[:-1]])).logits[0].double().log_softmax(-1)
            nats -= sum(float(logp[len(row) - 1 - len(own) + k, token]) for k, token in enumerate(own))
    found = result["metrics"]
    size = sum(len(text.encode()) for text in texts)
    assert found["bits_per_byte"]["value"] == pytest.approx(nats / size / 0.6931471805599453, rel=1e-4)
    assert found["word_perplexity"]["better"] == "lower"
    assert len(read_evaluation(tmp_path / "out").predictions) == 3


def test_a_long_context_loses_its_beginning_and_greedy_is_greedy() -> None:
    model = plain_model()
    asked = HarnessModel(model)
    text = "set of ten dollars " * 60
    (long,) = asked.generate_until([Request(text, {"until": ["\n"], "max_gen_toks": 4, "top_k": 5})])
    ids = model.tokenizer(text)["input_ids"][-252:]
    new = model.net.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)[0, 252:]
    assert long == model.tokenizer.decode(new, skip_special_tokens=True).split("\n")[0]
    assert asked.cut == 1 and asked.ignored == {"top_k"}
    asked.loglikelihood([Request(text, option, item=1) for option in (" ten", " dollars", " castle")])
    assert asked.cut == 2  # a prompt counts once, however many options it has
    greedy = model.net.generate(model.tokenizer("the set", return_tensors="pt")["input_ids"], max_new_tokens=3,
                                do_sample=False)[0, -3:]  # fmt: skip
    said = model.tokenizer.decode(greedy)
    (yes, no, empty) = asked.loglikelihood([Request("the set", text) for text in (said, " castle", "")])
    assert yes[1] and not no[1] and yes[0] > no[0] and empty == (0.0, True)
    with pytest.raises(ConfigError, match="decodes greedily"):
        asked.generate_until([Request("a", {"do_sample": True, "temperature": 0.7})])


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation() -> None:
    asked = HarnessModel(plain_model())
    one, other = asked.loglikelihood([Request("the price is ", "ten"), Request("the price is", " ten")])
    assert one == other
    (alone,) = asked.loglikelihood([Request("", "ten")])
    assert alone[0] < 0


def test_what_is_not_there_or_broken_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = write_task(tmp_path / "tasks", "hub", None, dataset_path="nobody/nothing", **CHOICE)
    with pytest.raises(DataError, match="data set of a harness task can't be had") as caught:
        load_harness_tasks("hub", tasks)
    assert "nobody/nothing" in str(caught.value) and "hub" in str(caught.value.where)
    write_task(tasks, "odd", TINY, **{**CHOICE, "doc_to_choice": "{{nonsense.split}}"})
    with pytest.raises(DataError, match="harness task is broken"):
        run(tasks, "odd", tmp_path / "out")
    write_task(tasks, "fixed", TINY, **CHOICE, num_fewshot=0)
    with pytest.raises(ConfigError, match="no place for examples"):
        load_harness_tasks("fixed", tasks, shots=2)
    with pytest.raises(ConfigError, match="no such folder"):
        load_harness_tasks("odd", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no task of the harness is named"):
        load_harness_tasks(" , ")
    from lm_eval.tasks import TaskManager

    own = TaskManager(include_path=str(tasks), include_defaults=False)  # without the harness's: they take seconds
    monkeypatch.setattr(harness_tasks, "_manager", lambda names, path: own)
    with pytest.raises(ConfigError, match="no such task") as caught:
        load_harness_tasks("fixxed", tasks)
    assert caught.value.found == "nearest: fixed" and "lm_eval ls tasks" in str(caught.value.do)
    with pytest.raises(ConfigError, match="none is like it"):
        load_harness_tasks("qqqqqq", tasks)
    for error, told in ((RuntimeError("scripts are no longer supported"), "can't be had"), (KeyError("x"), "broken")):

        def fails(*_: Any, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patched, pytest.raises(DataError, match=told):
            patched.setattr(own, "load", fails)
            load_harness_tasks("fixed", tasks)
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.evaluator", None)
    with pytest.raises(MissingDependency, match=r"halfbyte\[harness\]"):
        load_harness_tasks("fixed", tasks)
