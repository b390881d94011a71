"""What the check of a run's data finds, each thing on data that have it and on data that don't."""

import json
from types import SimpleNamespace

import pytest

from halfbyte.config import DataConfig, TaskConfig
from halfbyte.data import check as check_module
from halfbyte.data.check import Check, check_run
from halfbyte.data.check_texts import TextCheck
from halfbyte.data.dataset import load_training, split
from halfbyte.data.encode import Encoder
from halfbyte.data.records import Record
from halfbyte.data.template import Example, iter_examples, load_examples
from halfbyte.errors import ConfigError, DataError
from tests.data import templates
from tests.tiny import BOS, EOS, PAD, tiny_tokenizer


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count, start=0):
    return [{"prompt": f"Castle no. {k}:", "completion": f" {k} dollars"} for k in range(start, start + count)]


def checked(folder, train, *, tokenizer=None, test=(), kind="exact", test_group=None, options=(), context=None, **data):
    config = DataConfig(train=write(folder / "train.jsonl", train), **({"validation": 0} | data))
    asked = load_examples(write(folder / "test.jsonl", test)) if test else []
    encoder = Encoder(tokenizer or tiny_tokenizer(), config.chat)
    task = TaskConfig(kind=kind, group=test_group) if test else None
    check = Check(encoder, config, task=task, asked=asked, options=frozenset(options), context=context, vocabulary=320)
    return check_run(config, 0, check)


def of(report, kind):
    found = [finding for finding in report.findings if finding.kind == kind]
    assert len(found) <= 1
    return found[0] if found else None


def levels(report):
    return {finding.kind: finding.level for finding in report.findings}


def test_clean_data_have_no_finding(folder):
    report = checked(folder, rows(60), test=rows(20, start=100), validation=0.2)
    assert report.ok and report.findings == () and report.tested == 20
    assert sum(side.items for side in report.sides.values()) == 60
    assert sum(count for *_, count in report.histogram) == report.sides["train"].items


def test_the_sides_are_those_of_training(folder):
    config = DataConfig(train=write(folder / "a.jsonl", rows(200)), validation=0.2)
    encoder = Encoder(tiny_tokenizer())
    report = check_run(config, 7, Check(encoder, config))
    watched = Check(encoder, config)
    data = load_training(config, encoder.tokenizer, 7, watched.add)
    for name, counts in (("train", data.counts), ("validation", data.validation_counts)):
        side = report.sides[name]
        assert (side.items, side.tokens, side.learned_tokens) == (counts.items, counts.tokens, counts.learned_tokens)
    assert watched.report() == report


def test_records_that_cant_be_used_shift_nothing(folder, monkeypatch):
    monkeypatch.setattr(check_module, "CHUNK", 8)
    train = [row if k % 9 else {"prompt": "a", "completion": ""} for k, row in enumerate(rows(100))]
    report = checked(folder, [*train, train[50]], validation=0.3)
    train, held, _ = split([e for e in iter_examples(str(folder / "train.jsonl")) if isinstance(e, Example)], 0.3, 0)
    items = Encoder(tiny_tokenizer()).items(train)
    assert of(report, "unusable").count == 12 and len(train) + len(held) == 89
    assert (report.sides["train"].items, report.sides["validation"].items) == (len(train), len(held))
    assert report.sides["train"].tokens == sum(len(item.ids) for item in items)
    assert (of(report, "duplicates") is not None) == (train[-1].record.origin.endswith(":101"))


