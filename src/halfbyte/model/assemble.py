"""Tensors put into transformers' model: its linear layers swapped, and the type that all of it computes in."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from halfbyte.checkpoint.skeleton import kept_in_fp32, linear_names
from halfbyte.errors import CheckpointError, ConfigError
from halfbyte.formats import COPIED_BYTES, Weights
from halfbyte.kernels import product_int8, torch_is_slow_in_bf16
from halfbyte.kernels.compute import Compute, choose_compute, compute_name
from halfbyte.kernels.product.cpu import FEW
from halfbyte.model.adapter import quant_linears
from halfbyte.model.embedding import FrozenEmbedding
from halfbyte.model.linear import FrozenLinear, QuantLinear
from halfbyte.model.stream import Streamer, stream_layers


def decoder_layers(net: nn.Module) -> list[Any]:
    """The layers that can be computed again in the backward pass, or streamed to a card."""
    return [module for module in net.modules() if isinstance(module, GradientCheckpointingLayer)]


def assemble(
    net: Any, state: dict[str, Any], device: torch.device, dtype: torch.dtype, *, stream: bool = False
) -> Streamer | None:
    """Put `state` (tensors by name; packed or dense) into the meta model `net`, which then computes in `dtype`.

    Every linear layer of the blocks becomes a QuantLinear, so that it can carry an adapter whatever its precision. Its
    weight and the vocabulary matrices stay as they are stored; norms, biases and all else become `dtype`.
    With `stream` the weights of the linear layers stay on the host, and what brings them is returned; so does an
    embedding that is no head, of which a pass reads some rows.
    """
    wide, as_stored = kept_in_fp32(net, dtype), _vocabulary(net)
    for name in linear_names(net):
        linear = net.get_submodule(name)
        weight, bias = state.pop(f"{name}.weight"), state.pop(f"{name}.bias", None)
        weight = weight if stream else weight.to(device)
        bias = bias.to(device, dtype) if bias is not None else None
        net.set_submodule(name, QuantLinear.from_base(linear, weight, bias))
    looked_up = _embedding_name(net) if stream and _apart(net, state) else ""
    for name, tensor in state.items():
        owner, _, last = name.rpartition(".")
        module = net.get_submodule(owner)
        cast = tensor.is_floating_point() and name not in wide and name not in as_stored
        if name != looked_up:
            tensor = tensor.to(device, dtype) if cast else tensor.to(device)
        if last in module._parameters:
            module._parameters[last] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[last] = tensor
    net.tie_weights()
    head = net.get_output_embeddings()
    if type(head) is nn.Linear:
        net.set_output_embeddings(FrozenLinear.from_base(head))
    for module in net.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device != device:
                module._buffers[name] = buffer.to(device)
    if (embedding := net.get_input_embeddings()).weight.dtype != dtype or looked_up:
        net.set_submodule(_embedding_name(net).removesuffix(".weight"), FrozenEmbedding.from_base(embedding, dtype))
    left = [n for n, p in [*net.named_parameters(), *net.named_buffers()] if p.device.type == "meta"]
    if left:
        raise CheckpointError(f"{len(left)} tensors of the model got no value", found=", ".join(left[:20]))
    return stream_layers(net, decoder_layers(net), device) if stream else None


def settle_compute(asked: str, device: torch.device, net: Any, state: dict[str, Any], weights: Weights) -> Compute:
    """The compute type for `net`. What would cost memory is not chosen unasked: weights that are neither linear layers
    nor vocabulary matrices (a mixture's experts) are multiplied by transformers' own code, in their own type; where
    torch is slow in bf16, in fp32 if they are small."""
    stored: torch.dtype = state[_embedding_name(net)].dtype
    chosen = choose_compute(asked, device, stored, weights, str(net.config.model_type))
    slow = chosen.dtype == torch.bfloat16 and torch_is_slow_in_bf16(device)
    if asked != "auto" or (chosen.dtype == stored and not slow):
        return chosen
    matrices = {f"{name}.weight" for name in linear_names(net)} | _vocabulary(net)
    left = [tensor for name, tensor in state.items() if name not in matrices]
    others, experts = sum(tensor.nbytes for tensor in left), sum(tensor.nbytes for tensor in left if tensor.ndim > 2)
    if slow and 0 < experts <= COPIED_BYTES:
        return Compute("fp32", f"torch multiplies {experts / 1e6:.1f} MB of the weights, and is slow in bf16 here")
    if slow and experts:
        what = f"torch multiplies {experts / 1e9:.1f} GB of the weights, slowly in this type"
        return Compute(compute_name(stored), f"{what}, but for fp32 they would be copied")
    if others <= COPIED_BYTES:
        return chosen
    return Compute(
        compute_name(stored),
        f"{others / 1e9:.1f} GB of weights that are no linear layers would be copied to {chosen.name}",
    )


def multiply_bytes(net: Any) -> Compute:
    """Let the layers of `net` multiply in int8. Raises ConfigError where none of them can."""
    layers = quant_linears(net).values()
    for layer in layers:
        layer.int8 = product_int8.fits(layer.home)
    count = sum(layer.int8 for layer in layers)
    if not count:
        raise ConfigError("no layer of this model can be multiplied in int8", where="compute",
                          found="no layer's in-features are a multiple of 64", do="use compute: auto")  # fmt: skip
    others = f"; in-features of the others are no multiple of 64: {len(layers) - count} in bf16"
    reason = f"as asked: {count} linear layers multiply more than {FEW} rows as bytes, all else is bf16"
    return Compute("int8", reason + (others if count < len(layers) else ""))


def _vocabulary(net: Any) -> set[str]:
    """The matrices that may stay in another type than the rest, by name: what FrozenEmbedding and FrozenLinear hold."""
    embedding, head = net.get_input_embeddings(), net.get_output_embeddings()
    if not FrozenEmbedding.fits(embedding) or type(head) is not nn.Linear:
        return set()
    return {f"{name}.weight" for name, module in net.named_modules() if module is embedding or module is head}


def _apart(net: Any, state: dict[str, Any]) -> bool:
    """Whether the embedding is looked up in and nothing else: no head, and no family's own way with it."""
    name = _embedding_name(net)
    others = [tensor for other, tensor in state.items() if other != name]
    return name in _vocabulary(net) and not any(tensor is state[name] for tensor in others)


def _embedding_name(net: Any) -> str:
    embedding = net.get_input_embeddings()
    return next(f"{name}.weight" for name, module in net.named_modules() if module is embedding)
