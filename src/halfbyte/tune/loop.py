"""The training loop: one readable function that yields a record a step.

Loss: the mean cross-entropy over the learned tokens of the whole optimiser step, whatever way the step is cut into
micro-batches; so micro-batch and accumulation change the rounding and nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halfbyte.config import TuneConfig
from halfbyte.data.batches import Batch, collate, step_batches
from halfbyte.data.encode import Item
from halfbyte.errors import TrainingError
from halfbyte.model.build import Model
from halfbyte.model.loss import IGNORED, next_token_loss
from halfbyte.tune.schedule import learning_rate
from halfbyte.tune.state import State

FP16_LOSS_SCALE = 2.0**10  # keeps the gradients of fp16 activations out of the subnormals


@dataclass
class StepRecord:
    """A line of metrics.jsonl (the run adds memory)."""

    step: int  # counted from 1
    epoch: float
    loss: float  # nats a learned token
    learning_rate: float
    gradient_norm: float
    tokens: int  # of this step, padding left out
    learned_tokens: int
    seconds: float  # of this step
    tokens_per_second: float
    validation_loss: float | None = None


class Stopped(Exception):
    """Raised between micro-batches when the run is asked to stop; the step is done again on resume."""


@dataclass
class Plan:
    """What the loop needs to know beside the state: all of it frozen in run.yaml."""

    steps: int
    steps_per_epoch: int
    micro_batch: int
    pad_id: int
    seed: int
    validate_at: frozenset[int]  # numbers of steps after which the validation loss is taken


def train(
    model: Model,
    items: Sequence[Item],
    validation: Sequence[Item],
    state: State,
    options: TuneConfig,
    plan: Plan,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[StepRecord]:
    """Train from `state` to the end of `plan`, a record a step; `state` is up to date whenever a record is yielded.

    `stop` is asked before each micro-batch. Raises Stopped when it says so, and TrainingError when the loss or the
    gradient is not finite; the state is then that before the step.
    """
    parameters = list(state.parameters.values())
    scale = FP16_LOSS_SCALE if model.dtype == torch.float16 else 1.0
    while state.progress.step < plan.steps:
        started = time.perf_counter()
        step = state.progress.step
        batches = list(step_batches(items, step, options.batch, plan.micro_batch, plan.pad_id, plan.seed))
        learned = sum(learned_tokens(batch) for batch in batches)
        torch.manual_seed((plan.seed * 1_000_003 + step) % 2**63)  # dropout's masks
        model.net.train()
        state.optimiser.zero_grad(set_to_none=True)
        state.reserve()
        loss = 0.0
        for batch in batches:
            if stop():
                raise Stopped
            total = batch_loss(model, batch)
            (total * (scale / learned)).backward()  # type: ignore[no-untyped-call]
            loss += total.item() / learned
        state.note_gradients()
        if scale != 1.0:
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 1 / scale)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, options.clip or math.inf))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                "the loss or its gradient is not finite",
                where=f"step {step + 1}",
                found=f"loss {loss}, norm of the gradient {norm}",
                do="lower tune.learning_rate, or look at the items of this step",
            )
        rate = learning_rate(options, step, plan.steps)
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        state.optimiser.step()
        state.progress.step = step + 1
        tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
        seconds = time.perf_counter() - started
        record = StepRecord(
            step=step + 1,
            epoch=(step + 1) / plan.steps_per_epoch,
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            tokens=tokens,
            learned_tokens=learned,
            seconds=seconds,
            tokens_per_second=tokens / seconds,
        )
        if step + 1 in plan.validate_at and validation:
            record.validation_loss = validation_loss(model, validation, plan)
        state.progress.seconds += time.perf_counter() - started
        yield record


def batch_loss(model: Model, batch: Batch) -> Tensor:
    """Sum of the cross-entropy over the learned tokens of a batch, in nats."""
    ids, mask = batch.input_ids.to(model.device), batch.attention_mask
    padded = bool((mask == 0).any())
    hidden = model.hidden(ids, mask.to(model.device) if padded else None)
    return next_token_loss(hidden, batch.labels.to(model.device), model.head)


def learned_tokens(batch: Batch) -> int:
    """Tokens that the loss counts: the first of a sequence is predicted by none."""
    return int((batch.labels[:, 1:] != IGNORED).sum())


@torch.no_grad()
def validation_loss(model: Model, items: Sequence[Item], plan: Plan) -> float:
    """Mean cross-entropy over the learned tokens of `items`, in nats a token."""
    model.net.eval()
    by_length = sorted(items, key=lambda item: len(item.ids))
    loss, learned = 0.0, 0
    for start in range(0, len(by_length), plan.micro_batch):
        batch = collate(by_length[start : start + plan.micro_batch], plan.pad_id)
        loss += batch_loss(model, batch).item()
        learned += learned_tokens(batch)
    return loss / max(1, learned)
