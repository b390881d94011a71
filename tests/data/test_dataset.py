import gc
import json
import tracemalloc

import pytest

from halfbyte.config import DataConfig
from halfbyte.data import dataset
from halfbyte.data.dataset import CHUNK, load_training, split, training_median
from halfbyte.data.records import Record
from halfbyte.data.template import load_examples, to_example
from halfbyte.errors import ConfigError, DataError
from tests.data import templates
from tests.tiny import tiny_tokenizer


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count, start=0):
    return [{"prompt": f"Castle no. {k}: ", "completion": f"{k} dollars"} for k in range(start, start + count)]


def examples(values):
    return [to_example(Record(row, f"a:{line}")) for line, row in enumerate(values, 1)]


def prompts(some):
    return {example.prompt for example in some}


def test_load_training_counts_what_there_is(tmp_path):
    tokenizer = tiny_tokenizer()
    data = load_training(DataConfig(train=write(tmp_path / "a.jsonl", rows(200)), validation=0.2), tokenizer, 0)
    assert len(data.train) + len(data.validation) == 200 and 20 <= len(data.validation) <= 60
    assert data.counts.items == len(data.train) and data.validation_counts.items == len(data.validation)
    assert data.counts.tokens == sum(len(item.ids) for item in data.train)
    assert data.counts.learned_tokens == sum(sum(item.learned) for item in data.train)
    assert data.counts.longest == max(len(item.ids) for item in data.train)
    assert (data.counts.cut, data.counts.dropped) == (0, 0)
    assert data.pad_id == tokenizer.pad_token_id
    assert {item.origin for item in (*data.train, *data.validation)} == {
        f"{tmp_path / 'a.jsonl'}:{n + 1}" for n in range(200)
    }
    text = data.describe()
    assert f"training data: {len(data.train)} items, {data.counts.tokens:,} tokens" in text
    assert "plain text, as the model has no chat template" in text and "cut" not in text
    assert json.loads(json.dumps(data.to_json()))["train"]["items"] == len(data.train)


def test_cut_and_dropped_items_are_counted(tmp_path):
    tokenizer = tiny_tokenizer()
    long = {"prompt": "a", "completion": "x" * 50}
    lost = {"prompt": "b" * 50, "completion": "x"}
    file = write(tmp_path / "a.jsonl", [*rows(5), long, lost, lost])
    data = load_training(DataConfig(train=file, validation=0, max_tokens=40), tokenizer, 0)
    assert (data.counts.items, data.counts.cut, data.counts.dropped) == (6, 1, 2)
    assert max(len(item.ids) for item in data.train) == data.counts.longest == 40
    assert "1 cut at max_tokens" in data.describe() and "2 left out" in data.describe()
    assert not data.validation


def test_nothing_to_learn_is_an_error(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"prompt": "b" * 50, "completion": "x"}] * 3)
    with pytest.raises(DataError) as caught:
        load_training(DataConfig(train=file, validation=0, max_tokens=8), tiny_tokenizer(), 0)
    assert "nothing would be learned" in str(caught.value) and "3 items" in str(caught.value)
    assert "raise data.max_tokens" in str(caught.value) and "a.jsonl" in str(caught.value)


def test_no_training_data_is_named():
    with pytest.raises(ConfigError, match="no training data is named"):
        load_training(DataConfig(), tiny_tokenizer(), 0)


def test_learn_and_chat_are_heeded(tmp_path):
    file = write(tmp_path / "a.jsonl", rows(3))
    everything = load_training(DataConfig(train=file, validation=0, learn="all"), tiny_tokenizer(), 0)
    assert everything.counts.learned_tokens == everything.counts.tokens - 3
    chatty = tiny_tokenizer(chat_template=templates.CHATML)
    assert "chat is off" in load_training(DataConfig(train=file, validation=0, chat="off"), chatty, 0).describe()
    assert "conversations" in load_training(DataConfig(train=file, validation=0), chatty, 0).describe()


def test_split_keeps_equal_prompts_on_one_side_and_is_stable():
    values = rows(300) + [{"prompt": f"  castle NO. {k}:", "completion": "other"} for k in range(300)]
    train, validation, note = split(examples(values), 0.1, seed=4)
    assert note is None and len(train) + len(validation) == 600 and 30 <= len(validation) <= 100
    normal = [{" ".join(prompt.split()).casefold() for prompt in prompts(side)} for side in (train, validation)]
    assert not normal[0] & normal[1]
    # others that join don't move it
    more_train, more_validation, _ = split(examples(values + rows(200, start=1000)), 0.1, seed=4)
    assert prompts(train) <= prompts(more_train) and prompts(validation) <= prompts(more_validation)
    assert prompts(split(examples(values), 0.1, seed=5)[1]) != prompts(validation)


