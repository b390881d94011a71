"""The bytes that a model really holds, counted over its tensors: where they are at home, if they are streamed."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from halfbyte.kernels.packed import Int8Weight, NF4Weight
from halfbyte.model.adapter import quant_linears


def held_bytes(net: nn.Module) -> dict[str, int]:
    """Bytes by part: `weights` (codes, and all that is not packed), `constants` (absmax, or scales), `adapter`.

    A tensor that stands in several places (a tied head) counts once. Buffers that come from the checkpoint are weights
    like parameters; those that are computed (rotary frequencies) and the code tables, which all layers share, are none.
    """
    weights: list[Tensor] = []
    constants: list[Tensor] = []
    adapter: list[Tensor] = []
    for layer in quant_linears(net).values():
        frozen = layer.home
        if isinstance(frozen, NF4Weight):
            weights.append(frozen.codes)
            constants += [frozen.absmax] + ([] if frozen.nested_absmax is None else [frozen.nested_absmax])
        elif isinstance(frozen, Int8Weight):
            weights.append(frozen.codes)
            constants.append(frozen.scale)
        else:
            weights.append(frozen)
        weights += [] if layer.bias is None else [layer.bias]
        adapter += [matrix for matrix in (layer.lora_A, layer.lora_B) if matrix is not None]
    own = {matrix.data_ptr() for matrix in adapter}
    weights += [parameter for parameter in net.parameters() if parameter.data_ptr() not in own]
    weights += _stored_buffers(net)
    return {"weights": _bytes(weights), "constants": _bytes(constants), "adapter": _bytes(adapter)}


def _stored_buffers(net: nn.Module) -> list[Tensor]:
    """The buffers that a checkpoint holds: a router's corrections (DeepSeek), a layer's scale (Gemma 4)."""
    return [
        buffer
        for module in net.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    ]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors, each place in memory once: a part that begins where the whole does adds nothing to it."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        sizes[tensor.data_ptr()] = max(tensor.nbytes, sizes.get(tensor.data_ptr(), 0))
    return sum(sizes.values())
