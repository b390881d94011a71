from __future__ import annotations

import itertools

import pytest

from halfbyte.config import TuneConfig
from halfbyte.tune.schedule import learning_rate, total_steps


def test_steps_count_fractions_of_epochs_and_stop_at_max_steps() -> None:
    assert total_steps(TuneConfig(epochs=2), 10) == 20
    assert total_steps(TuneConfig(epochs=0.25), 10) == 3
    assert total_steps(TuneConfig(epochs=0.001), 10) == 1
    assert total_steps(TuneConfig(epochs=3, max_steps=7), 10) == 7
    assert total_steps(TuneConfig(epochs=1.1), 10) == 11


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_linearly_and_ends_as_the_schedule_says(schedule: str) -> None:
    options = TuneConfig(learning_rate=1.0, warmup=0.1, schedule=schedule)
    rates = [learning_rate(options, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == (1.0 if schedule == "constant" else pytest.approx(0, abs=0.02))


def test_halfway_through_the_cosine_is_half_the_rate() -> None:
    options = TuneConfig(learning_rate=1.0, warmup=0.0)
    assert learning_rate(options, 50, 100) == pytest.approx(0.5)
