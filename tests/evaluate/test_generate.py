from __future__ import annotations

import copy
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from halfbyte.config import DecodingConfig, load_task
from halfbyte.data.encode import Encoder
from halfbyte.errors import CheckpointError, DataError
from halfbyte.evaluate import generate as module
from halfbyte.evaluate.generate import _largest, batches, end_tokens, generate, prefill, token_budget
from halfbyte.evaluate.tasks import load_task_set
from halfbyte.experiment import DEMO
from halfbyte.model.build import load_model
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


UNREACHED = [(family, {"sliding_window": 200}) for family in ("mistral", "gemma2")]  # so these layers are reserved, too


@pytest.mark.parametrize("family, options", [*((family, {}) for family in FAMILIES), *UNREACHED])
def test_equals_transformers_own_greedy_decoding_one_by_one(family: str, options: dict[str, int]) -> None:
    model = plain_model(family, **options)
    found = generate(model, prompts(model), LONG)
    for prompt, new, why in zip(prompts(model), found.ids, found.ended, strict=True):
        whole = model.net.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0].tolist()
        theirs = whole[len(prompt) :]
        ends = end_tokens(model)
        assert new == [token for token in theirs if token not in ends]
        assert why == ("end" if theirs[-1] in ends else "length")


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_do_not_depend_on_batch_padding_or_order(family: str) -> None:
    model = plain_model(family)
    asked = prompts(model)
    alone = generate(model, asked, LONG, batch=1).ids
    for batch in (2, 3, 8, "auto"):
        assert generate(model, asked, LONG, batch=batch).ids == alone
    order = [5, 0, 7, 2, 1, 6, 3, 4]
    assert generate(model, [asked[i] for i in order], LONG, batch=3).ids == [alone[i] for i in order]


ITEMS = 20


def demo_prompts(model: Any) -> list[list[int]]:
    """Some questions of the demo's task."""
    tasks = load_task_set(load_task(DEMO / "task.yaml"), limit=ITEMS)
    encoder = Encoder(model.tokenizer)
    return encoder.prompts(tasks.asked(encoder))


@pytest.mark.parametrize(("compute", "allowed"), [("fp32", 0), ("bf16", 1)])
def test_no_answer_of_a_packed_model_depends_on_batch_padding_or_order(compute: str, allowed: int) -> None:
    """In bf16 a processor of another kind may still turn one; `benchmarks/invariance.py` measures the share."""
    model = load_model(str(DEMO / "base"), weights="nf4", compute=compute)
    asked, ends = demo_prompts(model), end_tokens(model)
    assert len({len(prompt) for prompt in asked}) > 8  # padded
    decoding = DecodingConfig(max_new_tokens=10)
    alone = generate(model, asked, decoding, ends=ends, batch=1).ids
    together = generate(model, asked, decoding, ends=ends, batch=16).ids
    assert sum(a != b for a, b in zip(alone, together, strict=True)) <= allowed
    order = random.Random(0).sample(range(ITEMS), ITEMS)
    shuffled = generate(model, [asked[item] for item in order], decoding, ends=ends, batch=3).ids
    assert sum(alone[item] != new for item, new in zip(order, shuffled, strict=True)) <= allowed


def test_a_near_tie_is_decided_by_the_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.copy(plain_model())
    rows = torch.zeros(4, 320)
    rows[:, 7] = torch.tensor([8.0, 8.0, 8.0, -8.0])  # the runner-up is 5
    rows[:, 5] = torch.tensor([8.0 - 0.0625, 7.9, 8.0, -8.0 - 0.0625])
    rows[3, [*range(5), 6, *range(8, 320)]] = -20.0
    monkeypatch.setattr(model, "logits", lambda hidden: rows.bfloat16(), raising=False)
    decided: list[list[int]] = []
    monkeypatch.setattr(module, "_alone", lambda model, ids: (decided.append(ids), 99)[1])
    so_far = [[1], [2], [3], [4]]
    assert module._next_tokens(model, torch.zeros(4, 36), so_far).tolist() == [99, 7, 99, 99]
    assert decided == [[1], [3], [4]]
    assert module._next_tokens(model, torch.zeros(4, 36), None).tolist() == [7, 7, 5, 7]


