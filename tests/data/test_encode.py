from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from halfbyte.data.encode import Encoder
from halfbyte.data.records import Record
from halfbyte.data.template import to_example
from halfbyte.errors import DataError
from tests.data import templates
from tests.tiny import BOS, EOS, PAD, tiny_tokenizer

TURN_TOKENS = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|stop|>"]


def chat_tokenizer(template, *, add_bos=False):
    tokenizer = tiny_tokenizer(add_bos=add_bos, chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": TURN_TOKENS})
    return tokenizer


def spaced_tokenizer(pieces=("▁A", ":", "▁", "▁yes", "yes", "s", "▁no", "no", "<0x0A>"), merges=()):
    """A Metaspace tokenizer as Llama 2's: it puts a space before every text. Greedy longest match over `pieces`."""
    vocabulary = [("<unk>", 0.0), (BOS, 0.0), (EOS, 0.0), *((piece, -float(k)) for k, piece in enumerate(pieces, 1))]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=BOS, eos_token=EOS, unk_token="<unk>")


def pair(prompt, completion, **more):
    return to_example(Record({"prompt": prompt, "completion": completion, **more}, "a.jsonl:7"))


def talk(*turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    return to_example(Record({"messages": messages}, "a.jsonl:7"))


TALK = [
    ("user", "one"),
    ("assistant", "two"),
    ("user", "three"),
    ("assistant", "four"),
    ("user", "5"),
    ("assistant", "6"),
]


def text(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def learned_text(tokenizer, item):
    """The learned runs, separated by |."""
    runs, before = [], False
    for token, learned in zip(item.ids, item.learned, strict=True):
        if learned:
            runs = [*runs[:-1], [*runs[-1], token]] if before else [*runs, [token]]
        before = learned
    return "|".join(text(tokenizer, run) for run in runs)


def refused(encoder, example, *parts):
    with pytest.raises(DataError) as caught:
        encoder.item(example)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


# plain text


@pytest.mark.parametrize("add_bos", [True, False])
def test_plain_pair(add_bos):
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    encoder = Encoder(tokenizer)
    item = encoder.item(pair("The price is ", "19.99 dollars"))
    assert text(tokenizer, item.ids) == BOS * add_bos + "The price is 19.99 dollars" + EOS
    assert item.ids.count(tokenizer.bos_token_id) == add_bos
    assert learned_text(tokenizer, item) == "19.99 dollars" + EOS
    assert item.ids[-1] == tokenizer.eos_token_id and item.learned[-1]
    assert not any(item.learned[: item.prompt_tokens]) and all(item.learned[item.prompt_tokens :])
    assert (item.cut, item.origin) == (0, "a.jsonl:7")
    assert "no chat template" in encoder.reason


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("The price is", " 10"), ("The price is ", "10"), ("a\n", "\nb"), ("1", "999"), ("", "alone"), ("x ", " y"),
     ("The pri", "ce of the castle"), ("naïve é", "üß 日本"), ("ends with ", "  three spaces")],
)  # fmt: skip
def test_the_prompt_of_training_is_that_of_evaluation(prompt, completion):
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer)
    example = pair(prompt, completion)
    item = encoder.item(example)
    assert encoder.prompt(example) == tokenizer(prompt)["input_ids"] == item.ids[: item.prompt_tokens]
    assert encoder.prompt(replace(example, completion=None)) == encoder.prompt(example)
    assert encoder.completion(example) == item.ids[item.prompt_tokens :]
    assert learned_text(tokenizer, item) == completion + EOS


def test_a_bos_in_the_text_gives_no_second_one():
    tokenizer = tiny_tokenizer()
    for prompt, completion in [(BOS + "one ", "two"), ("", BOS + "one two")]:
        example = pair(prompt, completion)
        item = Encoder(tokenizer).item(example)
        assert text(tokenizer, item.ids) == f"{BOS}one two{EOS}"
        assert Encoder(tokenizer).prompt(example) == item.ids[: item.prompt_tokens]


def test_an_eos_in_the_completion_gives_no_second_one():
    tokenizer = tiny_tokenizer()
    item = Encoder(tokenizer).item(pair("one ", "two" + EOS))
    assert text(tokenizer, item.ids) == f"{BOS}one two{EOS}" and item.learned[-1]


