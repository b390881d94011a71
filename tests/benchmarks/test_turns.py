"""Phases take turns in processes of their own, and everybody does the same work."""

from __future__ import annotations

import pytest

from benchmarks import decode, evaluate, limits, load, shapes, step, turns
from halfbyte.formats import packed_bytes

TINY = shapes.SHAPES["tiny"]


def counting(start):
    """A phase: counts from `start` and prints, which nobody must take for its figures."""
    print("noise")
    yield {"first": start}
    while True:
        start += 1
        print("more noise")
        yield {"count": start}


def failing():
    yield {}
    raise ValueError("the reason")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    with shapes.checkpoints("tiny", place / "model") as folder:
        yield folder


@pytest.mark.parametrize("together", [True, False])
def test_phases_report_before_the_turns_and_in_each(together):
    here = f"{__name__}:counting"
    outcomes = turns.race({"a": (here, {"start": 1}), "b": (here, {"start": 5})}, 2, together=together)
    assert outcomes["a"] == turns.Outcome({"first": 1}, [{"count": 2}, {"count": 3}])
    assert outcomes["b"] == turns.Outcome({"first": 5}, [{"count": 6}, {"count": 7}])


def test_a_phase_that_fails_says_why():
    with pytest.raises(RuntimeError, match="ValueError: the reason"):
        turns.race({"a": (f"{__name__}:failing", {})}, 1)


def test_a_folder_with_another_shape_is_refused(tiny):
    with pytest.raises(ValueError, match="another shape than 1b"), shapes.checkpoints("1b", tiny):
        pass


@pytest.mark.parametrize("recompute", [True, False])
def test_halfbyte_and_the_peer_take_the_same_step(tiny, recompute):
    layers = TINY["num_hidden_layers"] if recompute else 0
    shared = {"folder": str(tiny), "rank": 4, "targets": "all", "warm_up": 2}
    ours, peer = step.ours(recompute=layers, **shared), step.peer(recompute=recompute, **shared)
    first, theirs = next(ours), next(peer)
    assert first["recomputed_layers"] == layers
    assert first["first_loss"] == pytest.approx(theirs["first_loss"], rel=1e-3)
    for phase in (ours, peer):
        figures = next(phase)
        assert figures["seconds"] > 0 and figures["peak_bytes"] > 1e7
        phase.close()


def test_products_are_counted_as_often_as_they_occur():
    model = shapes.SHAPES["8b"]
    quantised = sum(rows * columns * count for (rows, columns), count in limits.product_counts("8b").items())
    assert quantised == 6_979_321_856
    assert limits.flops(limits.product_counts("8b"), 512) == 2 * 512 * quantised
    figures = {"linears_forward_seconds": 4.0, "linears_backward_seconds": 5.0, "head_forward_seconds": 1.0,
               "head_backward_seconds": 2.0}  # fmt: skip
    assert limits.step_seconds(figures, model["num_hidden_layers"], 0) == 12
    assert limits.step_seconds(figures, model["num_hidden_layers"], 16) == 14


def test_a_token_reads_packed_weights_head_and_norms(tiny):
    from halfbyte.model.build import load_model

    packed = [packed_bytes("nf4", *size) for size in shapes.linears(TINY).values()]
    linears = TINY["num_hidden_layers"] * sum(p.codes + p.absmax + p.nested_absmax for p in packed)
    norms = 2 * (2 * TINY["num_hidden_layers"] + 1) * TINY["hidden_size"]
    head = 2 * TINY["vocab_size"] * TINY["hidden_size"]
    assert limits.bytes_per_token(load_model(str(tiny / "nf4")).net) == linears + norms + head


def test_decoding_counts_what_was_asked_for(tiny):
    for phase in (
        decode.ours(str(tiny), adapter=True, batch=2, new_tokens=4),
        decode.peer(str(tiny), adapter=True, new_tokens=4),
    ):
        assert next(phase)["first_token_seconds"] > 0
        assert next(phase)["tokens_per_second"] > 0
        phase.close()


def test_both_evaluate_as_many_items_as_asked_for(tiny):
    for phase in (evaluate.ours(str(tiny), limit=5), evaluate.peer(str(tiny), limit=5)):
        next(phase)
        figures = next(phase)
        assert figures["items_per_second"] == pytest.approx(5 / figures["seconds"])
        assert 0 <= figures["within_tolerance"] <= 1
        phase.close()


def test_loading_reads_the_whole_file_from_where_it_says(tiny):
    disk = load.disk(str(tiny))
    assert next(disk)["file_bytes"] == (tiny / "bf16" / "model.safetensors").stat().st_size
    figures = next(disk)
    assert figures["read_warm_from_disk"] == 0 < figures["write_seconds"]
    disk.close()
    assert next(load.opened(str(tiny)))["growth_bytes"] < 1e8
    phase = load.pack(str(tiny))
    next(phase)
    assert next(phase)["cold_seconds"] > 0 and not (tiny / "packed again").exists()
    phase.close()


def test_the_planner_recomputes_as_few_layers_as_fit(tiny):
    assert step.planned_layers(tiny, 4, "all", 12_000_000_000) == 0
    assert step.planned_layers(tiny, 4, "all", 1_000_000) == TINY["num_hidden_layers"]