def test_ties_are_decided_in_narrow_types_and_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(module, "_NEAR", 1e9)  # everything is a near tie
    monkeypatch.setattr(module, "_alone", lambda model, ids: (seen.append(True), 50)[1])
    model = plain_model()
    generate(model, [[5, 6]], LONG, ends=[])
    assert not seen  # fp32
    narrow = load_model(str(DEMO / "base"), weights="nf4", compute="bf16")
    assert generate(narrow, [[5, 6]], LONG, ends=[]).ids == [[50] * 12] and len(seen) == 12
    generate(narrow, [[5, 6]], LONG, ends=[], settle=False)
    assert len(seen) == 12


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_do_not_depend_on_the_pieces_of_the_prompt(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain_model(family)
    asked = prompts(model)
    whole = generate(model, asked, LONG).ids
    widths: list[int] = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, *rest: (widths.append(ids.shape[1]), hidden(ids, *rest))[1])
    for tokens in (24, 1):  # 3 columns of all 8 prompts, 1 column
        monkeypatch.setattr("halfbyte.plan.answering._AT_ONCE", {"cpu": tokens})
        assert generate(model, asked, LONG).ids == whole
        assert max(widths) == max(1, tokens // 8)
        widths.clear()


@pytest.mark.parametrize("rope, widths", [("default", [2048, 2048, 904]), ("dynamic", [5000])])
def test_a_prompt_stays_whole_where_positions_depend_on_its_length(rope: str, widths: list[int]) -> None:
    config = LlamaConfig(rope_parameters={"rope_type": rope, "factor": 2.0, "rope_theta": 10000.0})
    seen: list[int] = []

    class Watched:
        net, device = SimpleNamespace(config=config), torch.device("cpu")

        def hidden(self, ids: torch.Tensor, *_: object) -> torch.Tensor:
            seen.append(ids.shape[1])
            return torch.zeros(*ids.shape, 4)

    ids = torch.zeros(1, 5000, dtype=torch.long)
    prefill(Watched(), ids, None, ids, None)
    assert seen == widths


def test_a_mask_is_made_only_where_something_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain_model()
    masks: list[bool] = []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda ids, mask, *rest: (masks.append(mask is not None), hidden(ids, mask, *rest))[1]
    )
    generate(model, [[5, 6, 7], [8, 9, 10]], LONG, ends=[])
    assert masks == [False] * 12
    masks.clear()
    first = generate(model, [[5, 6, 7], [8, 9]], DecodingConfig(max_new_tokens=1), ends=[]).ids[1][0]
    assert masks == [True]
    masks.clear()
    generate(model, [[5, 6, 7], [8, 9]], LONG, ends=[first])  # the padded row ends at once
    assert masks[:2] == [True, False]


@pytest.mark.parametrize("vocabulary", [320, 2 * 2048, 997])  # one block, two, and none that fits
def test_the_largest_logit_is_the_first_of_equals(vocabulary: int) -> None:
    logits = torch.randint(0, 50, (7, vocabulary), generator=torch.Generator().manual_seed(1)).bfloat16()
    best, place = _largest(logits)
    assert torch.equal(best, logits.amax(dim=1))
    assert place.tolist() == [row.tolist().index(row.max().item()) for row in logits]
    logits[3, 100] = torch.nan
    assert _largest(logits)[0].isnan().tolist() == [row == 3 for row in range(7)]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_end_early_leave_the_others_alone(family: str) -> None:
    model = plain_model(family)
    asked = prompts(model)
    alone = generate(model, asked, LONG, batch=1)
    ends = {new[k] for k, new in enumerate(alone.ids) if k < 6}  # most rows now end, each at another step
    found = generate(model, asked, LONG, ends=ends)
    for new, whole, why in zip(found.ids, alone.ids, found.ended, strict=True):
        place = next((k for k, token in enumerate(whole) if token in ends), None)
        assert new == whole[:place]
        assert why == ("length" if place is None else "end")
    assert found.ended.count("end") > 1
    for batch in (1, 3):
        assert generate(model, asked, LONG, ends=ends, batch=batch).ids == found.ids


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