def test_a_tokenizer_that_puts_eos_itself_gives_one_eos_after_the_completion_and_none_after_the_prompt():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, tokenizer.bos_token_id), (EOS, tokenizer.eos_token_id)]
    )
    encoder = Encoder(tokenizer)
    assert text(tokenizer, encoder.item(pair("a ", "b")).ids) == f"{BOS}a b{EOS}"
    assert text(tokenizer, encoder.prompt(pair("a ", "b"))) == f"{BOS}a "


def test_system_stands_before_a_plain_prompt():
    tokenizer = tiny_tokenizer()
    item = Encoder(tokenizer).item(pair("one ", "two", system="Be brief."))
    assert text(tokenizer, item.ids) == f"{BOS}Be brief.\n\none two{EOS}"


def test_learn_all_leaves_out_what_nothing_predicts():
    with_bos, without = tiny_tokenizer(), tiny_tokenizer(add_bos=False)
    item = Encoder(with_bos).item(pair("one ", "two"), learn="all")
    assert item.learned == [False] + [True] * (len(item.ids) - 1)
    assert learned_text(with_bos, item) == f"one two{EOS}"
    item = Encoder(without).item(pair("one ", "two"), learn="all")
    assert item.learned == [False] + [True] * (len(item.ids) - 1)
    item = Encoder(without).item(pair("", "two"))
    assert item.learned[0] is False and all(item.learned[1:]) and item.prompt_tokens == 0


def test_max_tokens_cuts_the_right_end_and_eos_with_it():
    tokenizer = tiny_tokenizer()
    encoder, example = Encoder(tokenizer), pair("one ", "two three four")
    whole = encoder.item(example)
    cut = encoder.item(example, max_tokens=len(whole.ids) - 3)
    assert cut.ids == whole.ids[:-3] and cut.cut == 3 and cut.learned == whole.learned[:-3]
    assert tokenizer.eos_token_id not in cut.ids
    assert encoder.item(example, max_tokens=len(whole.ids)) == whole
    gone = encoder.item(example, max_tokens=2)
    assert not any(gone.learned) and gone.prompt_tokens == 2 and gone.learned_tokens == 0


def test_a_tokenizer_that_puts_spaces_before_texts():
    """'yes' alone is '▁yes'; after 'A: ' it must be 'yes', or the answer would begin with a second space."""
    tokenizer = spaced_tokenizer()
    assert tokenizer.tokenize("yes") == ["▁yes"]
    encoder = Encoder(tokenizer)
    for prompt, completion in [("A:", " yes"), ("A: ", "yes"), ("A: ", "no")]:
        example = pair(prompt, completion)
        item = encoder.item(example)
        assert text(tokenizer, item.ids[1:-1]) == prompt + completion
        assert item.ids[: item.prompt_tokens] == tokenizer(prompt)["input_ids"] == encoder.prompt(example)
    # "A: " + "yes" is ▁A : ▁yes as a whole, so the prompt's ▁ stays and yes follows without a space of its own
    item = encoder.item(pair("A: ", "yes"))
    assert tokenizer.convert_ids_to_tokens(item.ids) == [BOS, "▁A", ":", "▁", "yes", EOS]


def test_many_items_at_once_are_those_of_one_at_a_time():
    encoder = Encoder(tiny_tokenizer())
    examples = [pair(f"no. {k} ", f"is {k}") for k in range(20)]
    assert encoder.items(examples) == [encoder.item(example) for example in examples]
    assert encoder.prompts(examples) == [encoder.prompt(example) for example in examples]
    assert encoder.items([]) == [] and encoder.prompts([]) == []


def test_what_can_not_be_encoded():
    tokenizer = tiny_tokenizer()
    refused(Encoder(tokenizer), pair("one", None), "no completion, so nothing to learn", "a.jsonl:7")
    refused(Encoder(tokenizer), talk(*TALK), "messages need a chat template", "the model has no chat template")
    refused(
        Encoder(chat_tokenizer(templates.CHATML), "off"), talk(*TALK), "messages need a chat template", "chat is off"
    )
    with pytest.raises(DataError, match="2 of 3 examples can't be used"):
        Encoder(tokenizer).items([pair("one", None), pair("one", "two"), pair("one", None)])
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        Encoder(tokenizer)


def test_padding_falls_back_to_eos():
    tokenizer = tiny_tokenizer()
    assert Encoder(tokenizer).pad == tokenizer.convert_tokens_to_ids(PAD)
    tokenizer.pad_token = None
    assert Encoder(tokenizer).pad == tokenizer.eos_token_id


# conversations


