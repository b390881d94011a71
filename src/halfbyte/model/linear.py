"""A linear layer whose weight is frozen, packed or not, with its LoRA pair beside it.

    y = x W^T + bias + scaling * dropout(x) A^T B^T          (LoRA, Hu et al. 2021, arXiv:2106.09685)

Method: one autograd function for the whole sum, on the products of `halfbyte.kernels`. Where the native one runs, it
never holds more than a part of the decoded weight, and the LoRA pair is some more steps of its contraction. What is
kept for backward is the input x, the small product h = dropout(x) A^T, and the packed weight, which is there anyway.

Trade-off: the weight is decoded two times a step (three with recomputation). Rejected: a plain `F.linear` over the
dequantised weight, because autograd then keeps every layer's 16-bit copy until the backward pass, and the 4-bit model
takes more memory than the 16-bit one.

Legend: T tokens, I in-features, O out-features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from halfbyte import kernels
from halfbyte.config import AdapterConfig
from halfbyte.errors import CheckpointError
from halfbyte.kernels.packed import Int8Weight, NF4Weight
from halfbyte.kernels.product.reference import FrozenWeight, decode
from halfbyte.model import recompute


class _QuantLinearFunction(torch.autograd.Function):
    """`narrow` is the LoRA pair in x's dtype, A [R, I] and scaling * B [O, R]; gradients go to the fp32 pair."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        weight: FrozenWeight,
        bias: Tensor | None,
        lora_A: Tensor | None,
        lora_B: Tensor | None,
        narrow: tuple[Tensor, Tensor] | None,
        scaling: float,
        dropout: float,
        int8: bool,
        bring: Callable[[], None] | None,
    ) -> Tensor:
        h_TR = keep_TI = None
        if narrow is not None:
            if dropout > 0:
                keep_TI = torch.rand(x_TI.shape, device=x_TI.device) >= dropout
            h_TR = kernels.linear_small(_dropped(x_TI, keep_TI, dropout), narrow[0])
        kept = (x_TI, h_TR, keep_TI) if narrow is not None else (None, None, None)
        ctx.save_for_backward(*kept)
        ctx.weight, ctx.narrow, ctx.scaling, ctx.dropout, ctx.int8 = weight, narrow, scaling, dropout, int8
        ctx.bring = bring
        if any(ctx.needs_input_grad) and recompute.ends_with(sum(tensor is not None for tensor in kept)):
            return x_TI.new_empty(1).expand(len(x_TI), weight.shape[0])  # nobody will read it
        pair = None if narrow is None or h_TR is None else (h_TR, narrow[1])
        if recompute.follows(x_TI):
            return recompute.once(lambda: (kernels.linear(x_TI, weight, bias, pair, int8=int8),))[0]
        return kernels.linear(x_TI, weight, bias, pair, int8=int8)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TO,) = gradients
        x_TI, h_TR, keep_TI = ctx.saved_tensors
        grad_x = grad_A = grad_B = pair = None
        if ctx.narrow is not None:
            narrow_A, narrow_B = ctx.narrow
            grad_h = kernels.matmul_small(grad_TO, narrow_B)
            grad_B = kernels.matmul_small(grad_TO.T, h_TR).float().mul_(ctx.scaling)
            grad_A = kernels.matmul_small(grad_h.T, _dropped(x_TI, keep_TI, ctx.dropout)).float()
            pair = (grad_h, narrow_A) if keep_TI is None else None
        if ctx.needs_input_grad[0]:
            if ctx.bring is not None:
                ctx.bring()
            grad_x = kernels.linear_transposed(grad_TO, ctx.weight, pair, int8=ctx.int8)
            if keep_TI is not None:
                grad_x += _dropped(kernels.matmul_small(grad_h, narrow_A), keep_TI, ctx.dropout)
        return grad_x, None, None, grad_A, grad_B, None, None, None, None, None


def _linear(
    x_TI: Tensor, weight: FrozenWeight, bias: Tensor | None, lora: tuple[Tensor | None, Tensor | None],
    narrow: tuple[Tensor, Tensor] | None, scaling: float, dropout: float, int8: bool,
    bring: Callable[[], None] | None = None,
) -> Tensor:  # fmt: skip
    """The sum; where no gradient will be asked for, without autograd, which costs a decoded token several
    microseconds a layer. `bring` is called before the backward pass reads the weight, if it does not stay there."""
    if torch.is_grad_enabled() or dropout > 0:
        return _QuantLinearFunction.apply(  # type: ignore[no-untyped-call,no-any-return]
            x_TI, weight, bias, *lora, narrow, scaling, dropout, int8, bring
        )
    if narrow is None:
        return kernels.linear(x_TI, weight, bias, int8=int8)
    return kernels.adapted(x_TI, weight, bias, narrow, int8=int8)


