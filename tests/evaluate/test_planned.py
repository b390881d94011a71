"""What is there at once while a task is asked, seen from within, against what the plan says of it."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from halfbyte.config import load_task
from halfbyte.data.lengths import task_lengths
from halfbyte.evaluate import generate, likelihood
from halfbyte.evaluate.evaluate import evaluate_task, largest_batch
from halfbyte.evaluate.options import rendered_options
from halfbyte.model.build import Model
from halfbyte.model.cache import ReservedLayer
from halfbyte.plan import answering
from halfbyte.plan.activations import shape_info
from halfbyte.plan.answering import Pieces, Scored, evaluation_bytes, pieces
from tests.evaluate.models import plain_model
from tests.tiny import tiny_tokenizer

INTENTS = [f"intent {'abcdefghij'[: 1 + k % 7]} {k}" for k in range(23)]
OWN = {"choice": f"options: {json.dumps(INTENTS)}", "loss": "", "exact": "decoding: {max_new_tokens: 5, stop: []}"}


class Seen:
    """The largest of each that was there at once."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache_bytes = self.tokens = self.positions = 0
        monkeypatch.setattr(model, "hidden", self._watched(model.hidden))
        for module, name in ((likelihood, "cross_entropy"), (generate, "_largest")):
            monkeypatch.setattr(module, name, self._counted(getattr(module, name)))

    def _watched(self, hidden: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def watched(ids: torch.Tensor, *others: Any) -> torch.Tensor:
            made = hidden(ids, *others)
            self.tokens = max(self.tokens, ids.numel())
            self.cache_bytes = max(self.cache_bytes, sum(dict(self._buffers()).values()))
            return made

        return watched

    def _buffers(self) -> Iterator[tuple[int, int]]:
        for layer in [one for one in gc.get_objects() if type(one) is ReservedLayer]:
            for buffer in layer._buffers or ():
                yield buffer.untyped_storage().data_ptr(), buffer.untyped_storage().nbytes()

    def _counted(self, of: Callable[..., Any]) -> Callable[..., Any]:
        def counted(logits: torch.Tensor, *others: Any, **named: Any) -> Any:
            self.positions = max(self.positions, len(logits))
            return of(logits, *others, **named)

        return counted


@pytest.mark.parametrize("kind", list(OWN))
@pytest.mark.parametrize("small", [False, True])
def test_an_evaluation_holds_what_its_plan_says(
    kind: str, small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:  # every limit is reached
        monkeypatch.setattr(answering, "_MOST_TOKENS", 700)
        for limit, value in (("_OF_OPTIONS", 30), ("_LOGITS", 320 * 6), ("_AT_ONCE", 64)):
            monkeypatch.setitem(getattr(answering, limit), "cpu", value)
    rows = [{"prompt": "say " + k % 9 * "more " + f"{k}: ", "completion": INTENTS[k % 23]} for k in range(40)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(f"data: t.jsonl\nkind: {kind}\n{OWN[kind]}\n")
    model, task = plain_model(), load_task(tmp_path / "task.yaml")
    count, tokens, new, scored = largest_batch(model, task)
    budget, text = generate.token_budget(model), model.net.config.get_text_config()
    planned = pieces(count, tokens, "cpu", budget, text.vocab_size, scored, new)
    seen = Seen(model, monkeypatch)
    gc.collect()
    evaluate_task(model, task, tmp_path / "out", variant="x")
    info = shape_info(model.net.config.to_dict())
    assert evaluation_bytes(info, count, tokens, 4, "cpu", budget, scored, new)["kv_cache"] == seen.cache_bytes
    assert 0.7 * planned.positions <= seen.positions <= planned.positions  # shorter options and texts are padded
    assert new == (5 if kind == "exact" else 0)
    assert 0.7 * planned.tokens <= seen.tokens <= 1.05 * planned.tokens  # shorter items fill a batch better

    tiny_tokenizer().save_pretrained(tmp_path / "model")  # and the same before anything is loaded
    asked = task_lengths(task, tmp_path / "model", lambda example: rendered_options(example, task)[0])
    assert (asked is not None and (asked.items, asked.longest) == (40, tokens)) or (small and kind == "exact")
    assert asked is not None
    assert scored == (None if asked.scored is None else Scored(asked.scored.options, asked.scored.own))


def test_many_options_take_less_than_the_budget_of_a_cache() -> None:
    scored, budget = Scored(options=77, tokens=9), 16384
    rows = answering.items_at_once(budget, 69, "cpu", scored)
    assert pieces(rows, 69, "cpu", budget, 4096, scored) == Pieces(cached=(3 + 64) * 69, tokens=512, positions=512)
    assert pieces(1, 4000, "cpu", budget, 128256, scored).cached == (1 + 4) * 4000  # long prompts: few options at once
