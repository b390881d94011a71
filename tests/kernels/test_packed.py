from __future__ import annotations

import pytest
import torch

from halfbyte import kernels
from halfbyte.errors import CheckpointError
from halfbyte.formats import Weights
from halfbyte.kernels import Int8Weight, NF4Weight


def test_parts_that_do_not_fit_are_all_named() -> None:
    with pytest.raises(CheckpointError) as caught:
        NF4Weight((4, 64), torch.zeros(127, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8), None, 1.0)
    message = str(caught.value)
    assert "codes is torch.uint8 [127], not torch.uint8 [128]" in message
    assert "absmax is torch.uint8 [4], not torch.float32 [4]" in message
    assert "offset" in message
    with pytest.raises(CheckpointError, match=r"scale is torch\.float16"):
        Int8Weight((4, 8), torch.zeros(4, 8, dtype=torch.int8), torch.zeros(4, dtype=torch.float16))
    with pytest.raises(CheckpointError, match="not contiguous"):
        Int8Weight((8, 4), torch.zeros(4, 8, dtype=torch.int8).T, torch.zeros(8))
    with pytest.raises(CheckpointError, match="no weights"):
        Int8Weight((0, 4), torch.zeros(0, 4, dtype=torch.int8), torch.zeros(0))
    with pytest.raises(CheckpointError, match="scale lies on meta, codes on cpu"):
        Int8Weight((4, 8), torch.zeros(4, 8, dtype=torch.int8), torch.zeros(4, device="meta"))


@pytest.mark.parametrize("weights", ["nf4", "nf4-single", "int8"])
def test_moving_takes_every_part_along(weights: Weights) -> None:
    packed = kernels.quantise(torch.randn(8, 64), weights)
    moved = packed.to("meta")
    assert moved.device.type == "meta" and moved.nbytes == packed.nbytes and moved.weights == weights