def test_what_is_cut_is_counted_and_shown(folder):
    long, lost = {"prompt": "a", "completion": " x" * 50}, {"prompt": "b" * 50, "completion": "x"}
    report = checked(folder, [*rows(5), long, lost], max_tokens=40)
    cut, nothing = of(report, "truncated"), of(report, "nothing_learned")
    assert (cut.level, cut.count, nothing.level, nothing.count) == ("warning", 1, "warning", 1)
    assert cut.examples[0].where.endswith("train.jsonl:6") and "of the completion, after" in cut.examples[0].found
    assert nothing.examples[0].where.endswith("train.jsonl:7") and "raise data.max_tokens" in nothing.do
    whole = Encoder(tiny_tokenizer()).item(load_examples(str(folder / "train.jsonl"))[5])
    assert f"{len(whole.ids) - 40} tokens of completions and 0 of prompts" in cut.text
    assert report.quantiles["100"] == report.sides["train"].longest >= len(whole.ids)


@pytest.mark.parametrize(("lost", "level"), [(2, "warning"), (4, "error"), (7, "error")])
def test_nothing_learned_stops_once_it_is_half_of_the_items(folder, lost, level):
    some = [{"prompt": f"{k} " + "b" * 90, "completion": "x"} for k in range(lost)]
    report = checked(folder, [*rows(7 - lost), *some], max_tokens=60)
    assert of(report, "nothing_learned").level == level
    assert ("nothing would be learned" in of(report, "nothing_learned").text) == (lost == 7)


def test_an_end_that_is_never_learned_stops(folder):
    train = [{"prompt": f"{k}", "completion": " x" * 90} for k in range(5)]
    report = checked(folder, train, max_tokens=40)
    assert of(report, "end_not_learned").level == "error" and not report.ok
    with pytest.raises(DataError, match="the model would not stop"):
        report.raise_errors()
    assert checked(folder, train, max_tokens=40, learn="all").ok  # texts, not answers
    assert checked(folder, [*train, *rows(1)], max_tokens=40).ok


def test_two_bos_stop(folder):
    twice = checked(folder, rows(4), tokenizer=tiny_tokenizer(chat_template="{{ bos_token }}" + templates.HEADERS))
    assert of(twice, "double_bos").level == "error" and f"{BOS}{BOS}" in of(twice, "double_bos").examples[0].found
    once = checked(folder, rows(4), tokenizer=tiny_tokenizer(chat_template=templates.HEADERS))
    assert of(once, "double_bos") is None and once.ok


def test_a_template_without_an_end_of_turn_gets_eos(folder):
    report = checked(folder, rows(4), tokenizer=tiny_tokenizer(chat_template=templates.PLAIN))
    assert of(report, "end_not_learned") is None  # nothing ends a turn there, so EOS is put


@pytest.mark.parametrize(
    ("template", "row", "said"),
    [
        (templates.NO_SYSTEM, {"system": "Be brief.", "prompt": "a", "completion": "b"}, "system message"),
        (templates.REWRITES, {"prompt": "a", "completion": "think</think>b"}, "drops or rewrites the content"),
        (templates.INSTRUCTIONS, {"system": "s", "prompt": "a", "completion": "b"}, "refuses the conversation"),
    ],
)
def test_a_template_that_drops_or_rewrites_stops(folder, template, row, said):
    report = checked(folder, [*rows(3), row], tokenizer=tiny_tokenizer(chat_template=template))
    finding = of(report, "unusable")
    assert finding.level == "error" and said in finding.text and finding.examples[0].where.endswith("train.jsonl:4")


def test_a_template_that_trims_is_named(folder):
    train = [*rows(3), {"prompt": "  a", "completion": "b"}]
    report = checked(folder, train, tokenizer=tiny_tokenizer(chat_template=templates.HEADERS))
    assert of(report, "trimmed").count == 4  # completions begin with a space
    assert of(checked(folder, train, tokenizer=tiny_tokenizer(chat_template=templates.CHATML)), "trimmed") is None


