import pytest

from halfbyte.data.records import Record
from halfbyte.data.template import Example, fill, to_example, to_examples
from halfbyte.errors import DataError

SET = {"Name": "Castle {big}", "Pieces": 100, "Price": 15.0, "Theme": None, "Item Number": "7"}


def record(values=SET, line=3):
    return Record(dict(values), f"sets.jsonl:{line}")


def refused(values, template, *parts):
    with pytest.raises(DataError) as caught:
        to_example(record(values), template)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_columns_are_filled_in_and_braces_doubled():
    text = "{{{Name}}} has {Pieces} pieces, {{x}}, {Price} USD, no. {Item Number}"
    assert fill(text, record()) == "{Castle {big}} has 100 pieces, {x}, 15.0 USD, no. 7"


def test_template_makes_an_example():
    example = to_example(record(), {"prompt": "Set {Name}: ", "completion": "{Price}", "system": "Be brief."})
    assert (example.prompt, example.completion, example.system) == ("Set Castle {big}: ", "15.0", "Be brief.")
    assert example.messages is None and example.record.origin == "sets.jsonl:3"
    assert to_example(record(), {"prompt": "{Name}"}).completion is None


@pytest.mark.parametrize("text", ["{Name.__class__}", "{Name!r}", "{Pieces:05d}", "{0}", "{Name[0]}", "{ Name }"])
def test_nothing_but_column_names_is_understood(text):
    with pytest.raises(DataError, match="there is no column"):
        fill(text, record())


@pytest.mark.parametrize("text", ["{Name", "Name}", "{}", "{{Name}", "{a{Name}b}"])
def test_lonely_braces(text):
    with pytest.raises(DataError, match="brace in the template has no partner"):
        fill(text, record())


def test_a_text_that_holds_braces_is_not_filled_again():
    assert fill("{Name}", record({"Name": "{Price}", "Price": 1})) == "{Price}"


def test_unknown_column_names_the_nearest_and_all():
    refused(SET, {"prompt": "{Nmae}"}, "no column 'Nmae'", "did you mean 'Name'?", "sets.jsonl:3",
            "columns: Name, Pieces, Price, Theme, Item Number")  # fmt: skip
    refused(SET, {"prompt": "{zzz}"}, "known columns: Item Number, Name")


def test_missing_values_name_the_record():
    refused(SET, {"prompt": "{Theme}"}, "column 'Theme' has no value", "sets.jsonl:3", "null")
    refused({"a": float("nan")}, {"prompt": "{a}"}, "column 'a' has no value")
    refused({"a": [1]}, {"prompt": "{a}"}, "column 'a' holds no text", "list")
    refused({"a": " "}, {"prompt": "x", "completion": "{a}"}, "completion is empty", "sets.jsonl:3")
    assert to_example(record({"a": "", "b": "1"}), {"prompt": "x{a}", "completion": "{b}"}).prompt == "x"


def test_template_keys():
    refused(SET, {"prompt": "x", "complétion": "y"}, "did you mean 'completion'?")
    refused(SET, {"completion": "y"}, "keys prompt, completion and system")


def test_records_without_a_template():
    example = to_example(record({"prompt": "a", "completion": 15.0, "other": None}))
    assert (example.prompt, example.completion) == ("a", "15.0")
    assert to_example(record({"prompt": "a"})).completion is None
    assert to_example(record({"prompt": "a", "completion": None})).completion is None
    refused({"prompt": None, "completion": "b"}, None, "column 'prompt' has no value")
    refused({"prompt": [{"role": "user"}]}, None, "column 'prompt' holds no text")
    refused({"Name": 1, "Price": 2}, None, "neither prompt and completion nor messages", "columns: Name, Price",
            "template: {prompt: '{Name}', completion: '{Price}'}")  # fmt: skip


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def test_messages():
    talk = turns(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    example = to_example(record({"messages": [*talk, *turns(("user", "e"))]}))
    assert example.messages == talk and example.completion == "d"
    assert example.prompt == "system: s\nuser: a\nassistant: b\nuser: c"
    question = to_example(record({"messages": turns(("user", "a"))}))
    assert question.completion is None and question.messages == turns(("user", "a")) and question.prompt == "user: a"


def test_messages_may_carry_nulls_but_nothing_else():
    talk = [{"role": "user", "content": "a", "tool_calls": None}, {"role": "assistant", "content": "b", "name": ""}]
    assert to_example(record({"messages": talk})).messages == turns(("user", "a"), ("assistant", "b"))
    talk[1]["tool_calls"] = [{"name": "f"}]
    refused({"messages": talk}, None, "message 2 has 'tool_calls', which is not understood", "sets.jsonl:3")


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ("text", "no list"),
        ([], "an empty list"),
        (["a"], "message 1 is no object"),
        (turns(("human", "a")), "message 1 has the role 'human'"),
        ([{"role": "user"}], "message 1 has no text as content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 1 has no text as content, but list"),
        (turns(("user", "a"), ("assistant", " ")), "message 2 is an empty answer"),
    ],
)
def test_messages_that_are_none(messages, fault):
    refused({"messages": messages}, None, "no conversation", fault, "roles: system, user, assistant, tool")


def test_messages_and_prompt_exclude_each_other_but_a_template_chooses():
    values = {"messages": turns(("user", "a")), "prompt": "b"}
    refused(values, None, "both messages and a prompt", "columns: messages, prompt")
    assert to_example(record(values), {"prompt": "{prompt}"}).prompt == "b"


def test_faults_of_all_records_are_gathered():
    records = [record({"a": "x" if line % 2 else None}, line) for line in range(1, 21)]
    with pytest.raises(DataError) as caught:
        to_examples(records, {"prompt": "{a}"})
    text = str(caught.value)
    assert "10 of 20 records can't be used" in text and "sets.jsonl:2: the column 'a' has no value" in text
    assert (
        "; so in 9 more: sets.jsonl:4, sets.jsonl:6, sets.jsonl:8, sets.jsonl:10, ..." in text
        and "sets.jsonl:12" not in text
        and "do: leave such records out" in text
    )
    with pytest.raises(DataError, match="column 'a' has no value"):
        to_examples(records[:2], {"prompt": "{a}"})


def test_a_prompt_that_comes_from_no_file():
    example = Example.of_prompt("a {b}")
    assert (example.prompt, example.completion, example.messages) == ("a {b}", None, None)
    assert example.record.origin == "the prompt"


def test_an_object_is_its_json():
    assert (
        to_example(record({"prompt": "p", "completion": {"name": "é", "n": 1}}), None).completion
        == '{"name": "é", "n": 1}'
    )
