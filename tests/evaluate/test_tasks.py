from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from halfbyte.config import DecodingConfig, TaskConfig, ToleranceConfig
from halfbyte.data.encode import Encoder
from halfbyte.errors import ConfigError, DataError, MissingDependency
from halfbyte.evaluate.tasks import load_task_set
from tests.tiny import tiny_tokenizer

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def prices(tmp_path: Path) -> TaskConfig:
    rows = [{"name": f"set {k}", "price": 10 * k, "theme": f"t{k % 2}"} for k in range(1, 7)]
    test = write(tmp_path / "test.jsonl", rows)
    train = write(tmp_path / "train.jsonl", [{"name": f"old {k}", "price": k} for k in (3, 5, 100)])
    template = {"prompt": "{name} costs $", "completion": "{price}"}
    return TaskConfig(name="price", data=test, template=template, kind="number", train=train)


def test_items_of_a_number_task(prices: TaskConfig) -> None:
    tasks = load_task_set(prices)
    assert [item.reference for item in tasks.items] == ["10", "20", "30", "40", "50", "60"]
    assert [item.number for item in tasks.items] == [10, 20, 30, 40, 50, 60]
    assert tasks.items[0].example.prompt == "set 1 costs $" and tasks.items[0].group is None
    assert len({item.id for item in tasks.items}) == 6
    assert (tasks.fallback, tasks.fallback_source, tasks.warnings) == (5, "training median", [])


def test_where_the_fallback_comes_from(prices: TaskConfig) -> None:
    named = load_task_set(replace(prices, fallback=7.5))
    assert (named.fallback, named.fallback_source) == (7.5, "task")
    bare = load_task_set(replace(prices, train=None))
    assert (bare.fallback, bare.fallback_source) == (35, "median of the test set")
    assert "neither fallback nor train" in bare.warnings[0]
    folder = Path(prices.data).parent
    train = write(folder / "words.jsonl", [{"name": "x", "price": "dear"}])
    with pytest.raises(DataError, match=r"(?s)no training example has a number.*words.jsonl.*'dear'"):
        load_task_set(replace(prices, train=train))


def test_ids_and_groups(prices: TaskConfig, tmp_path: Path) -> None:
    tasks = load_task_set(replace(prices, id="name", group="theme"))
    assert [item.id for item in tasks.items][:2] == ["set 1", "set 2"]
    assert [item.group for item in tasks.items] == ["t1", "t0", "t1", "t0", "t1", "t0"]
    with pytest.raises(DataError, match=r"(?s)4 of 6 items.*test.jsonl:3: the id 't1' stands twice"):
        load_task_set(replace(prices, id="theme"))
    with pytest.raises(DataError, match=r"no column 'nam' for the id: did you mean 'name'\?"):
        load_task_set(replace(prices, id="nam"))
    twins = write(tmp_path / "twins.jsonl", [{"prompt": "a", "completion": "1"}] * 3)
    ids = [item.id for item in load_task_set(TaskConfig(data=twins, kind="number", name="x")).items]
    assert ids == [ids[0], f"{ids[0]}#2", f"{ids[0]}#3"]


def test_what_is_wrong_with_the_data_is_named_with_its_place(prices: TaskConfig, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "1"}, {"prompt": "b", "completion": "dear"}, {"prompt": "c"}]
    bad = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError) as error:
        load_task_set(TaskConfig(name="x", data=bad, kind="number"))
    assert "bad.jsonl:2: the reference is no number ('dear')" in str(error.value)
    assert "bad.jsonl:3: there is no reference answer" in str(error.value)
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match="no record"):
        load_task_set(TaskConfig(name="x", data=empty))


def test_the_fingerprint_is_of_the_experiment_alone(prices: TaskConfig, tmp_path: Path) -> None:
    first = load_task_set(prices).fingerprint
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(Path(prices.data).read_bytes())
    assert load_task_set(replace(prices, data=str(moved), name="other")).fingerprint == first
    assert load_task_set(prices, seed=3).fingerprint == first  # nothing is drawn
    others = [
        replace(prices, template=prices.template | {"prompt": "{name}: $"}),
        replace(prices, decoding=DecodingConfig(max_new_tokens=17)),
        replace(prices, tolerance=ToleranceConfig(relative=0.1)),
        replace(prices, fallback=6.0),
        replace(prices, id="name"),
        replace(prices, group="theme"),
        replace(prices, kind="exact"),
        replace(prices, shots=1),
        replace(prices, chat="off"),
    ]
    prints = [load_task_set(task).fingerprint for task in others] + [load_task_set(prices, limit=5).fingerprint]
    assert len({first, *prints}) == len(prints) + 1
    shots = [load_task_set(replace(prices, shots=1), seed=seed).fingerprint for seed in range(8)]
    assert len(set(shots)) > 1


