"""The learning rate at each step: a linear warm-up from zero, then cosine, linear or constant."""

from __future__ import annotations

import math

from halfbyte.config import TuneConfig


def total_steps(options: TuneConfig, steps_per_epoch: int) -> int:
    """Optimiser steps of a run: all epochs (a fraction counts), or `max_steps` if that comes earlier; at least one."""
    steps = max(1, math.ceil(options.epochs * steps_per_epoch - 1e-9))
    return steps if options.max_steps is None else min(steps, options.max_steps)


def learning_rate(options: TuneConfig, step: int, steps: int) -> float:
    """The rate of step `step` (counted from 0) of `steps`.

    Cosine (Loshchilov and Hutter 2017, arXiv:1608.03983) and linear fall to zero at the end of the run.
    """
    warmup = math.ceil(options.warmup * steps)
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if options.schedule == "cosine":
        return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if options.schedule == "linear":
        return options.learning_rate * (1 - done)
    return options.learning_rate
