"""The choice of micro-batch and recomputation, and which memory it may take."""

import pytest

from halfbyte.plan.activations import shape_info, training_bytes
from halfbyte.plan.budget import choose, room_beside
from halfbyte.plan.catalogue import find
from halfbyte.plan.native import Native

GB = 10**9
NATIVE = Native(True, True, True, True, "as told")


def _choose(**options):
    return choose(shape_info(find("llama-3.1-8b").config), **{"batch": 16, "longest_tokens": 1024, **options})


def test_with_plenty_of_memory_nothing_is_recomputed_and_tokens_are_capped():
    choice = _choose(memory_bytes=200 * GB)
    assert (choice.micro_batch, choice.recompute, choice.fits) == (4, 0, True)
    assert _choose(memory_bytes=200 * GB, longest_tokens=128).micro_batch == 16
    assert _choose(memory_bytes=200 * GB, longest_tokens=128, batch=2).micro_batch == 2
    assert _choose(memory_bytes=200 * GB, longest_tokens=9000).micro_batch == 1


def test_what_is_advised_is_enough():
    from halfbyte.options import parse_bytes
    from halfbyte.plan.budget import enough

    for size in (1, 999_999, 10**6, 350_826_000, 5_000_000_001, 10**13 + 1):
        assert size <= parse_bytes(enough(size)) < size + 10**6


def test_the_micro_batch_is_even():
    choice = _choose(memory_bytes=200 * GB, longest_tokens=128, batch=20)
    assert choice.micro_batch == 10  # two passes, as with 16


def test_memory_is_spared_by_smaller_batches_first_then_by_recomputation():
    choices = [_choose(memory_bytes=size * GB) for size in (40, 16, 8, 4, 2, 1)]
    batches, layers = [c.micro_batch for c in choices], [c.recompute for c in choices]
    assert batches == sorted(batches, reverse=True) and layers == sorted(layers)
    assert all(c.recompute == 0 or c.micro_batch == 1 for c in choices) and layers[-2] > 0
    info = shape_info(find("llama-3.1-8b").config)
    for choice, size in zip(choices, (40, 16, 8, 4, 2, 1), strict=True):
        assert choice.reason and (not choice.fits or
               sum(training_bytes(info, choice.micro_batch, 1024, choice.recompute)) <= size * GB)  # fmt: skip


def test_what_does_not_fit_says_so():
    choice = _choose(memory_bytes=GB, fixed_bytes=GB - 10**7)
    assert (choice.micro_batch, choice.recompute, choice.fits) == (1, 32, False)
    assert choice.reason.startswith("does not fit")


def test_an_architecture_that_is_not_modelled_gets_the_careful_choice():
    info = shape_info({"model_type": "novel", "num_hidden_layers": 7})
    choice = choose(info, batch=16, longest_tokens=512, memory_bytes=100 * GB)
    assert (choice.micro_batch, choice.recompute, choice.fits) == (1, 7, None)
    assert "'novel' are not modelled" in choice.reason
    with pytest.raises(ValueError, match="novel"):
        training_bytes(info, 1, 512, 0)


def test_what_is_asked_for_is_kept_and_the_rest_is_chosen():
    assert _choose(memory_bytes=200 * GB, micro_batch=2).micro_batch == 2
    few = _choose(memory_bytes=8 * GB, micro_batch=2)
    assert few.micro_batch == 2 and 0 < few.recompute < 32 and few.fits
    layers = _choose(memory_bytes=8 * GB, recompute=32)
    assert layers.recompute == 32 and layers.micro_batch > 1 and layers.fits
    both = _choose(memory_bytes=2 * GB, micro_batch=3, recompute=1)
    assert (both.micro_batch, both.recompute, both.fits) == (3, 1, False)


def test_the_mapped_weights_are_part_of_the_memory():
    info = shape_info(find("llama-3.1-8b").config, native=NATIVE)
    options = {"batch": 1, "longest_tokens": 512, "fixed_bytes": GB}
    beside = choose(info, memory_bytes=int(7.5 * GB), mapped_bytes=int(5.7 * GB), **options)
    alone = choose(info, memory_bytes=int(1.8 * GB), **options)
    assert beside == alone and 0 < beside.recompute < 32
    assert choose(info, memory_bytes=12 * GB, mapped_bytes=int(5.7 * GB), **options).recompute == 0


def test_weights_that_leave_no_room_are_left_out_and_the_reason_says_so():
    options = {"batch": 1, "longest_tokens": 1024, "memory_bytes": 6 * GB, "mapped_bytes": 6 * GB}
    choice = _choose(**options)
    assert choice.fits and choice.recompute == _choose(memory_bytes=6 * GB, batch=1).recompute
    assert "6.00 GB of mapped weights are not counted" in choice.reason and "read from disk again" in choice.reason
    nothing = _choose(**options | {"memory_bytes": GB // 10})
    assert nothing.fits is False and "mapped" not in nothing.reason


def test_a_wish_that_would_push_the_weights_out_does_not_fit():
    """Recomputing more layers would leave them their place."""
    choice = _choose(batch=1, memory_bytes=10 * GB, mapped_bytes=6 * GB, recompute=0)
    assert choice.fits is False and choice.recompute == 0
    assert _choose(batch=1, memory_bytes=10 * GB, mapped_bytes=6 * GB).fits


@pytest.mark.parametrize(("memory", "size", "beside"), [(10, 3, True), (8, 1, True), (7, 6, False), (1, 0, False)])
def test_the_room_is_beside_the_weights_if_the_least_has_place_there(memory, size, beside):
    room = room_beside(memory, 1, 6, 1)
    assert (room.size, room.beside) == (size, beside)
    assert bool(room.reason) == (memory == 7)