def test_a_limit_keeps_the_same_items_in_any_order(prices: TaskConfig, tmp_path: Path) -> None:
    few = [item.id for item in load_task_set(prices, limit=3).items]
    lines = Path(prices.data).read_text().splitlines(keepends=True)
    (tmp_path / "turned.jsonl").write_text("".join(reversed(lines)))
    turned = [item.id for item in load_task_set(replace(prices, data=str(tmp_path / "turned.jsonl")), limit=3).items]
    assert len(few) == 3 and turned == few[::-1]
    assert set(few) < {item.id for item in load_task_set(prices, limit=4).items}
    assert len(load_task_set(prices, limit=100).items) == 6


def test_options_are_rendered_as_completions_are(tmp_path: Path) -> None:
    rows = [{"text": "hi", "intent": "greet", "more": ["greet", "leave"]}, {"text": "bye", "intent": "leave",
             "more": '["leave", "stay"]'}]  # fmt: skip
    data = write(tmp_path / "a.jsonl", rows)
    template = {"prompt": "{text}\nIntent:", "completion": " <{intent}>"}
    task = TaskConfig(name="x", data=data, kind="choice", options=["greet", "leave"], template=template)
    items = load_task_set(task).items
    assert [(item.options, item.right) for item in items] == [
        ((" <greet>", " <leave>"), 0),
        ((" <greet>", " <leave>"), 1),
    ]
    items = load_task_set(replace(task, options="more")).items
    assert [(item.options, item.right) for item in items] == [
        ((" <greet>", " <leave>"), 0),
        ((" <leave>", " <stay>"), 0),
    ]
    plain = write(tmp_path / "b.jsonl", [{"prompt": "q", "completion": " yes"}])
    (item,) = load_task_set(TaskConfig(name="x", data=plain, kind="choice", options=["no", "yes"])).items
    assert (item.options, item.right) == ((" no", " yes"), 1)
    faults = {
        "is none of the options": ["no", "perhaps"],
        "list of two options or more": ["yes"],
        "an option stands twice": ["yes", "no", "yes"],
        "no column 'wher' for the options": "wher",
    }
    for fault, options in faults.items():
        with pytest.raises((DataError, ConfigError), match=fault):
            load_task_set(TaskConfig(name="x", data=plain, kind="choice", options=options))


def choice(folder: Path, completions: list[Any], options: Any, **more: Any) -> TaskConfig:
    rows = [{"prompt": f"p{k}", "completion": text} for k, text in enumerate(completions)]
    return TaskConfig(name="x", data=write(folder / "t.jsonl", rows), kind="choice", options=options, **more)


