import pytest
import torch

from halfbyte.data.batches import (
    IGNORED,
    WIDTH,
    collate,
    micro_batches,
    order,
    pack,
    step_items,
    step_order,
    steps_per_epoch,
)
from halfbyte.data.encode import Item


def item(length, first=0):
    ids = list(range(first, first + length))
    return Item.of(ids, [t >= length // 2 for t in range(length)], length // 2, 0, "a:1")


@pytest.mark.parametrize("items", [1, 2, 17, 1000])
def test_order_is_a_permutation(items):
    assert sorted(order(items, 3, 1).tolist()) == list(range(items))


def test_order_depends_on_seed_and_epoch_alone():
    # frozen: a run that is resumed on another machine or with another NumPy goes on with the same items
    assert order(10, 0, 0).tolist() == FIRST
    assert order(10, 0, 1).tolist() != order(10, 0, 0).tolist() != order(10, 1, 0).tolist()
    before = order(500, 7, 2).tolist()
    order.cache_clear()
    assert order(500, 7, 2).tolist() == before
    assert sorted(order(5, 2**63 - 1, 0).tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError):
        order(10, 0, 0)[0] = 1


FIRST = [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]


@pytest.mark.parametrize(("items", "batch"), [(10, 4), (8, 4), (3, 16), (1, 1)])
def test_an_epoch_takes_every_item_once(items, batch):
    steps = steps_per_epoch(items, batch)
    for epoch in range(3):
        taken = [step_items(items, epoch * steps + step, batch, 5) for step in range(steps)]
        assert all(len(some) == batch for some in taken[:-1]) and 1 <= len(taken[-1]) <= batch
        assert [number for some in taken for number in some] == order(items, 5, epoch).tolist()


def test_a_step_is_a_function_of_its_number():
    items = [item(3 + number % 7, 100 * number) for number in range(23)]
    whole = [step_order(items, step, 5, 11) for step in range(10)]
    for step in reversed(range(10)):
        assert step_order(items, step, 5, 11) == whole[step]


def test_micro_batches_are_cut_by_length_and_hold_the_items_of_the_step():
    items = [item(3 + number % 7, 100 * number) for number in range(23)]
    for micro_batch in (1, 2, 3, 16):
        batches = [collate(some, 0) for some in micro_batches(step_order(items, 1, 5, 11), micro_batch)]
        assert [len(batch.input_ids) for batch in batches[:-1]] == [micro_batch] * (len(batches) - 1)
        lengths = [length for batch in batches for length in batch.attention_mask.sum(1).tolist()]
        assert lengths == sorted(lengths, reverse=True)
        first = sorted(ids for batch in batches for ids in batch.input_ids[:, 0].tolist())
        assert first == sorted(100 * number for number in step_items(23, 1, 5, 11))


def test_collate_pads_on_the_right_to_one_of_few_widths():
    batch = collate([item(4, 10), item(2, 20)], pad_id=99)
    assert batch.input_ids.shape == (2, WIDTH)
    assert batch.input_ids[:, :5].tolist() == [[10, 11, 12, 13, 99], [20, 21, 99, 99, 99]]
    assert batch.attention_mask.sum(1).tolist() == [4, 2] and batch.attention_mask[1, :2].tolist() == [1, 1]
    assert batch.labels[:, :5].tolist() == [
        [IGNORED, IGNORED, 12, 13, IGNORED],
        [IGNORED, 21, IGNORED, IGNORED, IGNORED],
    ]
    assert {batch.input_ids.dtype, batch.attention_mask.dtype, batch.labels.dtype} == {torch.int64}
    assert collate([item(WIDTH), item(WIDTH + 1)], pad_id=0).input_ids.shape == (2, 2 * WIDTH)
    assert collate([item(5)], pad_id=0).input_ids.shape == (1, 5)


def test_a_learned_token_that_equals_the_padding_is_learned():
    batch = collate([Item.of([1, 2, 0], [False, False, True], 2, 0, "a:1"), item(4)], pad_id=0)
    assert batch.labels[0, :4].tolist() == [IGNORED, IGNORED, 0, IGNORED]


def test_pack_lays_items_end_to_end_and_learns_no_first_token():
    batch = pack([item(5, 100), item(3, 200), item(2, 300)], pad_id=9)
    ids = [*range(100, 105), *range(200, 203), 300, 301]
    assert batch.input_ids.shape == (1, WIDTH) and batch.attention_mask.all()
    assert batch.input_ids[0].tolist() == [*ids, *[9] * 6]
    assert batch.positions[0].tolist() == [*range(5), *range(3), *range(2), *range(6)]
    learned = [102, 103, 104, 201, 202, 301]
    assert [label for label in batch.labels[0].tolist() if label != IGNORED] == learned
    everything = Item.of([1, 2], [True, True], 0, 0, "a:1")
    assert pack([everything] * 8, 0).labels[0].tolist() == [IGNORED, 2] * 8  # the row is full: nothing is filled


def test_pack_of_one_item_is_that_item_alone():
    one, other = pack([item(5)], 0), collate([item(5)], 0)
    assert one.positions is None and torch.equal(one.input_ids, other.input_ids)


def test_packed_is_never_more_than_padded():
    """What the plan counts for padded items is a bound."""
    for lengths in ([5, 5, 5], [16] * 7, [17, 16, 16], [83, 34, 50, 41], [1, 1]):
        some = [item(length) for length in lengths]
        assert pack(some, 0).input_ids.numel() <= collate(some, 0).input_ids.numel()
