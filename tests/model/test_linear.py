"""QuantLinear against plain PyTorch on the dequantised weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from halfbyte import kernels
from halfbyte.config import AdapterConfig
from halfbyte.errors import CheckpointError
from halfbyte.formats import QUANTISED, Weights
from halfbyte.kernels.product.reference import scratch
from halfbyte.model.linear import FrozenLinear, QuantLinear

ROWS, COLUMNS, TOKENS = 48, 100, 7  # columns: no multiple of the blocksize


def layer(weights: str, *, bias: bool = True, dropout: float = 0.0) -> QuantLinear:
    torch.manual_seed(0)
    dense = torch.randn(ROWS, COLUMNS, dtype=torch.bfloat16) * 0.1
    frozen = kernels.quantise(dense, weights) if weights in QUANTISED else dense  # type: ignore[arg-type]
    made = QuantLinear(frozen, torch.randn(ROWS) if bias else None)
    made.add_adapter(AdapterConfig(rank=4, alpha=8, dropout=dropout))
    assert made.lora_B is not None
    nn.init.normal_(made.lora_B, std=0.1)
    return made


def plain(module: QuantLinear, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Output, adapter leaves and input leaf of the same sum in float32 by autograd."""
    weight = module.fuse(torch.float32).weight.detach() if module.lora_A is None else base_weight(module)
    a, b = (p.detach().clone().requires_grad_() for p in (module.lora_A, module.lora_B) if p is not None)
    leaf = x.detach().float().requires_grad_()
    y = leaf @ weight.T + module.scaling * (leaf @ a.T) @ b.T
    if module.bias is not None:
        y = y + module.bias.float()
    return y, (a, b), leaf


def base_weight(module: QuantLinear) -> Tensor:
    if isinstance(module.frozen, Tensor):
        return module.frozen.float()
    return kernels.dequantise(module.frozen, torch.float32)


@pytest.mark.parametrize("weights", ["nf4", "nf4-single", "int8", "bf16"])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_equal_a_plain_float32_model(weights: Weights, bias: bool) -> None:
    module = layer(weights, bias=bias)
    x = torch.randn(2, TOKENS, COLUMNS)
    wanted, (a, b), leaf = plain(module, x)
    grad = torch.randn_like(wanted)
    wanted.backward(grad)

    mine = x.clone().requires_grad_()
    y = module(mine)
    y.backward(grad)

    assert module.lora_A is not None and module.lora_B is not None
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.grad, leaf.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.lora_A.grad, a.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.lora_B.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_bf16_error_is_at_most_twice_that_of_bf16_pytorch() -> None:
    module = layer("nf4", bias=False)
    x = torch.randn(64, COLUMNS)
    exact, (a, b), leaf = plain(module, x)
    grad = torch.randn_like(exact)
    exact.backward(grad)

    weight = kernels.dequantise(module.frozen, torch.bfloat16)  # type: ignore[arg-type]
    x16 = x.bfloat16().requires_grad_()
    a16, b16 = (t.detach().clone().requires_grad_() for t in (a, b))
    y16 = x16 @ weight.T + module.scaling * (x16 @ a16.bfloat16().T) @ b16.bfloat16().T
    y16.backward(grad.bfloat16())

    mine = x.bfloat16().requires_grad_()
    y = module(mine)
    y.backward(grad.bfloat16())

    def error(value: Tensor | None, of: Tensor | None) -> float:
        assert value is not None and of is not None
        return float((value.float() - of.float()).detach().norm())

    assert module.lora_A is not None and module.lora_B is not None
    assert error(y, exact) <= 2 * error(y16, exact)
    assert error(mine.grad, leaf.grad) <= 2 * error(x16.grad, leaf.grad)
    assert error(module.lora_A.grad, a.grad) <= 2 * error(a16.grad, a.grad)
    assert error(module.lora_B.grad, b.grad) <= 2 * error(b16.grad, b.grad)


def test_dropout_uses_the_same_mask_forward_and_backward() -> None:
    module = layer("nf4", bias=False, dropout=0.5).train()
    assert module.lora_A is not None and module.lora_B is not None
    x = torch.randn(TOKENS, COLUMNS, requires_grad=True)
    torch.manual_seed(3)
    y = module(x)
    y.sum().backward()
    torch.manual_seed(3)
    keep = torch.rand(x.shape) >= 0.5
    leaf = x.detach().clone().requires_grad_()
    a, b = module.lora_A.detach().clone().requires_grad_(), module.lora_B.detach().clone().requires_grad_()
    wanted = leaf @ base_weight(module).T + module.scaling * ((leaf * keep * 2) @ a.T) @ b.T
    wanted.sum().backward()
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, leaf.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.lora_A.grad, a.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.lora_B.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_nothing_as_large_as_the_weight_is_kept_for_backward() -> None:
    module = layer("nf4", bias=False)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(torch.randn(TOKENS, COLUMNS, requires_grad=True))
    assert sum(kept) < ROWS * COLUMNS


