from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from halfbyte.config import KINDS, DecodingConfig, TaskConfig, load_task
from halfbyte.data.encode import Encoder
from halfbyte.data.template import Example
from halfbyte.errors import ConfigError, DataError, HalfbyteError
from halfbyte.evaluate.evaluate import constant_folder, evaluate_task, largest_batch
from halfbyte.evaluate.generate import Generated
from halfbyte.evaluate.metrics import METRICS
from halfbyte.evaluate.results import read_evaluation
from halfbyte.evaluate.tasks import load_task_set
from tests.evaluate.models import plain_model

KEYS = {"schema", "task", "fingerprint", "variant", "model", "weights", "adapter", "items", "unanswered", "metrics",
        "seconds", "tokens_per_second", "peak_bytes", "mapped_bytes", "versions", "machine", "seed"}  # fmt: skip


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def prices(tmp_path: Path) -> TaskConfig:
    test = write(tmp_path / "test.jsonl", [{"prompt": f"set {k} costs $", "completion": f"{k}.99"} for k in range(12)])
    train = write(tmp_path / "train.jsonl", [{"prompt": "x", "completion": str(k)} for k in (1, 4, 50)])
    return TaskConfig(name="price", data=test, kind="number", train=train, decoding=DecodingConfig(8, ["\n"]))


