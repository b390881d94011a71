"""A linear layer whose weight is frozen, packed or not, with its LoRA pair beside it.

    y = x W^T + bias + scaling * dropout(x) A^T B^T          (LoRA, Hu et al. 2021, arXiv:2106.09685)

Method: one autograd function for the whole sum. The weight is dequantised into a scratch buffer that all layers share,
multiplied, and forgotten; the backward pass dequantises it again. What is kept for backward is the input x, the small
product h = dropout(x) A^T, and the packed weight itself, which is there anyway.

Trade-off: the weight is decoded two times a step (three with recomputation). Rejected: a plain `F.linear` over the
dequantised weight, because autograd then keeps every layer's 16-bit copy until the backward pass, and the 4-bit model
takes more memory than the 16-bit one.

Legend: T tokens, I in-features, O out-features, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfbyte import kernels
from halfbyte.config import AdapterConfig
from halfbyte.errors import CheckpointError
from halfbyte.kernels.packed import Int8Weight, NF4Weight, PackedWeight

FrozenWeight = PackedWeight | Tensor


class _Scratch:
    """One buffer a device and dtype, as large as the largest weight decoded so far."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def take(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        size = shape[0] * shape[1]
        buffer = self._buffers.get((device, dtype))
        if buffer is None or buffer.numel() < size:
            with torch.inference_mode(False):  # a buffer born in inference mode could not be written while training
                buffer = torch.empty(size, dtype=dtype, device=device)
            self._buffers[device, dtype] = buffer
        return buffer[:size].view(shape)

    def clear(self) -> None:
        self._buffers.clear()


scratch = _Scratch()


def decode(weight: FrozenWeight, dtype: torch.dtype) -> Tensor:
    """`weight` as a dense [O, I] tensor. A packed one lands in the scratch buffer: use it before the next call."""
    if isinstance(weight, Tensor):
        return weight if weight.dtype == dtype else weight.to(dtype)
    return kernels.dequantise(weight, dtype, out=scratch.take(weight.shape, dtype, weight.codes.device))


class _QuantLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        weight: FrozenWeight,
        bias: Tensor | None,
        lora_A: Tensor | None,
        lora_B: Tensor | None,
        scaling: float,
        dropout: float,
    ) -> Tensor:
        y_TO = F.linear(x_TI, decode(weight, x_TI.dtype), bias)
        h_TR = keep_TI = None
        if lora_A is not None and lora_B is not None:
            if dropout > 0:
                keep_TI = torch.rand(x_TI.shape, device=x_TI.device) >= dropout
            h_TR = F.linear(_dropped(x_TI, keep_TI, dropout), lora_A.to(x_TI.dtype))
            y_TO.addmm_(h_TR, lora_B.to(x_TI.dtype).T, alpha=scaling)
        ctx.save_for_backward(x_TI if lora_A is not None else None, h_TR, keep_TI, lora_A, lora_B)
        ctx.weight, ctx.dtype, ctx.scaling, ctx.dropout = weight, x_TI.dtype, scaling, dropout
        return y_TO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TO,) = gradients
        x_TI, h_TR, keep_TI, lora_A, lora_B = ctx.saved_tensors
        grad_x = grad_A = grad_B = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_TO @ decode(ctx.weight, ctx.dtype)
        if lora_A is not None:
            grad_h = (grad_TO @ lora_B.to(ctx.dtype)).mul_(ctx.scaling)
            grad_B = (grad_TO.T @ h_TR).mul_(ctx.scaling).to(lora_B.dtype)
            grad_A = (grad_h.T @ _dropped(x_TI, keep_TI, ctx.dropout)).to(lora_A.dtype)
            if grad_x is not None and keep_TI is None:
                grad_x.addmm_(grad_h, lora_A.to(ctx.dtype))
            elif grad_x is not None:
                grad_x += _dropped(grad_h @ lora_A.to(ctx.dtype), keep_TI, ctx.dropout)
        return grad_x, None, None, grad_A, grad_B, None, None