def test_records_that_cant_be_used_are_gathered_by_what_is_wrong(folder):
    train = [*rows(2), {"prompt": "a", "completion": " "}, {"text": "a"}, {"prompt": "b", "completion": ""}]
    report = checked(folder, train)
    empty, columns = [finding for finding in report.findings if finding.level == "error"]
    assert empty.count == 2 and "the completion is empty" in empty.text and columns.count == 1
    assert [place.where.rpartition(":")[2] for place in empty.examples] == ["3", "5"]
    with pytest.raises(DataError, match=r"(?s)2 checks of the data failed.*train.jsonl:3.*train.jsonl:4"):
        report.raise_errors()


def test_half_a_character_is_an_error_that_names_the_line(folder):
    (folder / "train.jsonl").write_text(
        '{"prompt": "a", "completion": "1"}\n{"prompt": "\\ud83d", "completion": "1"}\n'
    )
    with pytest.raises(DataError, match=r"(?s)train.jsonl.*line 2.*half.*ud83d"):
        load_examples(str(folder / "train.jsonl"))


def test_duplicates_and_contradictions_name_both_lines(folder):
    train = [
        *rows(3),
        {"prompt": " castle NO. 1:", "completion": "1 dollars"},
        {"prompt": "Castle no. 2:", "completion": "9"},
    ]
    report = checked(folder, train)
    same, other = of(report, "duplicates"), of(report, "contradictions")
    assert same.count == 1 and same.examples[0].where.endswith(":4") and same.examples[0].found.endswith(":2")
    assert other.count == 1 and other.examples[0].where.endswith(":3") and other.examples[0].found.endswith(":5")


def test_texts_without_prompts_contradict_nothing(folder):
    report = checked(folder, [{"prompt": "", "completion": f"text {k}"} for k in range(5)])
    assert levels(report) == {"empty_prompt": "note"}
    assert levels(checked(folder, [*rows(4), {"prompt": " ", "completion": "a"}]))["empty_prompt"] == "warning"


def test_test_items_in_the_training_data(folder):
    test = [
        *rows(7, start=50),
        {"prompt": "castle no. 3:", "completion": "3 DOLLARS"},
        {"prompt": "Castle no. 4:", "completion": "5"},
    ]
    report = checked(folder, rows(20), test=test)
    assert levels(report) == {"test_in_train": "warning", "test_prompt_in_train": "warning"}
    place = of(report, "test_in_train").examples[0]
    assert place.where.endswith("test.jsonl:8") and place.found.endswith("train.jsonl:4")
    assert of(report, "test_prompt_in_train").examples[0].where.endswith("test.jsonl:9")
    assert of(checked(folder, rows(20), test=rows(10)), "test_in_train").level == "error"
    held = checked(folder, rows(40), test=rows(40)[:5], validation=0.5)
    assert of(held, "test_in_train").count + of(held, "test_in_validation").count == 5


def test_validation_items_in_the_training_data(folder):
    other = write(folder / "other.jsonl", rows(6, start=8))
    report = checked(folder, rows(10), validation=other)
    assert of(report, "validation_in_train").count == 2 and report.ok


def test_validation_items_of_groups_that_are_trained_on(folder):
    train = [row | {"plate": f"g{k // 4}"} for k, row in enumerate(rows(40))]
    held = [{"prompt": f"Ship {plate}:", "completion": "x", "plate": plate} for plate in ("q", "g1", "g1")]
    other = write(folder / "other.jsonl", held)
    finding = of(checked(folder, train, validation=other, group="plate"), "validation_group_in_train")
    assert (finding.level, finding.count, finding.total) == ("warning", 2, 3)
    assert finding.examples[0].where.endswith("other.jsonl:2")
    assert finding.examples[0].found.startswith("plate 'g1', as ") and finding.examples[0].found.endswith(":5")
    assert checked(folder, train, validation=other).findings == ()
    split = checked(folder, train, validation=0.3, group="plate")
    assert split.ok and split.findings == () and len(split.sides) == 2
    config = DataConfig(train=str(folder / "train.jsonl"), validation=0.3, group="plate")
    data = load_training(config, tiny_tokenizer(), 0)
    assert split.sides["validation"].items == len(data.validation)