def test_faults_of_the_options_are_one_error_with_its_advice(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_task_set(choice(tmp_path, ["yes", "perhaps", "perhaps", "never"] + ["perhaps"] * 5, ["yes", "no"]))
    text, place = str(caught.value), f"{tmp_path}/t.jsonl"
    assert text.startswith("8 of 9 items of the test set can't be used")
    assert text.count("is none of the options") == 2
    assert f"{place}:2: the reference is none of the options ('perhaps'); so in 6 more: {place}:3, {place}:5" in text
    assert "do: add it to the task's options, or mend the reference (options: 'yes', 'no')" in text
    with pytest.raises(DataError) as caught:
        load_task_set(choice(tmp_path, ["yes"] * 9, "wher"))
    text = str(caught.value)
    assert text.count("no column 'wher' for the options") == 1 and "; so in 8 more" in text
    assert "do: let options name a column of the data" in text and "needs a completion" not in text
    for options, said in ((["yes"], "two options or more"), (["yes", " yes"], "stands twice"), (["yes", ""], "empty")):
        with pytest.raises(ConfigError, match=said) as error:
            load_task_set(choice(tmp_path, ["yes"] * 9, options))
        assert error.value.where == "task x: options" and error.value.do


def test_options_that_a_written_answer_can_not_tell_apart_are_refused(tmp_path: Path) -> None:
    alike = choice(tmp_path, ["Yes", "no"], ["Yes", "no", "yes."])
    assert len(load_task_set(alike).items) == 2
    with pytest.raises(ConfigError, match=r"(?s)can't tell two options apart.*'Yes' and 'yes\.'"):
        load_task_set(replace(alike, answer="generated"))
    rows = [{"prompt": "a", "completion": "no", "o": ["no", "Yes"]}, {"prompt": "b", "completion": "no",
             "o": ["no", "yes", '"Yes"']}]  # fmt: skip
    columns = replace(alike, data=write(tmp_path / "c.jsonl", rows), options="o")
    assert len(load_task_set(columns).items) == 2
    with pytest.raises(DataError, match=r"(?s)1 of 2 items.*c.jsonl:2: a written answer can't tell"):
        load_task_set(replace(columns, answer="generated"))


def test_missing_and_empty_answers_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_task_set(replace(choice(tmp_path, ["a", None, "", None, "b", "x"], None), kind="number"))
    text = str(caught.value)
    assert text.startswith("6 of 6 items of the test set can't be used")
    assert "t.jsonl:3: the completion is empty" in text and "t.jsonl:2: there is no reference answer; so in 1" in text
    assert "t.jsonl:1: the reference is no number ('a')" in text
    assert "leave records without an answer out of the file; write a number" in text


def test_shots_come_before_the_prompt(prices: TaskConfig) -> None:
    task = replace(prices, shots=2)
    tasks = load_task_set(task, seed=1)
    assert len(tasks.shots) == 2
    base = Encoder(tiny_tokenizer())
    first, second = tasks.shots
    asked = tasks.asked(base)[0]
    assert asked.prompt == (f"{first.prompt}{first.completion}\n\n{second.prompt}{second.completion}\n\n"
                            f"set 1 costs $")  # fmt: skip
    assert base.tokenizer.decode(base.prompt(asked)) == "<|bos|>" + asked.prompt
    chat = Encoder(tiny_tokenizer(add_bos=False, chat_template=CHAT))
    text = chat.tokenizer.decode(chat.prompt(tasks.asked(chat)[0]))
    assert text == (f"<user>{first.prompt}<|eos|><assistant>{first.completion}<|eos|><user>{second.prompt}<|eos|>"
                    f"<assistant>{second.completion}<|eos|><user>set 1 costs $<|eos|><assistant>")  # fmt: skip
    with pytest.raises(DataError, match="shots need training examples"):
        load_task_set(replace(task, train=None))
    with pytest.raises(DataError, match="too few training examples"):
        load_task_set(replace(task, shots=4))
    with pytest.raises(DataError, match="too few training examples"):
        load_task_set(replace(task, train=task.data))  # never an item of the test set


def test_shots_are_of_no_test_items_group(prices: TaskConfig, tmp_path: Path) -> None:
    rows = [{"name": f"old {k}", "price": k, "theme": f"t{k % 4}"} for k in range(40)]
    train = write(tmp_path / "grouped.jsonl", rows)
    for seed in range(5):
        tasks = load_task_set(replace(prices, train=train, group="theme", shots=8), seed=seed)
        assert {item.group for item in tasks.items} == {"t0", "t1"} and not tasks.warnings
        assert {shot.record.values["theme"] for shot in tasks.shots} <= {"t2", "t3"}
    with pytest.raises(DataError, match="20 whose neither prompt nor group is in the test set; shots: 21"):
        load_task_set(replace(prices, train=train, group="theme", shots=21))
    (warning,) = load_task_set(replace(prices, group="theme", shots=1)).warnings
    assert warning.startswith("3 of 3 training examples have no 'theme'")


def json_task(folder: Path, *completions: str, **options: Any) -> TaskConfig:
    rows = [{"prompt": f"p{k}", "completion": text} for k, text in enumerate(completions)]
    return TaskConfig(name="x", data=write(folder / "t.jsonl", rows), kind="json", **options)


def test_a_json_reference_is_an_object_with_fields(tmp_path: Path) -> None:
    (item,) = load_task_set(json_task(tmp_path, '{"a": {"b": 1}}')).items
    assert item.fields == {"a": {"b": 1}}
    with pytest.raises(DataError, match=r"3 of 3 items(?s:.*)t.jsonl:1: the reference is no JSON object with fields"):
        load_task_set(json_task(tmp_path, "[1]", "{}", "{"))


def test_the_fingerprint_knows_how_answers_are_judged(tmp_path: Path) -> None:
    schema = tmp_path / "s.json"
    schema.write_text('{"type": "object"}')
    task = json_task(tmp_path, '{"a": 1}', schema=str(schema))
    first = load_task_set(task)
    schema.write_text('{"type":   "object"}')  # the same schema
    assert load_task_set(task).fingerprint == first.fingerprint
    schema.write_text('{"type": "array"}')
    assert load_task_set(task).fingerprint != first.fingerprint
    assert load_task_set(replace(task, schema=None)).fingerprint != first.fingerprint
    plain = replace(task, kind="contains", schema=None)
    words = replace(plain, contains=replace(plain.contains, words=True))
    assert load_task_set(plain).fingerprint != load_task_set(words).fingerprint


def test_the_fingerprint_knows_the_scoring_function_and_what_it_sees(tmp_path: Path) -> None:
    scorer = tmp_path / "scorer.py"
    scorer.write_text("raise SystemExit('it is not run')")
    rows = [{"prompt": "a", "completion": "b", "weight": 1}]
    task = TaskConfig(name="x", data=write(tmp_path / "t.jsonl", rows), kind="python", scorer=f"{scorer}:score")
    first = load_task_set(task)
    assert first.parts["scorer"]["function"] == "score"
    scorer.write_text("raise SystemExit('nor is this')")
    assert load_task_set(task).fingerprint != first.fingerprint
    scorer.write_text("raise SystemExit('it is not run')")
    write(tmp_path / "t.jsonl", [rows[0] | {"weight": 2}])
    assert load_task_set(task).fingerprint != first.fingerprint
    with pytest.raises(ConfigError, match="needs a scoring function"):
        load_task_set(replace(task, scorer=None))


def test_a_choice_by_default_keeps_its_fingerprint(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}]
    task = TaskConfig(name="x", data=write(tmp_path / "t.jsonl", rows), kind="choice", options=["b", "c"])
    assert not {"normalise", "answer", "decoding"} & set(load_task_set(task).parts)
    generated = load_task_set(replace(task, answer="generated")).parts
    assert generated["answer"] == "generated" and "decoding" in generated
    assert load_task_set(replace(task, normalise="bytes")).parts["normalise"] == "bytes"


