"""Phases take turns in processes of their own, and everybody does the same work."""

from __future__ import annotations

import time

import pytest

from benchmarks import bench, common, compute, decode, limits, load, peers, shapes, step, turns
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


def echoing():
    case = yield {}
    while True:
        case = yield {"twice": 2 * case["number"]}


def test_phases_open_one_after_another_and_a_first_turn_is_apart():
    here = f"{__name__}:counting"
    with turns.working({"a": (here, {"start": 1}), "b": (here, {"start": 5})}) as workers:
        assert [worker.opened for worker in workers.values()] == [{"first": 1}, {"first": 5}]
        outcomes = turns.by_turns(workers, 2)
    assert outcomes["a"] == turns.Outcome({"count": 2}, [{"count": 3}, {"count": 4}])
    assert outcomes["b"] == turns.Outcome({"count": 6}, [{"count": 7}, {"count": 8}])


def test_a_turn_is_told_its_case():
    with turns.working({"a": (f"{__name__}:echoing", {})}) as workers:
        assert turns.by_turns(workers, 1, case={"number": 4})["a"].turns == [{"twice": 8}]
        assert workers["a"].alive
    assert not workers["a"].alive


@pytest.mark.parametrize(("lengths", "counted"), [((9, 2, 2, 2), 3), ((9, 4, 9, 9), 2), ((9, 30, 9, 9), 1)])
def test_rounds_end_with_their_time_but_one_always_counts(monkeypatch, lengths, counted):
    now = [0.0]
    monkeypatch.setattr(common.time, "perf_counter", lambda: now[0])
    found = []
    for turn in common.rounds_within(3, 12.0):
        found.append(turn)
        now[0] += lengths[turn]
    assert found == [0, *range(1, counted + 1)]


def sleeping():
    yield {}
    time.sleep(60)
    yield {}


def test_an_error_ends_a_worker_in_the_midst_of_its_turn():
    with pytest.raises(KeyboardInterrupt), turns.working({"a": (f"{__name__}:sleeping", {})}) as workers:
        workers["a"]._process.stdin.write("{}\n")
        workers["a"]._process.stdin.flush()
        raise KeyboardInterrupt
    assert not workers["a"].alive


def test_a_phase_that_fails_says_why():
    with turns.working({"a": (f"{__name__}:failing", {})}) as workers:
        with pytest.raises(RuntimeError, match="ValueError: the reason"):
            turns.by_turns(workers, 1)
        assert not workers["a"].alive


def test_a_folder_with_another_shape_is_refused(tiny):
    with pytest.raises(ValueError, match="another shape than 1b"), shapes.checkpoints("1b", tiny):
        pass


@pytest.mark.parametrize("quantised", [True, False])
def test_the_peer_is_as_loaded_after_each_case(tiny, quantised):
    session = peers.Session(str(tiny), quantised)
    before = {name: (p.dtype, p.shape, p.detach().clone()) for name, p in session.net.named_parameters()}
    case = {"do": "step", "rank": 4, "targets": "all", "recompute": True, "ids": step.tokens()}
    with session.meter:
        recomputed, plain = (session.turn(case | {"recompute": which}) for which in (True, False))
        assert recomputed["loss"] == plain["loss"]  # a fresh adapter each
        assert session.turn(case | {"recompute": False})["loss"] < plain["loss"]
        asked = {"do": "decode", "rank": 4, "targets": "attention", "prompts": decode.prompts(1), "new_tokens": 2}
        assert session.turn(asked)["tokens_per_second"] > 0
    after = dict(peers.as_loaded(session.net, compute.dtype()).named_parameters())
    assert after.keys() == before.keys()
    for name, (dtype, shape, values) in before.items():
        assert after[name].dtype == dtype and not after[name].requires_grad, name
        if dtype.is_floating_point:  # bitsandbytes repacks the codes for decoding
            assert after[name].shape == shape and after[name].equal(values), name


def test_work_that_differs_is_refused(tiny, tmp_path):
    run = bench.Bench("tiny", tiny, 1, 1.0, tmp_path)
    turn = {"seconds": 1.0}
    outcomes = {who: turns.Outcome({"loss": loss}, [turn]) for who, loss in (("halfbyte", 6.0), ("peer", 6.1))}
    with pytest.raises(RuntimeError, match="the first losses differ"):
        step.rows(run, "a case", outcomes, 0)


def test_products_are_counted_as_often_as_they_occur():
    model = shapes.SHAPES["8b"]
    quantised = sum(rows * columns * count for (rows, columns), count in limits.product_counts("8b").items())
    assert quantised == 6_979_321_856
    assert limits.flops(limits.product_counts("8b"), 512) == 2 * 512 * quantised
    figures = {"linears_forward_seconds": 4.0, "linears_backward_seconds": 5.0, "head_forward_seconds": 1.0,
               "head_backward_seconds": 2.0}  # fmt: skip
    assert limits.step_seconds(figures, model["num_hidden_layers"], 0) == 12
    assert limits.step_seconds(figures, model["num_hidden_layers"], 16) == 14
    head = 2 * 512 * 128256 * 4096
    assert limits.step_flops("8b", 512, 0) == 2 * (2 * 512 * quantised + head)
    assert limits.step_flops("8b", 512, 16) == 2.5 * 2 * 512 * quantised + 2 * head


def test_a_token_reads_packed_weights_head_and_norms(tiny):
    from halfbyte.model.build import load_model

    packed = [packed_bytes("nf4", *size) for size in shapes.linears(TINY).values()]
    linears = TINY["num_hidden_layers"] * sum(p.codes + p.absmax + p.nested_absmax for p in packed)
    norms = 2 * (2 * TINY["num_hidden_layers"] + 1) * TINY["hidden_size"]
    head = 2 * TINY["vocab_size"] * TINY["hidden_size"]
    assert limits.bytes_per_token(load_model(str(tiny / "nf4")).net) == linears + norms + head


def test_loading_reads_the_whole_file_from_where_it_says(tiny):
    disk = load.disk(str(tiny), ["warm"])
    assert next(disk)["file_bytes"] == (tiny / "bf16" / "model.safetensors").stat().st_size
    figures = next(disk)
    assert figures["read_warm_from_disk"] == 0 < figures["write_seconds"]
    disk.close()
    assert next(load.opened(str(tiny)))["growth_bytes"] < 1e8
    phase = load.pack(str(tiny), ["cold"])
    next(phase)
    assert next(phase)["cold_seconds"] > 0 and not (tiny / "packed again").exists()
    phase.close()


def test_the_planner_recomputes_as_few_layers_as_fit(tiny):
    assert step.planned_layers(tiny, 4, "all", 12_000_000_000) == 0
    assert step.planned_layers(tiny, 4, "all", 1_000_000) == TINY["num_hidden_layers"]
