"""How long a run takes here: the operations counted (`operations.py`) times what they cost (`calibration.py`).

Without a calibration there are no seconds, and the reason says how to get them. The same holds for what was not
measured: a family that is not modelled, experts, a device other than this machine's processor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from halfbyte.plan import operations as count
from halfbyte.plan.calibration import Calibration, Cost
from halfbyte.plan.operations import FEW, Work

NEW_TOKENS = 16  # of an answer, TASK.yaml's default


@dataclass(frozen=True)
class Speed:
    """Prices for one model: what it works through, in which format and type, and the measured costs."""

    work: Work
    weights: str
    costs: Mapping[str, Cost]
    b: int  # bytes of an activation
    learned: int | None = None  # tokens of an item whose loss counts, at most; None: all but the first

    def _cost(self, name: str) -> Cost:
        return self.costs[name]

    def _products(self, kind: str, matrices: Mapping[tuple[int, int, bool], int], tokens: int) -> float:
        format_ = "nf4" if self.weights == "nf4-single" else self.weights
        cost, rank = self._cost(f"product/{format_}/{kind}"), self.work.rank
        return sum(many * cost.seconds(count.product(tokens, outputs, inputs, rank * adapted))
                   for (outputs, inputs, adapted), many in matrices.items())  # fmt: skip

    def attention(self, kind: str, batch: int, queries: int, keys: int) -> float:
        """Seconds of the attention of all layers."""
        dims, cost = self.work.dims, self._cost(f"attention/{kind}")
        shape = (batch, dims.heads, dims.kv_heads, dims.head_dim, queries, keys)
        return sum(layers * cost.seconds(count.attention(*shape, window, self.work.capped))
                   for window, layers in self.work.windows.items() if layers)  # fmt: skip

    def step_parts(self, batch: int, sequence: int, recomputed: int, micro_batches: int = 1) -> dict[str, float]:
        """Seconds by part of one optimiser step of `micro_batches` x `batch` items of `sequence` tokens;
        `recomputed` layers are computed again in the backward pass."""
        dims, tokens, layers = self.work.dims, batch * sequence, self.work.dims.layers
        forward = self._products("forward", self.work.matrices, tokens)
        backward = self._products("backward", self.work.matrices, tokens)
        skipped = {(outputs, inputs, False): many for (outputs, inputs, _), many in self.work.first.items()}
        backward = max(0.0, backward - self._products("backward", skipped, tokens))
        outputs, inputs = self.work.last
        last = self._products("forward", {(outputs, inputs, False): 1}, tokens)
        attention = self.attention("forward", batch, sequence, sequence)
        rest = layers * self._cost("rest/forward").seconds(count.rest(dims, tokens, self.b))
        again = (forward + attention + rest) * recomputed / layers - recomputed * last
        learned = batch * min(max(0, sequence - 1), sequence if self.learned is None else self.learned)
        parts = {
            "products forward": forward,
            "products backward": backward,
            "recomputation": max(0.0, again),
            "attention": attention + self.attention("backward", batch, sequence, sequence),
            "rest of the layers": rest + layers * self._cost("rest/backward").seconds(count.rest(dims, tokens, self.b)),
            "head and loss": self._cost("loss").seconds(
                count.loss(learned, dims.vocabulary or 0, dims.hidden, self.work.capped_head)
            ),
        }
        parts = {name: micro_batches * seconds for name, seconds in parts.items()}
        parts["optimiser"] = self._cost("optimiser").seconds(
            count.optimiser(2 * self.work.adapted, self.work.parameters)
        )
        return parts

    def step(self, batch: int, sequence: int, recomputed: int, micro_batches: int = 1) -> float:
        return sum(self.step_parts(batch, sequence, recomputed, micro_batches).values())

    def validation(self, batch: int, sequence: int) -> float:
        """Seconds of the loss of `batch` items without gradients."""
        parts, dims = self.step_parts(batch, sequence, 0), self.work.dims
        rest = dims.layers * self._cost("rest/forward").seconds(count.rest(dims, batch * sequence, self.b))
        return (parts["products forward"] + self.attention("forward", batch, sequence, sequence) + rest
                + parts["head and loss"] / 2)  # fmt: skip

    def run(self, length: Length, micro_batch: int, sequence: int, recomputed: int) -> dict[str, float]:
        """`steps`, and the `seconds` of all of them with their validations, for items of `sequence` tokens each."""
        passes, last = divmod(length.batch, micro_batch)
        step = self.step(micro_batch, sequence, recomputed, passes) if passes else 0.0
        if last:
            rest = self.step_parts(last, sequence, recomputed)
            step += sum(rest.values()) - (rest["optimiser"] if passes else 0.0)
        every = max(1, round(length.validate_every * -(-length.items // length.batch)))
        times = -(-length.steps // every) if length.validation_items else 0
        validation = -(-length.validation_items // micro_batch) * self.validation(micro_batch, sequence)
        return {"steps": length.steps, "step_seconds": step, "validation_seconds": times * validation,
                "seconds": length.steps * step + times * validation}  # fmt: skip

    def prefill(self, rows: int, tokens: int) -> float:
        """Seconds until the first new token of `rows` prompts of `tokens` tokens."""
        dims, total = self.work.dims, rows * tokens
        kind = "few" if total <= FEW else "forward"
        rest = dims.layers * self._cost("rest/forward").seconds(count.rest(dims, total, self.b))
        products = self._products(kind, self.work.matrices, total)
        return products + rest + self.attention("forward", rows, tokens, tokens) + self._head(rows)

    def decode(self, rows: int, cached: int) -> float:
        """Seconds of one more token for each of `rows` sequences with `cached` tokens."""
        dims = self.work.dims
        products = self._products("few" if rows <= FEW else "forward", self.work.matrices, rows)
        rest = dims.layers * self._cost("rest/decode").seconds(count.rest(dims, rows, self.b))
        return products + rest + self.attention("forward", rows, 1, cached + 1) + self._head(rows)

    def _head(self, rows: int) -> float:
        dims = self.work.dims
        cost = self._cost("product/head/few" if rows <= FEW else "product/head/forward")
        return cost.seconds(count.product(rows, dims.vocabulary or 0, dims.hidden))

    def generate(self, rows: int, prompt: int, new: int = NEW_TOKENS) -> float:
        """Seconds of answers of `new` tokens each to `rows` prompts of `prompt` tokens at once."""
        return self.prefill(rows, prompt) + sum(self.decode(rows, prompt + done) for done in range(new - 1))


@dataclass(frozen=True)
class Length:
    """How long a run is: items to train and to validate on, and what RUN.yaml says of its steps."""

    items: int
    validation_items: int
    epochs: float
    batch: int
    max_steps: int | None
    validate_every: float  # epochs

    @property
    def steps(self) -> int:
        steps = max(1, round(self.epochs * -(-self.items // self.batch)))
        return steps if self.max_steps is None else min(steps, self.max_steps)


@dataclass(frozen=True)
class Time:
    """What `plan --json` says under "time". Seconds are None where they are unknown, and `reason` says why."""

    calibrated: bool
    reason: str
    step_seconds: float | None = None  # of the items computed at once
    step_parts: dict[str, float] = field(default_factory=dict)
    tokens_per_second: float | None = None  # trained on
    hours_per_million_tokens: float | None = None
    evaluate: dict[str, float] = field(default_factory=dict)
    pack_seconds: float | None = None
    run: dict[str, float] | None = None  # at most: as if every item had `sequence` tokens


def speed_of(
    work: Work | None, settings: Mapping[str, Any], calibration: Calibration | None, reason: str
) -> tuple[Speed | None, str]:
    """The prices for a model in a plan's `settings`, or None and why there are none."""
    if calibration is None:
        return None, reason
    if work is None or work.dims.vocabulary is None:
        return None, "unknown, because the operations of this model can't be counted"
    weights, compute, b = settings["weights"], settings["compute"], settings["dtype_bytes"]
    if compute == "auto":  # fp32 where that was found to be the faster one: then bf16 was not measured
        compute = "bf16" if b == 2 and calibration.of("bf16") else "fp32"
    costs = calibration.of(compute)
    format_ = "nf4" if weights == "nf4-single" else weights
    if costs is None or f"product/{format_}/forward" not in costs:
        return None, f"unknown, because {weights} computed in {compute} was not calibrated on this machine"
    return Speed(work, weights, costs, 4 if compute == "fp32" else 2, settings.get("learned")), reason