def test_a_missing_library_is_said_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingDependency("kind 'text' needs the library sacrebleu for chrF")

    monkeypatch.setattr("halfbyte.evaluate.tasks.check_chrf", missing)
    with pytest.raises(MissingDependency):
        load_task_set(TaskConfig(name="x", data=str(tmp_path / "nowhere.jsonl"), kind="text"))


def chats(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def test_the_order_of_the_file_is_no_part_of_the_fingerprint(prices: TaskConfig, tmp_path: Path) -> None:
    lines = Path(prices.data).read_text().splitlines(keepends=True)
    first = load_task_set(prices)
    Path(prices.data).write_text("".join(reversed(lines)))
    assert load_task_set(prices).fingerprint == first.fingerprint


def test_the_fingerprint_says_which_part_of_the_items_differs(tmp_path: Path) -> None:
    rows = [{"q": f"q{k}", "a": "x"} for k in range(3)]
    data = write(tmp_path / "t.jsonl", rows)
    template = {"prompt": "{q}", "completion": "{a}", "system": "Be brief."}
    task = TaskConfig(name="x", data=data, template=template, kind="choice", options=["x", "y"], id="q")
    first = load_task_set(task).parts["data"]

    def differing(other: TaskConfig) -> list[str]:
        return [name for name, found in load_task_set(other).parts["data"].items() if found != first[name]]

    assert differing(replace(task, template=template | {"system": "Be long."})) == ["system"]
    assert differing(replace(task, template=template | {"prompt": "{q}?"})) == ["prompts"]
    assert differing(replace(task, options=["x", "z"])) == ["options"]
    write(tmp_path / "t.jsonl", [*rows[:2], {"q": "q2", "a": "y"}])
    assert differing(task) == ["references"]


def test_turns_and_system_texts_count_as_they_are_and_not_as_they_are_shown(tmp_path: Path) -> None:
    two = chats(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    shown = load_task_set(TaskConfig(name="x", data=write(tmp_path / "a.jsonl", [two]), kind="exact")).items[0].example
    tasks = []
    for rows in ([two], [{"messages": [{"role": "user", "content": shown.prompt}, two["messages"][3]]}]):
        tasks.append(load_task_set(TaskConfig(name="x", data=write(tmp_path / "b.jsonl", rows), kind="exact")))
    assert tasks[0].items[0].id != tasks[1].items[0].id and tasks[0].parts["data"] != tasks[1].parts["data"]
    template = {"prompt": "{prompt}", "completion": "{completion}"}
    data = write(tmp_path / "c.jsonl", [{"prompt": "a", "completion": "b"}])
    plain = TaskConfig(name="x", data=data, template=template, kind="exact")
    ids = {load_task_set(replace(plain, template=template | more)).items[0].id
           for more in ({}, {"system": "s"}, {"system": "t"})}  # fmt: skip
    assert len(ids) == 3


def test_columns_count_with_their_types(tmp_path: Path) -> None:
    scorer = tmp_path / "scorer.py"
    scorer.write_text("")
    rows = [{"prompt": "a", "completion": "b", "weight": weight} for weight in (1, "1", True, "True", None, "None")]
    tasks = [TaskConfig(name="x", data=write(tmp_path / f"{k}.jsonl", [row]), kind="python", scorer=f"{scorer}:score")
             for k, row in enumerate(rows)]  # fmt: skip
    assert len({load_task_set(task).parts["columns"] for task in tasks}) == len(rows)


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_1_is_refused(prices: TaskConfig, limit: int) -> None:
    with pytest.raises(ConfigError, match=r"(?s)limit must be 1 or more.*" + str(limit)):
        load_task_set(prices, limit=limit)
