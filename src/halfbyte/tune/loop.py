"""The training loop: one readable function that yields a record a step.

Loss: the mean cross-entropy over the learned tokens of the whole optimiser step, whatever way the step is cut into
micro-batches; so micro-batch and accumulation change the rounding and nothing else.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halfbyte.config import TuneConfig
from halfbyte.data.batches import Batch, collate, micro_batches, pack, step_order
from halfbyte.data.encode import Item
from halfbyte.errors import TrainingError
from halfbyte.memory import trim
from halfbyte.model.build import Model
from halfbyte.model.loss import next_token_loss
from halfbyte.tune.ranks import Ranks
from halfbyte.tune.schedule import learning_rate
from halfbyte.tune.state import Progress, State
from halfbyte.tune.stop import Stopped

FP16_LOSS_SCALE = 2.0**10  # keeps the gradients of fp16 activations out of the subnormals
ALONE = Ranks()
FIRST, IN_A_ROW, MARGIN = 10, 5, 1.0  # steps that say what is normal; steps that make an explosion; nats a token


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


@dataclass
class Plan:
    """What the loop needs to know beside the state: all of it frozen in run.yaml."""

    steps: int
    steps_per_epoch: int
    micro_batch: int
    pad_id: int
    seed: int
    validate_at: frozenset[int]  # numbers of steps after which the validation loss is taken
    packed: bool = False  # the items of a micro-batch stand in one row, not padded

    def batch(self, items: Sequence[Item]) -> Batch:
        return (pack if self.packed else collate)(items, self.pad_id)


def train(
    model: Model,
    items: Sequence[Item],
    validation: Sequence[Item],
    state: State,
    options: TuneConfig,
    plan: Plan,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> Iterator[StepRecord]:
    """Train from `state` to the end of `plan`, a record a step; `state` is up to date whenever a record is yielded.

    `stop` is asked before each micro-batch. Raises Stopped when it says so, TrainingError when the loss or the gradient
    is not finite or the loss explodes, and CheckpointError when a file of the model was changed: the state is then that
    before the step, unless it was noticed in a validation. With several ranks, the records of all are those of one.
    """
    parameters = list(state.parameters.values())
    scale = FP16_LOSS_SCALE if model.dtype == torch.float16 else 1.0
    while state.progress.step < plan.steps:
        started = time.perf_counter()
        step = state.progress.step
        chosen = step_order(items, step, options.batch, plan.seed)
        learned = learned_tokens(chosen)
        torch.manual_seed(ranks.seed((plan.seed * 1_000_003 + step) % 2**63))  # dropout's masks
        model.net.train()
        state.reserve()
        state.clear_gradients()
        with ranks.together() as loss:
            for some in micro_batches(ranks.share(chosen), plan.micro_batch):
                if stop():
                    raise Stopped
                total = batch_loss(model, plan.batch(some))
                (total * (scale / learned)).backward()  # type: ignore[no-untyped-call]
                loss.value += total.item() / learned
                del total  # its graph would hold the adapter's copies in 16 bits through the next forward pass
                if not math.isfinite(loss.value):
                    raise _not_finite(step, f"loss {loss.value}", some)
        ranks.add_gradients(state)
        state.note_gradients()
        if scale != 1.0:
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 1 / scale)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, options.clip or math.inf))
        if not math.isfinite(norm):
            raise _not_finite(step, f"loss {loss.value}, norm of the gradient {norm}", chosen)
        exploding = explosion(state.progress, loss.value, options.explosion)
        model.check_files()
        rate = learning_rate(options, step, plan.steps)
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        state.update()
        trim()
        state.progress.exploding = exploding
        if len(state.progress.first_losses) < FIRST:
            state.progress.first_losses.append(loss.value)
        tokens = sum(map(len, chosen))
        seconds = time.perf_counter() - started
        record = StepRecord(
            step=step + 1,
            epoch=(step + 1) / plan.steps_per_epoch,
            loss=loss.value,
            learning_rate=rate,
            gradient_norm=norm,
            tokens=tokens,
            learned_tokens=learned,
            seconds=seconds,
            tokens_per_second=tokens / seconds,
        )
        if step + 1 in plan.validate_at and validation:
            record.validation_loss = validation_loss(model, validation, plan, ranks)
            model.check_files()
        state.progress.seconds += time.perf_counter() - started
        yield record


def _not_finite(step: int, found: str, items: Sequence[Item]) -> TrainingError:
    origins = [item.origin for item in items]
    more = f" and {len(origins) - 8} more" if len(origins) > 8 else ""
    return TrainingError(
        "the loss or its gradient is not finite",
        where=f"step {step + 1}: {', '.join(origins[:8])}{more}",
        found=found,
        do="start another run with a lower tune.learning_rate, or look at these items",
    )


def explosion(progress: Progress, loss: float, factor: float) -> int:
    """How many steps in a row the loss has been too high, with this one: above `factor` times the median of the first
    FIRST, plus MARGIN. Always 0 where `factor` is. Raises TrainingError when there are IN_A_ROW of them.

    A loss that is in order may double from step to step where batches are small; nearly the opposite of one that has
    exploded, which stays high. So it is measured where the run began, not at what it had reached.
    """
    if not factor or len(progress.first_losses) < FIRST:
        return 0
    limit = factor * statistics.median(progress.first_losses) + MARGIN
    count = progress.exploding + 1 if loss > limit else 0
    if count >= IN_A_ROW:
        raise TrainingError(
            "the loss has exploded",
            where=f"steps {progress.step + 2 - count} to {progress.step + 1}",
            found=f"{loss:.3g} nats a token now, in all of them above {limit:.3g}: {factor:g} times the median of the "
            f"first {FIRST} steps, plus {MARGIN:g}",
            do="start another run with a lower tune.learning_rate, or a longer tune.warmup; to go on nevertheless: "
            "--resume --set tune.explosion=0",
        )
    return count


def batch_loss(model: Model, batch: Batch) -> Tensor:
    """Sum of the cross-entropy over the learned tokens of a batch, in nats."""
    ids, mask = batch.input_ids.to(model.device), batch.attention_mask
    padded = bool((mask == 0).any())
    positions = None if batch.positions is None else batch.positions.to(model.device)
    hidden = model.hidden(ids, mask.to(model.device) if padded else None, positions)
    return next_token_loss(hidden, batch.labels.to(model.device), model.head)


def learned_tokens(items: Sequence[Item]) -> int:
    """Tokens that the loss counts: the first of a sequence is predicted by none."""
    return sum(sum(item.flags[1:]) for item in items)


@torch.no_grad()
def validation_loss(model: Model, items: Sequence[Item], plan: Plan, ranks: Ranks = ALONE) -> float:
    """Mean cross-entropy over the learned tokens of `items`, in nats a token."""
    model.net.eval()
    mine = ranks.share(sorted(items, key=len))
    with ranks.together() as loss:
        for some in micro_batches(mine, plan.micro_batch):
            loss.value += batch_loss(model, plan.batch(some)).item()
    return loss.value / max(1, learned_tokens(items))