def grouped(count):
    """Groups of four; every seventh prompt stands in two groups."""
    values = [row | {"plate": f"g{k // 4}"} for k, row in enumerate(rows(count))]
    return values + [row | {"plate": f"g{k + 1}"} for k, row in enumerate(rows(count)) if k % 7 == 0 and k < count // 8]


def test_a_group_is_never_on_both_sides():
    values = grouped(400)
    for seed in range(5):
        train, validation, _ = split(examples(values), 0.2, seed, "plate")
        sides = [{example.record.values["plate"] for example in side} for side in (train, validation)]
        assert not sides[0] & sides[1] and not prompts(train) & prompts(validation)
        assert 0.1 < len(validation) / len(values) < 0.3
    torn = split(examples(values), 0.2, 0)
    assert {e.record.values["plate"] for e in torn[0]} & {e.record.values["plate"] for e in torn[1]}
    same = examples([{"prompt": "continue:", "completion": str(k), "plate": f"g{k // 4}"} for k in range(80)])
    train, validation, _ = split(same, 0.2, 0, "plate")  # a prompt that all share says nothing
    assert train and validation
    assert split(examples(values[:4]), 0.5, 0, "plate")[2] == "no validation: the training data holds one group only"
    with pytest.raises(DataError, match=r"(?s)no column 'plat' to split by.*did you mean 'plate'"):
        split(examples(values), 0.2, 0, "plat")


def test_the_group_comes_from_the_run_or_from_the_task_that_is_trained_on(tmp_path):
    write(tmp_path / "all.jsonl", grouped(400))
    (tmp_path / "task.yaml").write_text("kind: exact\ndata: all.jsonl\ngroup: plate\nsplit: {share: 0.3}\n")
    for config in (DataConfig(train=str(tmp_path / "task.yaml"), validation=0.2),
                   DataConfig(train=str(tmp_path / "all.jsonl"), validation=0.2, group="plate")):  # fmt: skip
        data = load_training(config, tiny_tokenizer(), 0)
        lines = (tmp_path / "all.jsonl").read_text().splitlines()
        sides = [{json.loads(lines[int(item.origin.rpartition(":")[2]) - 1])["plate"] for item in side}
                 for side in (data.train, data.validation)]  # fmt: skip
        assert all(sides) and not sides[0] & sides[1]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_both_sides_of_a_small_set_hold_something(count, share):
    for seed in range(20):
        train, validation, note = split(examples(rows(count)), share, seed)
        assert train and validation and len(train) + len(validation) == count
        assert "is a rough guide" in note


def test_split_without_validation_or_without_a_choice():
    assert split(examples(rows(3)), 0.0, 0)[1:] == ([], None)
    train, validation, note = split(examples(rows(1) * 4), 0.5, 0)
    assert len(train) == 4 and not validation and "one distinct item" in note
    texts = [{"prompt": "", "completion": f"text {k}"} for k in range(50)]
    train, validation, _ = split(examples(texts), 0.3, 0)
    assert train and validation and len(train) + len(validation) == 50


def test_validation_from_a_file(tmp_path):
    train, other = write(tmp_path / "a.jsonl", rows(10)), write(tmp_path / "b.jsonl", rows(6, start=8))
    data = load_training(DataConfig(train=train, validation=other), tiny_tokenizer(), 0)
    assert (len(data.train), len(data.validation)) == (10, 6)


def test_validation_that_is_all_too_long_is_said(tmp_path):
    train = write(tmp_path / "a.jsonl", rows(10))
    other = write(tmp_path / "b.jsonl", [{"prompt": "b" * 90, "completion": "x"}])
    data = load_training(DataConfig(train=train, validation=other, max_tokens=60), tiny_tokenizer(), 0)
    assert not data.validation and "no validation" in data.describe() and data.validation_counts.dropped == 1


def test_what_follows_the_last_answer_of_a_conversation_is_left_out(tmp_path):
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    file = write(tmp_path / "a.jsonl", [{"messages": turns}, {"messages": turns[:2]}])
    data = load_training(DataConfig(train=file, validation=0), tiny_tokenizer(chat_template=templates.CHATML), 0)
    assert data.train[0].ids == data.train[1].ids


def test_a_watcher_sees_every_example_beside_its_item_validation_first(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "CHUNK", 8)
    seen = []
    file = write(tmp_path / "a.jsonl", rows(40))
    data = load_training(DataConfig(train=file, validation=0.3), tiny_tokenizer(), 0, lambda *part: seen.append(part))
    sides = [side for side, *_ in seen]
    assert sides == sorted(sides, reverse=True) and all(len(part) <= 8 for _, part, _ in seen)
    for side, items in (("train", data.train), ("validation", data.validation)):
        pairs = [pair for name, *part in seen if name == side for pair in zip(*part, strict=True)]
        assert [item for _, item in pairs] == items
        assert all(example.record.origin == item.origin for example, item in pairs)


def test_training_median():
    assert training_median(examples(rows(5))) == 2.0
    odd = [{"prompt": "a", "completion": text} for text in ("$1,000", "none", "150 - $150", "3")]
    assert training_median(examples(odd)) == 150.0
    assert training_median(examples([{"prompt": "a", "completion": "none"}, {"prompt": "b"}])) is None


def test_templates_are_applied(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("name,price\nCastle,15.00\n")
    made = load_examples(str(file), {"prompt": "{name}: ", "completion": "{price}"})
    assert (made[0].prompt, made[0].completion) == ("Castle: ", "15.00")


@pytest.mark.parametrize("template", [None, templates.CHATML])
def test_the_tokenizer_is_called_once_for_all_items(tmp_path, monkeypatch, template):
    """Ten thousand items take about three seconds so; with a call an item it would be half a minute."""
    file = write(tmp_path / "a.jsonl", rows(CHUNK))
    tokenizer, calls = tiny_tokenizer(chat_template=template), []
    encode = type(tokenizer).__call__
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *a, **k: calls.append(0) or encode(*a, **k))
    data = load_training(DataConfig(train=file), tokenizer, 0)
    assert len(data.train) + len(data.validation) == CHUNK
    assert len(calls) <= 6


def test_items_are_held_in_a_few_bytes_a_token_and_their_examples_not_at_all(tmp_path):
    values = [{"prompt": f"{k} " + "word " * 100, "completion": str(k), "other": "o" * 500} for k in range(500)]
    config, tokenizer = DataConfig(train=write(tmp_path / "a.jsonl", values), validation=0), tiny_tokenizer()
    tokenizer(["warm", "up"])
    gc.collect()
    tracemalloc.start()
    data = load_training(config, tokenizer, 0)
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 6 * data.counts.tokens + 500 * data.counts.items
