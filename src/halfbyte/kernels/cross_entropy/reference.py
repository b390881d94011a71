"""Cross-entropy of logits and its gradient in plain PyTorch: the specification, and the fallback everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ending:
    """What a model does to its logits x after the product: x times `scale`, and with a `cap` (a soft cap, as in Gemma
    2: Gemma Team 2024, arXiv:2408.00118) cap * tanh(x / cap) of that. Both are above 0, so an order stays as it is."""

    scale: float = 1.0
    cap: float | None = None

    def __post_init__(self) -> None:
        if not self.scale > 0 or (self.cap is not None and not self.cap > 0):
            raise ValueError(f"a scale and a cap must be above 0, found {self.scale} and {self.cap}")

    def __call__(self, logits: Tensor) -> Tensor:
        scaled = logits if self.scale == 1 else logits * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap

    def slope(self, ended: Tensor) -> Tensor | float:
        """The derivative by the logits where the result is `ended`."""
        return self.scale if self.cap is None else self.scale * (1 - (ended / self.cap) ** 2)


PLAIN = Ending()


def cross_entropy(logits: Tensor, targets: Tensor, gradient: bool, ending: Ending = PLAIN) -> Tensor:
    """As `halfbyte.kernels.cross_entropy.cross_entropy`; arithmetic in fp32 (for fp64 in fp64)."""
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    ended = logits if ending == PLAIN else ending(logits.to(wide))
    log_shares = torch.log_softmax(ended, dim=-1, dtype=wide)
    losses = -log_shares.gather(1, targets[:, None]).squeeze(1)
    if gradient:
        grad = log_shares.exp_()
        grad[torch.arange(len(targets), device=targets.device), targets] -= 1.0
        logits.copy_(grad if ending == PLAIN else grad * ending.slope(ended))
    return losses.double()