def _dropped(x: Tensor, keep: Tensor | None, dropout: float) -> Tensor:
    return x if keep is None else x * keep / (1 - dropout)


class FrozenLinear(nn.Linear):
    """A linear layer without adapter whose weight [O, I] never changes: the output head."""

    @classmethod
    def from_base(cls, linear: nn.Linear) -> FrozenLinear:
        """Share the weight and the bias of `linear`."""
        made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        return made

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        x = input.reshape(-1, self.in_features)
        y = _linear(x, self.weight.detach(), bias, (None, None), None, 1.0, 0.0, False)
        return y.view(*input.shape[:-1], self.out_features)


class QuantLinear(nn.Module):
    """Stands where an `nn.Linear` stood; its weight never changes, its adapter (if it has one) is what is trained.

    `weight` is a packed weight or a dense [O, I] tensor; `bias` [O] or None, frozen, in the compute dtype.
    `lora_A` [R, I] and `lora_B` [O, R] are fp32 parameters, or None. Inputs are [..., I] in the compute dtype.
    `home` is the weight where it always lies, `frozen` that which is multiplied: another one only where it is streamed
    (`halfbyte.model.stream`).
    `int8`: many rows are multiplied with the packed weight as bytes, in both directions (kernels/product_int8).
    """

    bias: Tensor | None
    lora_A: nn.Parameter | None
    lora_B: nn.Parameter | None
    # How often an adapter may have changed, in all layers of all models: as long as it stays, whoever holds what
    # `narrow` returned need not ask every layer again. An assignment to lora_A alone does not count: see `set_adapter`.
    changes = 0

    def __init__(self, weight: FrozenWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.settle(weight)
        self.out_features, self.in_features = int(weight.shape[0]), int(weight.shape[1])
        self.register_buffer("bias", bias, persistent=False)
        self.register_parameter("lora_A", None)
        self.register_parameter("lora_B", None)
        self.scaling, self.dropout = 1.0, 0.0
        self.int8 = False
        self._narrow: tuple[Tensor, Tensor] | None = None

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
        self._forget()

    def forward(self, x: Tensor) -> Tensor:
        # From the dictionaries: nn.Module finds parameters by a slow detour, which decoding takes 700 times a token.
        bias, own = self._buffers["bias"], self._parameters
        y = _linear(
            x.reshape(-1, self.in_features),
            self.frozen,
            None if bias is None else bias.to(x.dtype),
            (own["lora_A"], own["lora_B"]),
            self.narrow(x.dtype),
            self.scaling,
            self.dropout if self.training else 0.0,
            self.int8,
            self._bring,
        )
        return y.view(*x.shape[:-1], self.out_features)

    def parts(self, dtype: torch.dtype) -> kernels.Layer:
        """Weight, bias and LoRA pair for inputs in `dtype`, without gradients."""
        bias = self._buffers["bias"]
        return kernels.Layer(self.frozen, None if bias is None else bias.to(dtype), self.narrow(dtype))

    def narrow(self, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """A and scaling * B in `dtype`; None without an adapter. Kept only where nothing can change it unseen: in eval
        mode, without gradients, until the mode is set again."""
        a, b = self._parameters["lora_A"], self._parameters["lora_B"]
        if a is None or b is None:
            return None
        changing = self.training or torch.is_grad_enabled()
        if changing:
            self._forget()
        elif self._narrow is not None and self._narrow[1].dtype == dtype:
            return self._narrow
        with torch.inference_mode(False), torch.no_grad():  # what inference mode makes could not be trained with
            made = (a.detach().to(dtype), (b.detach() * self.scaling).to(dtype))
        self._narrow = None if changing else made
        return made

    def train(self, mode: bool = True) -> QuantLinear:
        self._forget()
        return super().train(mode)

    def _forget(self) -> None:
        self._narrow = None
        QuantLinear.changes += 1

    @property
    def frozen(self) -> FrozenWeight:
        """The weight, which is there from now on until that of another layer is asked for."""
        if self._bring is not None:
            self._bring()
        return self._in_use

    def settle(
        self, home: FrozenWeight, in_use: FrozenWeight | None = None, bring: Callable[[], None] | None = None
    ) -> None:
        """From here on the weight lies in `home`, and if it is streamed, in `in_use` after each call of `bring`."""
        self.home, self._in_use, self._bring = home, home if in_use is None else in_use, bring

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
        return self._in_use.device

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
        kind = self.home.weights if isinstance(self.home, (NF4Weight, Int8Weight)) else str(self.home.dtype)
        rank = 0 if self.lora_A is None else self.lora_A.shape[0]
        return f"{self.in_features}, {self.out_features}, weight={kind}" + (f", rank={rank}" if rank else "")
