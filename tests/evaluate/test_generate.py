from __future__ import annotations

import pytest
import torch

from halfbyte.config import DecodingConfig
from halfbyte.errors import CheckpointError, DataError
from halfbyte.evaluate.generate import batches, end_tokens, generate, token_budget
from tests.evaluate.models import plain_model
from tests.tiny import FAMILIES

TEXTS = [
    "The set of the castle",
    "A",
    "prompt, answer, prompt, answer, and so on. One hundred pieces in a box of ten dollars and more, and more",
    "9.99 dollars",
    "A number of small models on one machine learn",
    "euros and pounds",
    "x",
    "0 1 2 3 4 5 6 7",
]
LONG = DecodingConfig(max_new_tokens=12, stop=[])


def prompts(model) -> list[list[int]]:
    return [model.tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers_own_greedy_decoding_one_by_one(family: str) -> None:
    model = plain_model(family)
    found = generate(model, prompts(model), LONG)
    for prompt, new, why in zip(prompts(model), found.ids, found.ended, strict=True):
        whole = model.net.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0].tolist()
        theirs = whole[len(prompt) :]
        ends = end_tokens(model)
        assert new == [token for token in theirs if token not in ends]
        assert why == ("end" if theirs[-1] in ends else "length")


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_answers_do_not_depend_on_batch_padding_or_order(family: str) -> None:
    model = plain_model(family)
    asked = prompts(model)
    alone = generate(model, asked, LONG, batch=1).ids
    for batch in (2, 3, 8, "auto"):
        assert generate(model, asked, LONG, batch=batch).ids == alone
    order = [5, 0, 7, 2, 1, 6, 3, 4]
    assert generate(model, [asked[i] for i in order], LONG, batch=3).ids == [alone[i] for i in order]


def test_rows_that_end_early_leave_the_others_alone() -> None:
    model = plain_model("mistral")
    asked = prompts(model)
    alone = generate(model, asked, LONG, batch=1)
    ends = {new[k] for k, new in enumerate(alone.ids) if k < 6}  # most rows now end, each at another step
    found = generate(model, asked, LONG, ends=ends)
    for new, whole, why in zip(found.ids, alone.ids, found.ended, strict=True):
        place = next((k for k, token in enumerate(whole) if token in ends), None)
        assert new == whole[:place]
        assert why == ("length" if place is None else "end")
    assert found.ended.count("end") > 1
    assert len({len(new) for new in found.ids}) > 2


def test_an_answer_ends_before_the_first_stop_string() -> None:
    model = plain_model()
    asked = prompts(model)
    whole = generate(model, asked, LONG)
    text = whole.texts[0]
    stop = text[3:5]  # lies across tokens or within one, as it comes
    found = generate(model, asked, DecodingConfig(max_new_tokens=12, stop=["never there", stop]))
    for before, after, new in zip(whole.texts, found.texts, found.ids, strict=True):
        assert after == before.split(stop)[0]
        assert stop not in after
        if stop in before:  # and it stopped there
            assert stop not in model.tokenizer.decode(new[:-1])
    assert found.ended[0] == "stop"


def test_end_tokens_come_from_tokenizer_and_generation_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain_model()
    assert end_tokens(model) == {model.tokenizer.eos_token_id}
    monkeypatch.setattr(model.net.generation_config, "eos_token_id", [7, 9])
    assert end_tokens(model) == {model.tokenizer.eos_token_id, 7, 9}


def test_progress_speed_and_counts() -> None:
    model = plain_model()
    seen: list[tuple[int, int]] = []
    found = generate(
        model, prompts(model), LONG, batch=3, ends=[], progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(3, 8), (6, 8), (8, 8)]
    assert found.decoded_tokens == 8 * 11  # the first of each comes from the prefill
    assert found.prompt_tokens == sum(map(len, prompts(model)))
    assert found.tokens_per_second is not None and found.tokens_per_second > 0
    assert 0 < found.decode_seconds < found.seconds
    assert generate(model, prompts(model), DecodingConfig(max_new_tokens=1)).tokens_per_second is None
    assert generate(model, [], LONG).texts == []


def test_what_does_not_fit_is_refused_by_name() -> None:
    model = plain_model()  # 256 tokens of context
    generate(model, [[5] * 244], LONG)
    with pytest.raises(DataError, match=r"(?s)context of 256 tokens.*prompt 2.*1 of 2 .* 257 tokens"):
        generate(model, [[5], [5] * 245], LONG)
    with pytest.raises(DataError, match="no token"):
        generate(model, [[5], []], LONG)


def test_a_model_that_computes_nan_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain_model()
    monkeypatch.setattr(model, "logits", lambda hidden: torch.full((*hidden.shape[:-1], 320), torch.nan))
    with pytest.raises(CheckpointError, match="not finite"):
        generate(model, [[5]], LONG)


def test_batches_hold_the_token_budget_and_every_item_once() -> None:
    model = plain_model()
    lengths = [1, 700, 30, 30, 5000, 2, 64] * 60
    budget, seen = token_budget(model), []
    for group in batches(lengths, 16, "auto", model):
        assert len(group) == 1 or len(group) * (max(lengths[i] for i in group) + 16) <= budget
        assert [lengths[i] for i in group] == sorted((lengths[i] for i in group), reverse=True)
        seen += group
    assert sorted(seen) == list(range(len(lengths)))