def answering(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> None:
    """Let generation give these answers."""
    monkeypatch.setattr(
        "halfbyte.evaluate.generate.generate",
        lambda *_, **__: Generated(answers, [[1]] * len(answers), ["end"] * len(answers), 1, 1.0, 10, 2.0),
    )


def test_an_evaluation_has_the_contracts_keys(prices: TaskConfig, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out" / "base"
    result = evaluate_task(plain_model(), prices, out, variant="base-fp32", progress=lambda *at: seen.append(at))
    assert json.loads((out / "result.json").read_text()) == result
    assert set(result) >= KEYS and seen[-1] == (12, 12)
    assert result["schema"] == 1 and result["variant"] == "base-fp32" and result["model"] == "tiny-llama"
    assert result["items"] == 12 and result["weights"] == "fp32" and result["adapter"] is None
    assert result["tokens_per_second"] > 0 and result["seconds"] > 0
    assert result["peak_bytes"] is None or result["peak_bytes"] > 2**24
    assert result["versions"]["torch"] == torch.__version__ and result["machine"]["cores"] >= 1
    for metric in result["metrics"].values():
        assert {"value", "low", "high", "n"} <= set(metric)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    for line in lines:
        assert {"id", "group", "prompt", "answer", "reference", "parsed", "scores"} <= set(line)
    assert sorted(path.name for path in out.iterdir()) == ["predictions.jsonl", "result.json"]


def test_the_answers_are_the_models_own(prices: TaskConfig, tmp_path: Path) -> None:
    model = plain_model()
    evaluate_task(model, prices, tmp_path / "out", variant="base", batch=5)
    line = read_evaluation(tmp_path / "out").predictions[3]
    ids = model.tokenizer("set 3 costs $", return_tensors="pt")["input_ids"]
    new = model.net.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert line["prompt"] == "set 3 costs $" and line["reference"] == "3.99" and line["reference_parsed"] == 3.99
    assert line["answer"] == model.tokenizer.decode(new, skip_special_tokens=True).split("\n")[0]


def test_an_unanswered_item_takes_the_training_median(
    prices: TaskConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, ["no idea"] * 4 + [f"{k}.99" for k in range(4, 12)])
    result = evaluate_task(plain_model(), prices, tmp_path / "out", variant="x")
    assert (result["fallback"], result["fallback_source"]) == (4, "training median")
    assert result["unanswered"] == pytest.approx(4 / 12)
    error = sum(abs(4 - reference) for reference in (0.99, 1.99, 2.99, 3.99)) / 12
    assert result["metrics"]["mae"]["value"] == pytest.approx(error)
    assert result["metrics"]["mae_answered"] | {"method": 0} == {
        "value": 0, "low": 0, "high": 0, "n": 8, "better": "lower", "unit": "", "method": 0}  # fmt: skip
    assert result["metrics"]["unanswered"]["value"] == result["unanswered"]
    assert any("no spread in mae_answered" in warning for warning in result["warnings"])
    assert any("only 12 independent items" in warning for warning in result["warnings"])
    lines = read_evaluation(tmp_path / "out").predictions
    assert lines[0]["parsed"] is None and lines[0]["scores"]["mae"] == pytest.approx(3.01)


def test_nothing_answered_is_null_and_not_nan(
    prices: TaskConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, [""] * 12)
    result = evaluate_task(plain_model(), prices, tmp_path / "out", variant="x")
    found = json.loads((tmp_path / "out" / "result.json").read_text(), parse_constant=pytest.fail)
    assert found["metrics"]["mae_answered"]["value"] is None and found["metrics"]["mae_answered"]["n"] == 0
    assert result["unanswered"] == 1


def test_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "t.jsonl", [{"prompt": str(k), "completion": " Paris"} for k in range(4)])
    answering(monkeypatch, ["paris.", " PARIS", "London", " "])
    result = evaluate_task(plain_model(), TaskConfig(name="x", data=data), tmp_path / "out", variant="x")
    assert result["metrics"]["exact_match"]["value"] == 0.5 and result["unanswered"] == 0.25
    assert result["tokens_per_second"] == 5


def naive(model: Any, prompt: list[int], option: list[int]) -> float:
    logp = model.net(torch.tensor([prompt + option])).logits[0].double().log_softmax(-1)
    return sum(float(logp[len(prompt) + k - 1, token]) for k, token in enumerate(option))


@pytest.mark.parametrize("nested", [False, True])
def test_choice_is_the_likeliest_option(tmp_path: Path, nested: bool) -> None:
    model = plain_model()
    options = ["castle", "price of ten", "castle price"] if nested else ["castle", "price of ten", "models"]
    rows = [{"text": f"message {k}", "intent": options[k % 3]} for k in range(6)]
    task = TaskConfig(name="x", data=write(tmp_path / "t.jsonl", rows), kind="choice", options=options,
                      template={"prompt": "{text} ->", "completion": " {intent}"})  # fmt: skip
    result = evaluate_task(model, task, tmp_path / "out", variant="x")
    hits = 0
    for line, row in zip(read_evaluation(tmp_path / "out").predictions, rows, strict=True):
        prompt = model.tokenizer(f"{row['text']} ->")["input_ids"]
        end = [model.tokenizer.eos_token_id] if nested else []  # one option begins another: the end counts
        encoded = [model.tokenizer(" " + option, add_special_tokens=False)["input_ids"] + end for option in options]
        expected = [naive(model, prompt, ids) for ids in encoded]
        assert list(line["log_likelihoods"].values()) == pytest.approx(expected, abs=1e-4)
        best = options[max(range(3), key=expected.__getitem__)]
        assert line["parsed"] == best and line["answer"] == " " + best
        assert line["scores"]["accuracy"] == float(best == row["intent"])
        hits += best == row["intent"]
    assert result["metrics"]["accuracy"]["value"] == hits / 6
    assert {"macro_f1", "accuracy_per_byte"} <= set(result["metrics"])
    assert result["unanswered"] == 0
    assert result["chance_level"] == pytest.approx(1 / 3)


def test_loss_equals_transformers_own(tmp_path: Path) -> None:
    model = plain_model("gemma2")
    rows = [{"prompt": f"{k} dollars is", "completion": " the price" + " of a set" * k} for k in range(5)]
    task = TaskConfig(name="x", data=write(tmp_path / "t.jsonl", rows), kind="loss")
    result = evaluate_task(model, task, tmp_path / "out", variant="x")
    nats = tokens = size = 0.0
    encoder = Encoder(model.tokenizer)
    items = load_task_set(task).items
    for line, item in zip(read_evaluation(tmp_path / "out").predictions, items, strict=True):
        encoded = encoder.item(item.example)
        labels = [token if flag else -100 for token, flag in zip(encoded.ids, encoded.learned, strict=True)]
        assert encoded.ids[-1] == model.tokenizer.eos_token_id and encoded.learned[-1]  # EOS counts
        loss = float(model.net(torch.tensor([encoded.ids]), labels=torch.tensor([labels])).loss)
        assert line["scores"]["loss"] == pytest.approx(loss, rel=1e-5)
        nats, tokens = nats + loss * encoded.learned_tokens, tokens + encoded.learned_tokens
        size += len(item.reference.encode())
    metrics = {name: found["value"] for name, found in result["metrics"].items()}
    assert metrics["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert metrics["bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-5)


def test_the_same_answers_whatever_the_batch(prices: TaskConfig, tmp_path: Path) -> None:
    model = plain_model("mistral")
    for batch in (1, 5, "auto"):
        evaluate_task(model, prices, tmp_path / str(batch), variant="x", batch=batch)
    texts = {(tmp_path / str(batch) / "predictions.jsonl").read_text() for batch in (1, 5, "auto")}
    assert len(texts) == 1


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ '<|pad|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_the_largest_batch_is_what_generation_will_cut(
    prices: TaskConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, longest = plain_model(), len(Encoder(plain_model().tokenizer).prompt(Example.of_prompt("set 11 costs $")))
    assert largest_batch(model, prices) == (12, longest + 8, 8, None)
    monkeypatch.setattr("halfbyte.plan.answering._MOST_ROWS", 5)
    assert largest_batch(model, prices) == (5, longest + 8, 8, None)


def test_a_chat_model_is_asked_through_its_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain_model(add_bos=False, chat_template=CHAT)
    data = write(tmp_path / "t.jsonl", [{"prompt": "hello", "completion": "x"}])
    asked: dict[str, Any] = {}

    def generate(_: object, prompts: list[list[int]], *__: object, ends: set[int], **___: object) -> Generated:
        asked.update(prompts=prompts, ends=ends)
        return Generated(["x"], [[1]], ["end"], 1, 1.0, 1, 1.0)

    monkeypatch.setattr("halfbyte.evaluate.generate.generate", generate)
    evaluate_task(model, TaskConfig(name="x", data=data), tmp_path / "out", variant="x")
    assert model.tokenizer.decode(asked["prompts"][0]) == "<user>hello<|pad|><assistant>"
    assert asked["ends"] == {model.tokenizer.eos_token_id, model.tokenizer.pad_token_id}  # and the end of its turn
    evaluate_task(model, TaskConfig(name="x", data=data, chat="off"), tmp_path / "out", variant="x")
    assert model.tokenizer.decode(asked["prompts"][0]) == "hello"


def test_the_loss_of_a_conversation_counts_every_answer(tmp_path: Path) -> None:
    model = plain_model(add_bos=False, chat_template=CHAT)
    turns = [{"role": role, "content": text} for role, text in
             (("user", "hello"), ("assistant", "set"), ("user", "more"), ("assistant", "castle"))]  # fmt: skip
    data = write(tmp_path / "t.jsonl", [{"messages": turns}] * 2)
    evaluate_task(model, TaskConfig(name="x", data=data, kind="loss"), tmp_path / "out", variant="x")
    line = read_evaluation(tmp_path / "out").predictions[0]
    answers = [model.tokenizer(text + "<|pad|>", add_special_tokens=False)["input_ids"] for text in ("set", "castle")]
    assert line["scores"]["bytes"] == len("setcastle")
    assert line["scores"]["tokens"] == sum(map(len, answers))


def test_what_does_not_fit_names_the_item(tmp_path: Path) -> None:
    data = write(tmp_path / "t.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a " * 300, "completion": "b"}])
    for kind in ("loss", "choice", "exact"):
        task = TaskConfig(name="x", data=data, kind=kind, options=["b", "c"] if kind == "choice" else None)
        with pytest.raises(DataError, match=r"(?s)context of 256 tokens.*t.jsonl:2"):
            evaluate_task(plain_model(), task, tmp_path / "out", variant="x")
    assert not (tmp_path / "out").exists()