def test_test_items_of_groups_that_are_trained_on(folder):
    train = [row | {"plate": k // 4} for k, row in enumerate(rows(40))]  # numbers in one file are texts in another
    test = [{"prompt": f"Ship {k}:", "completion": "x", "plate": plate} for k, plate in enumerate(("q", "1", "1", "3"))]
    report = checked(folder, train, test=test, test_group="plate")
    finding = of(report, "test_group_in_train")
    assert (finding.level, finding.count, finding.total) == ("warning", 3, 4)
    assert levels(report).keys() == {finding.kind}
    assert "groups that 8 training items are of" in finding.text and report.test_leaks() == [finding.text]
    assert finding.examples[0].where.endswith("test.jsonl:2") and finding.examples[2].where.endswith("test.jsonl:4")
    assert finding.examples[0].found.startswith("plate '1', as ")
    assert [place.found.rpartition("train.jsonl:")[2] for place in finding.examples] == ["5", "5", "13"]
    assert checked(folder, train[16:], test=test, test_group="plate").findings == ()
    assert checked(folder, train, test=test).findings == ()


def test_training_items_whose_group_is_not_known_are_counted(folder):
    train = [row | {"plate": f"g{k}"} for k, row in enumerate(rows(6))]
    train[2].pop("plate")
    train[3]["plate"], train[4]["plate"] = "", ["g4"]
    test = [{"prompt": "Ship:", "completion": "x", "plate": "g4"}]
    report = checked(folder, train, test=test, test_group="plate")
    finding = of(report, "test_group_unknown")
    assert (finding.level, finding.count, finding.total) == ("note", 3, 6) and levels(report).keys() == {finding.kind}
    assert [place.where.rpartition(":")[2] for place in finding.examples] == ["3", "4", "5"]


@pytest.mark.parametrize("own_file", [False, True])
def test_a_record_without_its_group_stops(folder, own_file):
    train = [row | {"plate": f"g{k}"} for k, row in enumerate(rows(20))]
    del train[7]["plate"]
    validation = write(folder / "other.jsonl", [rows(1, start=50)[0] | {"plate": "q"}]) if own_file else 0.3
    report = checked(folder, train, validation=validation, group="plate")
    finding = of(report, "unusable")
    assert (finding.level, finding.count) == ("error", 1) and finding.examples[0].where.endswith("train.jsonl:8")
    assert checked(folder, train, group="plate").ok  # nothing is split


def test_labels(folder):
    train = [{"prompt": f"Message {k}", "completion": " yes" if k % 3 else " no"} for k in range(30)]
    test = [{"prompt": "Another", "completion": " no"}]
    report = checked(folder, train, test=test, kind="choice", options=("yes", "no"))
    assert report.labels == {"yes": 20, "no": 10} and levels(report) == {"label_balance": "note"}
    report = checked(folder, train, test=test, kind="choice", options=("Yes", "no", "maybe"))
    assert of(report, "label_unknown").level == "error" and of(report, "label_unknown").count == 20
    assert "'Yes', 'maybe'" in of(report, "label_missing").text
    one = checked(folder, [{"prompt": f"Message {k}", "completion": "yes"} for k in range(30)])
    assert of(one, "label_balance").level == "warning"
    assert checked(folder, rows(30)).labels is None


def test_numbers_that_are_not_read_as_meant(folder):
    answers = ["3", "12,5", "none", "from 3 to 4", "1,299.50"]
    train = [{"prompt": f"Set {k}", "completion": text} for k, text in enumerate(answers)]
    report = checked(folder, train, test=[{"prompt": "Another", "completion": "9"}], kind="number")
    found = {kind: of(report, kind) for kind in ("number_missing", "number_comma", "number_several")}
    assert [one.examples[0].where.rpartition(":")[2] for one in found.values()] == ["3", "2", "4"]
    assert all(one.count == 1 and one.level == "warning" for one in found.values())
    assert "is read as 12" in found["number_comma"].examples[0].found
    report = checked(folder, train[2:3], test=[{"prompt": "Another", "completion": "9"}], kind="number")
    assert of(report, "number_missing").level == "error"


def test_odd_letters_and_special_tokens_are_named(folder):
    train = [
        *rows(3),
        {"prompt": "caf\u00c3\u00a9", "completion": "a\x00"},
        {"prompt": f"a{EOS}b", "completion": f"c{EOS}"},
    ]
    report = checked(folder, train)
    assert levels(report) == {"special_token": "warning", "nul": "warning", "mojibake": "warning"}
    assert of(report, "special_token").count == 1 and "user" in of(report, "special_token").examples[0].found


def test_a_tokenizer_without_long_special_tokens_finds_none():
    tokenizer = SimpleNamespace(bos_token=None, eos_token="\n", added_tokens_decoder={}, all_special_tokens=["\n"])
    check = TextCheck(SimpleNamespace(tokenizer=tokenizer, chat=None))
    for prompt in ("", "\n", "a"):
        check.add(Example(prompt, "b", None, Record({}, "a.jsonl:1")), test=False)
    assert {finding.kind for finding in check.findings()} == {"empty_prompt"}


def test_conversations_that_go_on_and_prompts_that_end_with_a_space(folder):
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    train = [{"messages": turns}, {"messages": [{"role": "user", "content": "x"}, turns[1]]}]
    report = checked(folder, train, tokenizer=tiny_tokenizer(chat_template=templates.CHATML))
    assert of(report, "after_last_answer").count == 1
    assert of(checked(folder, [{"prompt": "a ", "completion": "b"}]), "space_at_end").level == "note"


def test_items_beyond_the_models_context_or_vocabulary_stop(folder):
    report = checked(folder, rows(4), context=8)
    assert of(report, "context").level == "error" and of(report, "context").do == "set data.max_tokens: 8"


def test_padding_with_eos_is_a_note(folder):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = EOS
    assert levels(checked(folder, rows(4), tokenizer=tokenizer)) == {"pad_is_eos": "note"} and PAD != EOS


def test_no_training_data_is_named():
    config = DataConfig()
    with pytest.raises(ConfigError, match="no training data is named"):
        check_run(config, 0, Check(Encoder(tiny_tokenizer()), config))


def test_progress_counts_every_item(folder):
    seen = []
    config = DataConfig(train=write(folder / "a.jsonl", rows(50)), validation=0.2)
    check_run(config, 0, Check(Encoder(tiny_tokenizer()), config), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (50, 50)


def test_the_report_is_plain_data_and_shows_in_a_notebook(folder):
    report = checked(folder, [*rows(3), {"prompt": "a\ufffd<b>", "completion": "1"}])
    made = json.loads(json.dumps(report.to_json()))
    assert made["schema"] == 1 and made["ok"] is True and made["findings"][0]["kind"] == "replacement"
    assert set(made) == {"schema", "ok", "encoding", "sides", "test_items", "lengths", "labels", "findings"}
    assert set(made["findings"][0]) == {"kind", "level", "count", "total", "text", "do", "examples"}
    assert made["findings"][0]["examples"][0]["where"].endswith("train.jsonl:4")
    page = report._repr_html_()
    assert "replacement characters" in page and "<b>data check" in page and "ufffd&lt;b&gt;" in page


def test_what_gives_the_test_set_away_is_told_apart(folder):
    report = checked(folder, rows(20), test=[*rows(3), *({"prompt": f"new {k}", "completion": "1"} for k in range(9))])
    assert report.test_leaks() == [of(report, "test_in_train").text] and "3 of 12" in report.test_leaks()[0]
    assert (
        checked(folder, rows(20), test=[{"prompt": f"new {k}", "completion": "1"} for k in range(9)]).test_leaks() == []
    )