def estimate(
    speed: Speed, reason: str, *, batch: int, sequence: int, recomputed: int, evaluation_batch: int,
    pack: float | None, length: Length | None = None,
) -> Time:  # fmt: skip
    """Everything that the plan says of time, for items of `sequence` tokens."""
    parts = speed.step_parts(batch, sequence, recomputed)
    step, tokens = sum(parts.values()), batch * sequence
    prompt = max(1, sequence - NEW_TOKENS)
    evaluation = {
        "prompt_tokens": prompt,
        "new_tokens": NEW_TOKENS,
        "items": evaluation_batch,
        "seconds": speed.generate(evaluation_batch, prompt),
        "prompt_tokens_per_second": evaluation_batch * prompt / speed.prefill(evaluation_batch, prompt),
        "decoded_tokens_per_second": evaluation_batch / speed.decode(evaluation_batch, sequence),
        "decoded_tokens_per_second_alone": 1 / speed.decode(1, sequence),
    }
    return Time(
        calibrated=True,
        reason=reason,
        step_seconds=step,
        step_parts=parts,
        tokens_per_second=tokens / step,
        hours_per_million_tokens=step / tokens * 1e6 / 3600,
        evaluate=evaluation,
        pack_seconds=pack,
        run=None if length is None else speed.run(length, batch, sequence, recomputed),
    )
