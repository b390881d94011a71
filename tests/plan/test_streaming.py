"""Bases that are larger than the card: when they are streamed, what of them stays there, and what that costs."""

from __future__ import annotations

import pytest

from halfbyte.plan.activations import (
    ShapeInfo,
    layer_peak_bytes_per_token,
    recomputed_bytes_per_token,
    saved_bytes_per_token,
    shape_info,
)
from halfbyte.plan.catalogue import find
from halfbyte.plan.inventory import take_inventory
from halfbyte.plan.ladder import Plan, plan_model
from halfbyte.plan.streaming import LINK, streaming
from halfbyte.plan.weighing import gb

MATRICES = {  # of a layer of Llama 3.1 8B
    "q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096),
    "gate": (14336, 4096), "up": (14336, 4096), "down": (4096, 14336),
}  # fmt: skip


def llama(device: str, **asked: object) -> Plan:
    return plan_model("llama-3.1-8b", device=device, **asked)  # type: ignore[arg-type]


def test_a_layer_is_counted_by_hand() -> None:
    numbers = sum(rows * columns for rows, columns in MATRICES.values())
    nested = sum(-(-rows * columns // 64 // 256) for rows, columns in MATRICES.values())
    found = streaming(take_inventory("llama-3.1-8b"), "nf4")
    assert found is not None and found.layers == 32 and found.weights == 32 * numbers
    assert found.host_bytes == 32 * (numbers // 2 + numbers // 64 + 4 * nested)  # of these shapes all is aligned
    assert found.slot_bytes == found.host_bytes // 16
    assert found.away_bytes == found.host_bytes + 2 * 128256 * 4096  # the embedding is no head here
    assert found.seconds == found.host_bytes / LINK
    assert found.tokens_per_tflops * 2 * found.weights * LINK / 1e12 == pytest.approx(found.host_bytes)


def test_a_tied_embedding_stays_on_the_card() -> None:
    found = streaming(take_inventory("llama-3.2-1b"), "bf16")
    assert found is not None and found.away_bytes == found.host_bytes == 2 * found.weights


def test_auto_streams_where_one_item_would_not_fit_and_not_before() -> None:
    asked = {"sequence": 1024, "rank": 16}
    whole = llama("24GB", **asked, recompute=32, stream="off")
    need = whole.phases["tune"].peak_bytes
    assert need is not None
    assert llama(f"{need}", **asked).settings["stream"] == "off"
    less = llama(f"{need - 1}", **asked)
    assert less.settings["stream"] == "on" and less.fit["fits"]
    assert llama(f"{need - 1}", **asked, stream="off").fit["fits"] is False
    assert llama("24GB", **asked, stream="on").settings["stream"] == "on"
    many = llama("9GB", sequence=1024, batch=8)  # a lower batch fits, which costs less than the link
    assert many.settings["stream"] == "off" and many.fit["fits"] is False


def test_what_is_on_the_card_and_what_is_said() -> None:
    plan, whole = llama("4GB", sequence=512), llama("4GB", sequence=512, stream="off")
    parts = plan.phases["tune"].parts
    away, slots = plan.streaming["away_bytes"], plan.streaming["slot_bytes"]
    assert parts["slots"] == slots and parts["weights"] == (whole.phases["tune"].parts["weights"] or 0) - away
    assert plan.phases["open"].parts["slots"] == slots
    assert plan.fit["fits"] and whole.fit["fits"] is False
    (said,) = [reason for reason in plan.reasons if reason.startswith("stream: ")]
    assert "32 layers, 3.60 GB in pinned memory" in said and "144 ms a pass" in said
    assert whole.streaming == {} and not any(reason.startswith("stream: ") for reason in whole.reasons)


def test_a_processor_streams_nothing() -> None:
    plan = plan_model("llama-3.1-8b", memory="1GB")
    assert plan.settings["stream"] == "off" and "slots" not in plan.phases["tune"].parts
    assert plan_model("llama-3.1-8b", memory="1GB", stream="on").settings["stream"] == "off"


def test_memory_that_a_card_does_not_have_is_not_there() -> None:
    plan = llama("4GB", memory="24GB", sequence=512)
    assert plan.memory_bytes == 4 * 10**9 and plan.settings["stream"] == "on"
    assert llama("24GB", memory="4GB", sequence=512).memory_bytes == 4 * 10**9


def test_what_streaming_would_mend_is_said_for_each_phase() -> None:
    advice = llama("5GB", sequence=256, stream="off").fit["advice"]
    assert set(advice) == {"open", "evaluate", "tune"} and all("take stream: on" in text for text in advice.values())


def test_offloaded_activations_leave_two_layers_on_the_card() -> None:
    asked = {"sequence": 2048, "batch": 4}
    for layers, each in ((0, saved_bytes_per_token), (32, None)):
        plan = llama("80GB", **asked, recompute=layers, offload=True)
        whole = llama("80GB", **asked, recompute=layers)
        info = shape_info(find("llama-3.1-8b").config)
        kept = recomputed_bytes_per_token(info) if each is None else each(info, 2048, padded=True)
        saved = saved_bytes_per_token(info, 2048, padded=True)
        working = layer_peak_bytes_per_token(info, 2048)
        parts = plan.phases["tune"].parts
        assert (parts["activations"] or 0) + (parts["logits"] or 0) == max(
            4 * 2048 * (saved + kept + working) + (parts["logits"] or 0), _in_loss(info, kept, parts["logits"] or 0)
        )
        (said,) = [reason for reason in plan.reasons if reason.startswith("offload: ")]
        assert gb(4 * 2048 * 32 * kept) in said
        assert (plan.phases["tune"].peak_bytes or 0) < (whole.phases["tune"].peak_bytes or 0)
    assert plan_model("llama-3.1-8b", memory="80GB", offload=True).settings["offload_activations"] is False


def _in_loss(info: ShapeInfo, kept: int, logits: int) -> int:
    """Of the last layer what it keeps; the last norm's input and result; hidden states and their gradient."""
    tokens = 4 * 2048
    return tokens * kept + tokens * (4 * 4096 + 4) + tokens * 12 * 4096 + logits
