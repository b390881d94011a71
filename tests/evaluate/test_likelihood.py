from __future__ import annotations

import pytest
import torch

from halfbyte.evaluate import likelihood
from halfbyte.evaluate.likelihood import learned_log_likelihoods, option_likelihoods, option_log_likelihoods
from halfbyte.plan import answering
from tests.evaluate.models import plain_model


def naive(model, prompt: list[int], option: list[int]) -> float:
    ids = torch.tensor([prompt + option])
    logp = model.net(ids).logits[0].double().log_softmax(-1)
    return sum(float(logp[len(prompt) + k - 1, token]) for k, token in enumerate(option))


PROMPTS = [[0, 30, 31, 32], [0, 40], [0, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68]]
OPTIONS = [
    [[70], [71, 72], [73, 74, 75, 76, 77]],
    [[70, 71], [70, 71, 72], [80]],
    [[90], [91]],
]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3"])
@pytest.mark.parametrize("budget", [None, 40])
def test_options_equal_a_naive_computation(family: str, budget: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain_model(family)
    if budget:  # several chunks of options for one prompt
        monkeypatch.setattr(likelihood, "token_budget", lambda model: budget)
    found = option_log_likelihoods(model, PROMPTS, OPTIONS)
    for prompt, options, values in zip(PROMPTS, OPTIONS, found, strict=True):
        assert values == pytest.approx([naive(model, prompt, option) for option in options], abs=1e-4)


def test_many_options_share_one_prompt_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain_model()
    monkeypatch.setitem(answering._LOGITS, "cpu", 320 * 7)  # positions through the head seven at a time
    options = [[100 + k, *range(200, 200 + k % 5)] for k in range(77)]
    for budget in (60, 100000):
        monkeypatch.setattr(likelihood, "token_budget", lambda model, budget=budget: budget)
        (found,) = option_log_likelihoods(model, [PROMPTS[0]], [options])
        assert found == pytest.approx([naive(model, PROMPTS[0], option) for option in options], abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_learned_tokens_equal_transformers_own_loss(family: str) -> None:
    model = plain_model(family)
    ids = [[0, *range(30, 50)], [0, 60, 61], [0, *range(100, 107)]]
    learned = [[False] * 9 + [True] * 12, [False, True, True], [k in (3, 4, 7) for k in range(8)]]
    seen: list[tuple[int, int]] = []
    found = learned_log_likelihoods(model, ids, learned, progress=lambda *at: seen.append(at))
    for row, flags, value in zip(ids, learned, found, strict=True):
        labels = torch.tensor([[token if flag else -100 for token, flag in zip(row, flags, strict=True)]])
        loss = model.net(torch.tensor([row]), labels=labels).loss
        assert -value / sum(flags) == pytest.approx(float(loss), rel=1e-5)
    assert seen[-1] == (3, 3)


def test_an_option_is_greedy_where_every_token_is_the_likeliest() -> None:
    model = plain_model()
    greedy = model.net.generate(torch.tensor([PROMPTS[2]]), max_new_tokens=3, do_sample=False)[0, -3:].tolist()
    options = [greedy[:1], greedy, [*greedy[:2], (greedy[2] + 1) % 300], [(greedy[0] + 1) % 300, *greedy[1:]]]
    (found,) = option_likelihoods(model, [PROMPTS[2]], [options])
    assert [one.greedy for one in found] == [True, True, False, False]


def test_a_text_may_fill_the_context_and_one_token_more() -> None:
    """Positions of GPT-2 end where its context does; nothing is predicted from the last token."""
    model = plain_model("gpt2", n_positions=8)
    (found,) = learned_log_likelihoods(model, [[0, *range(30, 38)]], [[False] + [True] * 8])
    assert found == pytest.approx(naive(model, [0], list(range(30, 37))) + last(model), abs=1e-4)


def last(model) -> float:
    logp = model.net(torch.tensor([[0, *range(30, 37)]])).logits[0, -1].double().log_softmax(-1)
    return float(logp[37])