def test_a_pair_becomes_a_conversation():
    tokenizer = chat_tokenizer(templates.CHATML)
    encoder = Encoder(tokenizer)
    example = pair("one", "two", system="s")
    item = encoder.item(example)
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "one"}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert item.ids[: item.prompt_tokens] == asked == encoder.prompt(example)
    assert encoder.prompt(replace(example, completion=None)) == asked
    assert learned_text(tokenizer, item) == "two<|im_end|>"
    assert text(tokenizer, encoder.completion(example)) == "two<|im_end|>"
    assert "the model has a chat template" in encoder.reason
    assert encoder.stops == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_chat_off_is_plain_text():
    tokenizer = chat_tokenizer(templates.CHATML, add_bos=True)
    encoder = Encoder(tokenizer, "off")
    assert text(tokenizer, encoder.item(pair("one ", "two")).ids) == f"{BOS}one two{EOS}"
    assert encoder.stops == {tokenizer.eos_token_id}


@pytest.mark.parametrize("name", ["CHATML", "GENERATION", "LAST_IS_OTHER", "HEADERS", "INSTRUCTIONS", "TWO_ENDS"])
def test_tokens_are_those_of_the_chat_template(name):
    tokenizer = chat_tokenizer(getattr(templates, name))
    messages = talk(*TALK).messages
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    item = Encoder(tokenizer).item(talk(*TALK))
    assert whole[: len(item.ids)] == item.ids
    assert text(tokenizer, whole[len(item.ids) :]) in ("", "\n")
    asked = Encoder(tokenizer).prompt(talk(*TALK))
    assert asked == item.ids[: item.prompt_tokens]
    generation = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    assert asked[: len(generation)] == generation


@pytest.mark.parametrize(
    ("name", "learned"),
    [
        ("CHATML", "two<|im_end|>|four<|im_end|>|6<|im_end|>"),
        ("GENERATION", "two<|im_end|>|four<|im_end|>|6<|im_end|>"),
        ("GENERATION_PARTLY", "two<|im_end|>|6<|im_end|>"),
        ("HEADERS", "two<|im_end|>|four<|im_end|>|6<|im_end|>"),
        ("LAST_IS_OTHER", "two<|im_end|>|four<|im_end|>|6<|im_end|>"),
        ("INSTRUCTIONS", f" two{EOS}| four{EOS}| 6{EOS}"),
        ("PLAIN", f"two|four|6{EOS}"),
        ("TWO_ENDS", f"two<|im_end|>|four<|im_end|>|6<|im_end|>\n{EOS}"),
    ],
)
def test_every_answer_of_a_conversation_is_learned(name, learned):
    tokenizer = chat_tokenizer(getattr(templates, name))
    encoder = Encoder(tokenizer)
    item = encoder.item(talk(*TALK))
    assert learned_text(tokenizer, item) == learned
    assert encoder.prompt(talk(*TALK)) == item.ids[: item.prompt_tokens]
    unanswered = replace(talk(*TALK), messages=talk(*TALK).messages[:-1], completion=None)
    assert encoder.prompt(unanswered) == item.ids[: item.prompt_tokens]


def test_marks_agree_with_those_of_transformers():
    tokenizer = chat_tokenizer(templates.GENERATION)
    item = Encoder(tokenizer).item(talk(*TALK))
    theirs = tokenizer.apply_chat_template(talk(*TALK).messages, return_dict=True, return_assistant_tokens_mask=True)
    assert [int(flag) for flag in item.learned] == theirs["assistant_masks"][: len(item.ids)]
    assert not any(theirs["assistant_masks"][len(item.ids) :])


@pytest.mark.parametrize("name", ["HEADERS", "INSTRUCTIONS", "CHATML"])
@pytest.mark.parametrize("add_bos", [True, False])
def test_one_bos_whoever_puts_it(name, add_bos):
    tokenizer = chat_tokenizer(getattr(templates, name), add_bos=add_bos)
    item = Encoder(tokenizer).item(pair(BOS + "one", "two"))
    expected = 1 if add_bos or name != "CHATML" else 0
    if name == "CHATML" and not add_bos:
        item = Encoder(tokenizer).item(pair("one", "two"))
    assert [token == tokenizer.bos_token_id for token in item.ids].count(True) == expected
    assert (item.ids[0] == tokenizer.bos_token_id) == bool(expected)
    everything = Encoder(tokenizer).item(pair("one", "two"), learn="all")
    assert everything.learned == [False] + [True] * (len(everything.ids) - 1)


