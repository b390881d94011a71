"""AdamW with moments in fp32 (torch's) or in 8 bits (bitsandbytes', Dettmers et al. 2022, arXiv:2110.02861).

In 8 bits a matrix of 4,096 numbers or more has a code a number and moment and an fp32 absmax a block of 256; a smaller
one stays in fp32. What they weigh is `formats.moment_bytes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from halfbyte.config import TuneConfig
from halfbyte.errors import MissingDependency

# The tensors of a matrix' state that are saved; the first one is there in each.
KEYS = {"adamw": ("exp_avg", "exp_avg_sq"), "adamw8bit": ("state1", "state2", "absmax1", "absmax2")}


def require(name: str) -> None:
    """Raises MissingDependency where the optimiser's library is not here."""
    if name != "adamw8bit":
        return
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingDependency("AdamW in 8 bits needs the library bitsandbytes", where="tune.optimiser",
                                found=str(error),
                                do="pip install bitsandbytes, or set tune.optimiser: adamw") from None  # fmt: skip


def make(parameters: Iterable[nn.Parameter], options: TuneConfig) -> Any:
    """The optimiser of `options`; raises MissingDependency."""
    settings: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimiser == "adamw":
        made = list(parameters)
        # On a CPU half the time, and nothing stands beside a matrix meanwhile; on a card torch knows what is best.
        fused = all(p.device.type == "cpu" for p in made) or None
        return torch.optim.AdamW(made, fused=fused, **settings)
    require(options.optimiser)
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(parameters, **settings)


def reserve(optimiser: Any, parameters: Sequence[nn.Parameter]) -> None:
    """Make room for the moments. torch's are all in one block: matrix by matrix they would lie in the heap, and the
    holes that they leave there when training is done are not given back while anything beside them lives."""
    if not isinstance(optimiser, torch.optim.AdamW):
        for number, p in enumerate(parameters):
            optimiser.init_state(optimiser.param_groups[0], p, 0, number)
        return
    block = torch.zeros(2 * sum(p.numel() for p in parameters), device=parameters[0].device)
    places = iter(torch.split(block, [p.numel() for p in parameters for _ in range(2)]))
    for p in parameters:
        optimiser.state[p] = {"step": torch.tensor(0.0), "exp_avg": next(places).view_as(p),
                              "exp_avg_sq": next(places).view_as(p)}  # fmt: skip


def set_step(moments: dict[str, Any], step: int) -> None:
    """Say how many steps a matrix has had, as its optimiser counts them."""
    moments["step"] = torch.tensor(float(step)) if isinstance(moments["step"], torch.Tensor) else step
