import io

from rich.console import Console

from halfbyte.data.encode import Encoder
from halfbyte.data.records import Record
from halfbyte.data.show import LEARNED, SPECIAL, first_example, runs
from halfbyte.data.template import to_example
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def item(prompt="The [bold] price is ", completion="ü 10"):
    return Encoder(TOKENIZER).item(to_example(Record({"prompt": prompt, "completion": completion}, "a.jsonl:7")))


def printed(shown, **options):
    file = io.StringIO()
    Console(file=file, width=200, **options).print(shown)
    return file.getvalue()


def test_runs_spell_the_item():
    made = runs(item(), TOKENIZER)
    assert [(run.text, run.learned, run.special) for run in made] == [
        ("<|bos|>", False, True),
        ("The [bold] price is ", False, False),
        ("ü 10", True, False),
        ("<|eos|>", True, True),
    ]


def test_colours():
    text = first_example(item(), TOKENIZER).text
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert styles["ü 10"] == LEARNED and styles["<|bos|>"] == SPECIAL and styles["<|eos|>"].startswith(LEARNED)


def test_brackets_where_there_is_no_terminal():
    made = item()
    output = printed(first_example(made, TOKENIZER))
    assert "<|bos|>The [bold] price is [[ü 10<|eos|>]]" in output and "\x1b" not in output
    assert f"a.jsonl:7): {len(made.ids)} tokens, {made.learned_tokens} of them learned" in output


def test_colour_on_a_terminal():
    output = printed(first_example(item(), TOKENIZER), force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[1;32mü 10" in output and "[[" not in output
    assert "[[ü 10" in printed(first_example(item(), TOKENIZER), force_terminal=True, color_system=None)


def test_long_texts_are_shortened_and_say_so():
    shown = first_example(item(prompt="x" * 10_000), TOKENIZER)
    assert "8,000 characters" in shown.plain and len(shown.plain) < 2500 and "[[ü 10<|eos|>]]" in shown.plain