def _dropped(x: Tensor, keep: Tensor | None, dropout: float) -> Tensor:
    return x if keep is None else x * keep / (1 - dropout)


class QuantLinear(nn.Module):
    """Stands where an `nn.Linear` stood; its weight never changes, its adapter (if it has one) is what is trained.

    `weight` is a packed weight or a dense [O, I] tensor; `bias` [O] or None, frozen, in the compute dtype.
    `lora_A` [R, I] and `lora_B` [O, R] are fp32 parameters, or None. Inputs are [..., I] in the compute dtype.
    """

    bias: Tensor | None
    lora_A: nn.Parameter | None
    lora_B: nn.Parameter | None

    def __init__(self, weight: FrozenWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.frozen = weight
        self.out_features, self.in_features = int(weight.shape[0]), int(weight.shape[1])
        self.register_buffer("bias", bias, persistent=False)
        self.register_parameter("lora_A", None)
        self.register_parameter("lora_B", None)
        self.scaling, self.dropout = 1.0, 0.0

    @classmethod
    def from_base(cls, linear: nn.Linear, weight: FrozenWeight, bias: Tensor | None) -> QuantLinear:
        """Wrap what `linear` (usually on the meta device) stands for. Raises ValueError when the shapes differ."""
        if tuple(weight.shape) != (linear.out_features, linear.in_features):
            raise ValueError(f"weight {tuple(weight.shape)} for a layer {linear.out_features} x {linear.in_features}")
        return cls(weight, bias)

    def add_adapter(self, config: AdapterConfig, generator: torch.Generator | None = None) -> None:
        """Give the layer a fresh LoRA pair: A uniform as in the paper's code (Kaiming, a = sqrt 5), B zero."""
        device = self.device
        bound = self.in_features**-0.5
        a = torch.empty(config.rank, self.in_features).uniform_(-bound, bound, generator=generator)
        b = torch.zeros(self.out_features, config.rank)
        self.set_adapter(a.to(device), b.to(device), config.scaling, config.dropout)

    def set_adapter(self, lora_A: Tensor, lora_B: Tensor, scaling: float, dropout: float = 0.0) -> None:
        """Put a LoRA pair in place: A [R, I], B [O, R]; kept in fp32."""
        self.lora_A = nn.Parameter(lora_A.float().contiguous())
        self.lora_B = nn.Parameter(lora_B.float().contiguous())
        self.scaling, self.dropout = scaling, dropout

    def forward(self, x: Tensor) -> Tensor:
        y = _QuantLinearFunction.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, self.in_features),
            self.frozen,
            self.bias,
            self.lora_A,
            self.lora_B,
            self.scaling,
            self.dropout if self.training else 0.0,
        )
        return y.view(*x.shape[:-1], self.out_features)  # type: ignore[no-any-return]

    @property
    def weight(self) -> Tensor:
        """Some architectures read their layers' weights themselves; what they compute would leave the adapter out."""
        raise CheckpointError(
            "this architecture multiplies with a layer's weight behind the layer's back, which is not supported",
            found=f"a linear layer of {self.out_features} x {self.in_features}",
            do="take a model of another family",
        )

    @property
    def device(self) -> torch.device:
        return self.frozen.device if isinstance(self.frozen, Tensor) else self.frozen.codes.device

    def fuse(self, dtype: torch.dtype) -> nn.Linear:
        """The plain layer that computes the same: the dequantised weight with the adapter added, as `dtype`."""
        weight = decode(self.frozen, torch.float32).clone()
        if self.lora_A is not None and self.lora_B is not None:
            weight.addmm_(self.lora_B.detach(), self.lora_A.detach(), alpha=self.scaling)
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.to(dtype), requires_grad=False)
        return linear

    def extra_repr(self) -> str:
        kind = self.frozen.weights if isinstance(self.frozen, (NF4Weight, Int8Weight)) else str(self.frozen.dtype)
        rank = 0 if self.lora_A is None else self.lora_A.shape[0]
        return f"{self.in_features}, {self.out_features}, weight={kind}" + (f", rank={rank}" if rank else "")