def test_what_a_template_puts_before_the_answer_goes_to_the_prompt():
    tokenizer = chat_tokenizer(templates.LAST_IS_OTHER)
    prompt = text(tokenizer, Encoder(tokenizer).prompt(talk(*TALK)))
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n") and prompt.count("<think>") == 1


def test_white_space_that_a_template_trims():
    tokenizer = chat_tokenizer(templates.HEADERS)
    item = Encoder(tokenizer).item(pair(" one\n", "\n two "))
    assert learned_text(tokenizer, item) == "two<|im_end|>"
    tokenizer = chat_tokenizer(templates.CHATML)
    item = Encoder(tokenizer).item(pair(" one\n", "\n two "))
    assert learned_text(tokenizer, item) == "\n two <|im_end|>"
    assert item.ids[: item.prompt_tokens] == Encoder(tokenizer).prompt(pair(" one\n", "other"))


def test_an_answer_that_stands_elsewhere_too():
    tokenizer = chat_tokenizer(templates.CHATML)
    item = Encoder(tokenizer).item(talk(("user", "user"), ("assistant", "user"), ("user", "s"), ("assistant", "s")))
    assert learned_text(tokenizer, item) == "user<|im_end|>|s<|im_end|>"


def test_another_answer_in_the_place_of_the_last():
    tokenizer = chat_tokenizer(templates.CHATML)
    encoder, example = Encoder(tokenizer), talk(*TALK)
    other = replace(example, completion="seven")
    assert text(tokenizer, encoder.completion(other)) == "seven<|im_end|>"
    assert encoder.prompt(other) == encoder.prompt(example)


def test_templates_from_which_the_mask_can_not_be_derived():
    system = talk(("system", "s"), ("user", "one"), ("assistant", "two"))
    refused(Encoder(chat_tokenizer(templates.NO_SYSTEM)), system, "drops, moves or repeats the system message",
            "a conversation of system, user, assistant", "a.jsonl:7", "chat: off")  # fmt: skip
    thinking = talk(("user", "one"), ("assistant", "a thought</think>two"))
    refused(Encoder(chat_tokenizer(templates.REWRITES)), thinking,
            "drops or rewrites the content of message 2 (assistant)", "'a thought</think>two'")  # fmt: skip
    refused(Encoder(chat_tokenizer(templates.NO_PREFIX)), talk(*TALK), "can't be told which tokens",
            "the prompt goes on with '<think>\\n', the conversation with the answer", "chat: off")  # fmt: skip
    refused(Encoder(chat_tokenizer(templates.INSTRUCTIONS)), system, "refuses the conversation",
            "system, user, assistant: only user and assistant")  # fmt: skip
    refused(Encoder(chat_tokenizer(templates.CHATML)), talk(("user", "one")), "no message of the assistant")
    refused(Encoder(chat_tokenizer("{% if %}")), talk(*TALK), "refuses the conversation", "a.jsonl:7")


def test_a_date_in_the_template_is_always_the_same_day():
    tokenizer = chat_tokenizer(templates.DATED)
    assert text(tokenizer, Encoder(tokenizer).prompt(pair("one", "two"))).startswith("26 July 2024\n<|im_start|>user")


def test_conversations_are_cut_too():
    tokenizer = chat_tokenizer(templates.CHATML)
    whole = Encoder(tokenizer).item(talk(*TALK))
    cut = Encoder(tokenizer).item(talk(*TALK), max_tokens=whole.learned.index(True) + 1)
    assert sum(cut.learned) == 1 and cut.cut == len(whole.ids) - len(cut.ids) > 0
    assert cut.prompt_tokens == len(cut.ids)


@pytest.mark.parametrize("name", ["CHATML", "INSTRUCTIONS"])
def test_a_spaced_tokenizer_with_a_chat_template(name):
    tokenizer = spaced_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": TURN_TOKENS})
    tokenizer.chat_template = getattr(templates, name)
    encoder, example = Encoder(tokenizer), talk(("user", "A"), ("assistant", "yes"), ("user", "A"), ("assistant", "no"))
    item = encoder.item(example)
    assert encoder.prompt(example) == item.ids[: item.prompt_tokens]
    assert item.ids.count(tokenizer.bos_token_id) == 1
    learned = [token for token, flag in zip(item.ids, item.learned, strict=True) if flag]
    end = "<|im_end|>" if name == "CHATML" else EOS
    space = "" if name == "CHATML" else "▁"
    assert tokenizer.convert_ids_to_tokens(learned) == [f"{space}yes", end, f"{space}no", end]