def test_a_failed_evaluation_leaves_no_result_that_looks_whole(
    prices: TaskConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    evaluate_task(plain_model(), prices, out, variant="x")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("halfbyte.durable.os.fsync", full)
    with pytest.raises(HalfbyteError, match=r"(?s)can't be written.*No space left"):
        evaluate_task(plain_model(), prices, out, variant="x")
    assert sorted(path.name for path in out.iterdir()) == ["answers.jsonl", "predictions.jsonl"]


def test_the_constant_guess_is_an_evaluation(prices: TaskConfig, tmp_path: Path) -> None:
    result = evaluate_task(plain_model(), prices, tmp_path / "base", variant="base")
    median = constant_folder(tmp_path / "base", tmp_path / "median")
    read = read_evaluation(tmp_path / "median")
    assert set(median) == set(result) and median["fingerprint"] == result["fingerprint"]
    assert median["variant"] == "median" and median["model"] is None and median["unanswered"] == 0
    error = sum(abs(4 - (k + 0.99)) for k in range(12)) / 12
    assert median["metrics"]["mae"]["value"] == pytest.approx(error)
    assert {line["answer"] for line in read.predictions} == {"4"} and read.predictions[0]["parsed"] == 4
    rows = [{"prompt": "a", "completion": "b"}]
    task = TaskConfig(name="x", data=write(tmp_path / "e.jsonl", rows))
    evaluate_task(plain_model(), task, tmp_path / "exact", variant="base")
    with pytest.raises(ConfigError, match="kind 'number'"):
        constant_folder(tmp_path / "exact", tmp_path / "never")


def test_folders_that_are_no_evaluation(prices: TaskConfig, tmp_path: Path) -> None:
    out = tmp_path / "run" / "evaluations" / "base"
    evaluate_task(plain_model(), prices, out, variant="x")
    with pytest.raises(DataError, match="no such evaluation"):
        read_evaluation(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"(?s)holds no evaluation.*evaluations/base"):
        read_evaluation(tmp_path / "run")
    for name, spoil, fault in (
        ("result.json", lambda text: text[:-20], "the result is broken"),
        ("result.json", lambda text: text.replace('"schema": 1', '"schema": 99'), "schema 99"),
        ("result.json", lambda text: '{"loss": 3}', "another schema"),
        ("predictions.jsonl", lambda text: text.replace('"id"', '"di"', 1), r"predictions.jsonl:1"),
        ("predictions.jsonl", lambda text: text + "{broken\n", r"predictions.jsonl:13"),
        ("predictions.jsonl", lambda text: text.split("\n")[0] + "\n", "1 predictions, 12 items"),
        ("predictions.jsonl", lambda text: "", "there are no predictions"),
        ("predictions.jsonl", None, "the predictions are missing"),
    ):
        broken = tmp_path / "broken"
        shutil.copytree(out, broken)
        if spoil is None:
            (broken / name).unlink()
        else:
            (broken / name).write_text(spoil((broken / name).read_text()))
        with pytest.raises(DataError, match=fault):
            read_evaluation(broken)
        shutil.rmtree(broken)


SCORER = """
def score(answer, reference, record):
    return len(record["prompt"]) / 100
"""


@pytest.mark.parametrize("kind", [*KINDS, "choice generated"])
def test_every_kind_goes_from_its_file_to_its_result(kind: str, tmp_path: Path) -> None:
    kind, _, generated = kind.partition(" ")
    references = {"number": "{k}.5", "json": '{{"n": {k}, "s": {{"deep": "x"}}}}', "choice": "{k}"}
    reference = references.get(kind, "say {k} now")
    rows = [{"prompt": f"item {k} is", "completion": " " + reference.format(k=k % 3)} for k in range(9)]
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    (tmp_path / "scorer.py").write_text(SCORER)
    own = {"choice": "options: ['0', '1', '2']\nanswer: " + (generated or "likelihood"), "json": "schema: schema.json",
           "python": "scorer: scorer.py:score"}  # fmt: skip
    write(tmp_path / "t.jsonl", rows)
    (tmp_path / "task.yaml").write_text(f"data: t.jsonl\nkind: {kind}\n{own.get(kind, '')}\n")
    task = load_task(tmp_path / "task.yaml", f"{tmp_path}/scorer.py:score" if kind == "python" else None)
    task = replace(task, decoding=replace(task.decoding, max_new_tokens=4))
    result = evaluate_task(plain_model(), task, tmp_path / "out", variant="x")
    lines = read_evaluation(tmp_path / "out").predictions
    names = {metric.name for metric in METRICS[kind]}
    if kind == "choice":
        names -= {"accuracy_sum"} | ({"accuracy_per_token", "accuracy_per_byte"} if generated else {"unanswered"})
    assert set(result["metrics"]) == names and len(lines) == 9
    assert all(found["n"] is not None and found["better"] for found in result["metrics"].values())
    assert len(result["details"]["worst"]) <= 9 and (largest_batch(plain_model(), task)[3] is None) == task.generates
    more = {"number": "calibration", "choice": "classes", "exact": "classes", "json": "fields"}
    assert set(result["details"]) >= {"worst", *({more[kind]} if kind in more else ())}
    if kind == "python":
        assert result["metrics"]["score"]["value"] == pytest.approx(0.09)
    if kind == "json":
        assert {row["field"] for row in result["details"]["fields"]} == {"n", "s.deep"}
        assert result["fingerprint_parts"]["schema"]


def test_a_generated_choice_is_read_from_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"m {k}", "intent": intent} for k, intent in enumerate(["lost card", "card", "top up", "card"])]
    template = {"prompt": "{text}", "completion": " {intent}"}
    task = TaskConfig(name="x", data=write(tmp_path / "t.jsonl", rows), kind="choice", answer="generated",
                      options=["card", "lost card", "top up"], template=template)  # fmt: skip
    answering(monkeypatch, [" It is the lost card.", "CARD", "card or top up", "cards"])
    result = evaluate_task(plain_model(), task, tmp_path / "out", variant="x")
    assert result["metrics"]["accuracy"]["value"] == 0.5 and result["unanswered"] == 0.5
    assert "decoding" in result["fingerprint_parts"] and result["fingerprint_parts"]["answer"] == "generated"
    lines = read_evaluation(tmp_path / "out").predictions
    assert [line["parsed"] for line in lines] == ["lost card", "card", None, None]
    assert [line["option"] for line in lines] == [" lost card", " card", "", ""]
    # card: 1 of 2 found, nothing else called so; lost card 1 of 1; top up none
    assert result["metrics"]["macro_f1"]["value"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_a_choice_by_its_rule(tmp_path: Path) -> None:
    rows = [{"prompt": f"m {k}", "completion": ("castle", "price of ten dollars")[k % 2]} for k in range(6)]
    task = TaskConfig(
        name="x", data=write(tmp_path / "t.jsonl", rows), kind="choice", options=["castle", "price of ten dollars"]
    )
    model, by = plain_model(), {}
    for rule in ("none", "tokens", "bytes"):
        evaluate_task(model, replace(task, normalise=rule), tmp_path / rule, variant="x")
        by[rule] = read_evaluation(tmp_path / rule)
    names = {"none": "accuracy_sum", "tokens": "accuracy_per_token", "bytes": "accuracy_per_byte"}
    for rule, name in names.items():
        for other in set(names) - {rule}:
            assert by[other].result["metrics"][name]["value"] == by[rule].result["metrics"]["accuracy"]["value"]
    assert len({found.result["fingerprint"] for found in by.values()}) == 3


def test_a_scorer_that_fails_names_the_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "t.jsonl", [{"prompt": str(k), "completion": "x"} for k in range(3)])
    (tmp_path / "scorer.py").write_text("def score(answer, reference, record):\n    return 1 / int(record['prompt'])\n")
    task = TaskConfig(name="x", data=data, kind="python", scorer=f"{tmp_path}/scorer.py:score")
    answering(monkeypatch, ["a", "b", "c"])
    with pytest.raises(HalfbyteError) as error:
        evaluate_task(plain_model(), task, tmp_path / "out", variant="x")
    assert "t.jsonl:1" in str(error.value) and "scorer.py:2" in str(error.value) and "ZeroDivision" in str(error.value)
    assert not (tmp_path / "out").exists()  # it was tried before the model was asked


