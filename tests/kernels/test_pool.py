"""Blocks of memory are used again, and no more of them are held than were in use at once."""

from __future__ import annotations

import pytest
import torch

from halfbyte.kernels.pool import LARGE, Pool

ROWS = LARGE // 1024  # of 1024 bytes


def test_a_block_is_used_again_when_nobody_holds_it_any_more() -> None:
    pool = Pool()
    first = pool.empty((ROWS, 512), torch.bfloat16)
    place, view = first.data_ptr(), first[1:].view(-1)
    del first
    assert pool.free_bytes == 0 and pool.empty((ROWS, 256), torch.float32).data_ptr() != place
    pool.clear()
    view.fill_(1)
    del view
    again = pool.empty((ROWS, 256), torch.float32)
    assert again.data_ptr() == place and pool.free_bytes == 0 and again.shape == (ROWS, 256)


def test_a_new_size_drives_out_what_was_given_up_longest_ago_once_there_is_no_room_beside_it() -> None:
    pool = Pool()
    old, young = pool.empty((ROWS, 2048), torch.uint8), pool.empty((ROWS, 4096), torch.uint8)
    del old
    del young  # so six times LARGE were in use at once
    large = pool.empty((ROWS, 3072), torch.uint8)
    assert pool.free_bytes == 0 and large.nbytes == 3 * LARGE  # both went: whole blocks go
    del large
    kept = pool.empty((ROWS, 2048), torch.uint8)
    assert pool.free_bytes == 3 * LARGE  # there is room for both
    other = pool.empty((ROWS, 1536), torch.uint8)
    assert pool.free_bytes == 0 and kept.nbytes + other.nbytes < 4 * LARGE  # and none for a third beside them


def test_no_more_is_held_than_was_in_use_since_it_was_cleared() -> None:
    pool, make = Pool(), torch.Generator().manual_seed(0)
    most, tensors = 0, [pool.empty((ROWS, 8192), torch.uint8)]
    tensors.clear()
    pool.clear()
    for _ in range(300):
        size = 1024 * int(torch.randint(1, 9, (), generator=make))
        tensors.append(pool.empty((ROWS, size), torch.uint8))
        most = max(most, sum(tensor.nbytes for tensor in tensors))
        assert sum(tensor.nbytes for tensor in tensors) + pool.free_bytes <= most
        while torch.rand((), generator=make) < 0.5 and tensors:
            tensors.pop(int(torch.randint(len(tensors), (), generator=make)))


def test_sizes_that_come_again_in_each_step_are_mapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, mapped = Pool(), []
    real = pool._map
    monkeypatch.setattr(pool, "_map", lambda size: mapped.append(size) or real(size))

    def step() -> None:
        kept = [pool.empty((ROWS, size), torch.uint8) for _ in range(4) for size in (1024, 4096, 1024)]
        while kept:  # as a backward pass does: gradients of another size while what was kept goes
            gradient = pool.empty((ROWS, 2048), torch.uint8)
            del kept[-3:], gradient

    step(), step()
    first = len(mapped)
    step()
    assert len(mapped) - first <= 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_like_keeps_the_order_of_the_elements(dtype: torch.dtype) -> None:
    pool = Pool()
    for tensor in (torch.empty(8, ROWS, 128, dtype=dtype).transpose(0, 1), torch.empty(4, 8, dtype=dtype).T):
        made, wanted = pool.empty_like(tensor), torch.empty_like(tensor)
        assert (made.shape, made.stride(), made.dtype) == (wanted.shape, wanted.stride(), dtype)
    wide = torch.empty(ROWS, 2048, dtype=dtype)[:, :1024]
    assert pool.empty_like(wide).stride() == torch.empty_like(wide).stride()


def test_what_is_given_is_part_of_no_view_and_may_be_written_to() -> None:
    made = Pool().empty((ROWS, 512), torch.bfloat16)
    assert not made._is_view()
    made.fill_(2).requires_grad_()
    made.sum().backward()
    assert made.grad is not None and bool((made.grad == 1).all())


def test_what_the_system_does_not_have_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("none left")

    pool = Pool()
    pool.empty((ROWS, 1024), torch.uint8)
    monkeypatch.setattr("halfbyte.kernels.pool.mmap.mmap", refused)
    with pytest.raises(MemoryError, match=f"{2048 * ROWS:,} bytes"):
        pool.empty((ROWS, 2048), torch.uint8)
    assert pool.free_bytes == 0  # what was free was given back before


def test_what_lasts_lies_in_a_block_where_glibc_would_put_it_into_its_heap(monkeypatch) -> None:
    pool, cpu = Pool(), torch.device("cpu")
    taken = list[int]()
    monkeypatch.setattr(pool, "_map", lambda size: taken.append(size) or Pool._map(pool, size))
    for rows in (ROWS - 1, ROWS, 4 * ROWS - 1, 4 * ROWS):  # of less than 256 kB, from there on, and 1 MB
        made = pool.lasting((rows, 512), torch.bfloat16, cpu)
        assert made.shape == (rows, 512) and made.dtype == torch.bfloat16
    assert taken == [LARGE, 4 * LARGE - 1024]
    assert pool.lasting((ROWS, 512), torch.bfloat16, torch.device("meta")).is_meta