def test_the_scratch_buffer_is_shared_between_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFBYTE_KERNELS", "reference")
    scratch.clear()
    first, second = layer("nf4"), layer("int8")
    for module in (first, second):
        module(torch.randn(TOKENS, COLUMNS))
    assert [buffer.numel() for buffer in scratch._buffers.values()] == [ROWS * COLUMNS]


def test_a_scratch_buffer_of_inference_mode_serves_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFBYTE_KERNELS", "reference")  # whose writes autograd sees
    scratch.clear()
    module = layer("nf4")
    with torch.inference_mode():
        module(torch.randn(TOKENS, COLUMNS))
    module(torch.randn(TOKENS, COLUMNS, requires_grad=True)).sum().backward()
    scratch.clear()


def test_reading_the_weight_behind_the_layers_back_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not supported"):
        _ = layer("nf4").weight


def test_fuse_gives_back_a_plain_layer() -> None:
    module = layer("nf4")
    x = torch.randn(TOKENS, COLUMNS)
    torch.testing.assert_close(module.fuse(torch.float32)(x), module(x), rtol=1e-5, atol=1e-5)


def test_from_base_refuses_a_weight_of_another_shape() -> None:
    with pytest.raises(ValueError, match="48"):
        QuantLinear.from_base(nn.Linear(3, 4), torch.zeros(48, 100), None)


def test_the_narrow_pair_follows_the_adapter() -> None:
    module = layer("nf4")
    assert module.lora_A is not None and module.lora_B is not None
    x = torch.randn(TOKENS, COLUMNS)

    def agrees() -> bool:
        return torch.allclose(module(x), plain(module, x)[0], rtol=1e-4, atol=1e-4)

    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)  # which leaves the version counter alone
    for _ in range(2):
        module(x).square().sum().backward()
        optimiser.step()
        assert agrees()
    module.eval()
    module(x).square().sum().backward()  # in eval mode, too, a step may follow
    optimiser.step()
    with torch.no_grad():
        assert agrees() and module.narrow(torch.float32) is module.narrow(torch.float32)
        module.set_adapter(torch.randn(2, COLUMNS), torch.randn(ROWS, 2), 1.0)
        assert agrees()
        module.lora_B.data.zero_()
        module.train()
        assert agrees()


def test_a_pair_first_used_in_inference_mode_serves_training() -> None:
    module = layer("nf4")
    with torch.inference_mode():
        module(torch.randn(TOKENS, COLUMNS))
    module(torch.randn(TOKENS, COLUMNS, requires_grad=True)).sum().backward()
    assert module.lora_A is not None and module.lora_A.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_linear_shares_its_weight_and_computes_in_the_inputs_dtype(dtype: torch.dtype) -> None:
    linear = nn.Linear(COLUMNS, ROWS, dtype=torch.bfloat16)
    frozen = FrozenLinear.from_base(linear)
    assert frozen.weight is linear.weight
    x = torch.randn(3, 50, COLUMNS, dtype=dtype, requires_grad=True)
    y = frozen(x)
    y.backward(torch.ones_like(y))
    assert y.dtype == dtype and x.grad is not None
    wanted = x.detach().double() @ linear.weight.double().T + linear.bias.double()
    tight = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(y.double(), wanted, rtol=tight, atol=tight)
    torch.testing.assert_close(x.grad[0, 0].double(), linear.weight.double().sum(0), rtol=tight, atol=tight)


def test_a_layer_that_has_been_used_can_be_copied() -> None:
    module = layer("nf4")
    x = torch.randn(TOKENS, COLUMNS)
    assert torch.equal(copy.deepcopy(module)(x), module(x)) and torch.equal(copy.deepcopy(module)(x), module(x))


def test_a_16_bit_bias_serves_fp32_inputs() -> None:
    module, x = layer("nf4"), torch.randn(TOKENS, COLUMNS)
    assert module.bias is not None
    module.bias = module.bias.bfloat16()
    torch.testing.assert_close(module(x), plain(module, x)[0], rtol=1e-4, atol=1e-4)
