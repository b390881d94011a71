from __future__ import annotations

from halfbyte.data.units import joined


def test_what_hangs_together_has_the_smallest_name() -> None:
    assert joined(["c", "b", "a", "d"], ["x", "y", "x", "z"]) == ["a", "b", "a", "d"]
    assert joined(["c", "b", "b", "a"], ["x", "x", "y", "y"]) == ["a"] * 4  # through prompts and groups
    assert joined(["b", "a"], ["x", "y"]) == ["b", "a"]


def test_a_blank_prompt_and_one_that_all_share_join_nothing() -> None:
    assert joined(["b", "a", "c"], ["", " ", "x"]) == ["b", "a", "c"]
    assert joined(["b", "a"], ["x", "x"]) == ["b", "a"]
    assert joined([], []) == []


def test_the_order_does_not_matter_and_many_are_quick() -> None:
    groups, prompts = [f"g{k}" for k in range(20_000)], [f"p{k // 2 if k % 5 else k}" for k in range(20_000)]
    forward = dict(zip(groups, joined(groups, prompts), strict=True))
    assert dict(zip(groups[::-1], joined(groups[::-1], prompts[::-1]), strict=True)) == forward
    chain = joined([f"{k:05}" for k in range(20_000)], [f"p{(k + 1) // 2}" for k in range(20_000)])
    assert chain[:3] == ["00000", "00001", "00001"]