def test_a_mended_scorer_needs_no_new_answers(
    tmp_path: Path, prices: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, broken = tmp_path / "scorer.py", "def score(answer, reference, record):\n    return 1 / (record['k'] - 7)\n"
    scorer.write_text(broken)
    data = write(tmp_path / "t.jsonl", [{"prompt": f"set {k}", "completion": "x", "k": k} for k in range(10)])
    task = replace(prices, data=data, train=None, kind="python", scorer=f"{scorer}:score")
    model, out = plain_model(), tmp_path / "out"
    with pytest.raises(HalfbyteError, match=r"(?s)t.jsonl:8.*ZeroDivision"):
        evaluate_task(model, task, out, variant="x")
    assert [path.name for path in out.iterdir()] == ["answers.jsonl"]
    scorer.write_text("def score(answer, reference, record):\n    return len(answer)\n")
    with monkeypatch.context() as patched:
        patched.setattr("halfbyte.evaluate.generate._decode_batch", lambda *_, **__: pytest.fail("asked again"))
        result = evaluate_task(model, task, out, variant="x")
    assert result["resumed"] == 10 and result["tokens_per_second"] is None
    assert sorted(path.name for path in out.iterdir()) == ["predictions.jsonl", "result.json"]
    whole = evaluate_task(model, task, tmp_path / "whole", variant="x")
    assert whole["resumed"] == 0 and whole["metrics"] == result["metrics"]
    assert (out / "predictions.jsonl").read_text() == (tmp_path / "whole" / "predictions.jsonl").read_text()
