"""The parts of transformers' blocks that halfbyte computes itself: RMSNorm and the gated MLP.

Method: no list of families. A module that looks like such a part is tried: its own forward and ours get the same
random input, in fp32 and in bf16, and only if they agree is it replaced. On a card, where ours is Liger-Kernel's, their
gradients have to agree, too: its versions are not ours to test. So a family that was never heard of is
covered if it computes the same, and one that changes its mind in a later version of transformers is found out. What
looks like such a part and is not replaced is named with the reason, and runs unchanged.

Rejected: a table of class names, which is wrong as soon as a class changes and says nothing of new ones; assigning
into transformers' classes, which changes models that are not ours.

A replaced module has the children and parameters of the old one under the same names, so that adapters and checkpoints
find their keys.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfbyte import kernels
from halfbyte.kernels.choice import Choice
from halfbyte.kernels.fused import choose_parts, dtypes_of
from halfbyte.kernels.gate import ACTS, Act, gated, gated_halves
from halfbyte.kernels.norm import STYLES, Style, rms_norm
from halfbyte.model.linear import QuantLinear

# Rounding: outputs may differ by an ulp of bf16 and, in fp32, by what a sum in another order makes.
_CLOSE = {
    torch.bfloat16: (2**-7, 1e-5),
    torch.float16: (2**-10, 1e-6),
    torch.float32: (2e-6, 1e-6),
}  # relative, absolute
_EPS_NAMES = ("variance_epsilon", "eps", "epsilon")
_Fit = TypeVar("_Fit")
_ROWS, _WIDE, _NARROW = 5, 12, 6  # of the inputs and layers that an MLP is tried with


@dataclass(frozen=True)
class Replacement:
    """What became of the modules of one class. `reason` says why not, and is empty where they were replaced."""

    kind: str  # the class
    count: int
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.count} {self.kind}: " + (f"unchanged, {self.reason}" if self.reason else "replaced")


class RMSNorm(nn.Module):
    """`kernels.norm.rms_norm` as a module: [..., H] -> [..., H]."""

    weight: nn.Parameter

    def __init__(self, weight: nn.Parameter, eps: float, style: Style) -> None:
        super().__init__()
        self.register_parameter("weight", weight)
        self.eps, self.style = eps, style

    @classmethod
    def from_base(cls, norm: nn.Module, style: Style) -> RMSNorm:
        """What `norm` computes if `style` is its style. Raises ValueError for a module that is no RMSNorm."""
        eps, weight = _epsilon(norm), norm._parameters.get("weight")
        if eps is None or weight is None:
            raise ValueError(f"{type(norm).__name__} has no weight or no epsilon")
        return cls(weight, eps, style)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self._parameters["weight"], self.eps, self.style)  # type: ignore[arg-type]  # it has one

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}, {self.style}"


@dataclass(frozen=True)
class Layout:
    """The names of a gated MLP's layers. A fused projection is both `gate` and `up`; `gate_first` is then its order."""

    gate: str
    up: str
    down: str
    act: Act
    gate_first: bool = True


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)), or with the two in one layer: [..., H] -> [..., H]."""

    def __init__(self, children: dict[str, nn.Module], layout: Layout) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.layout = layout

    @classmethod
    def from_base(cls, mlp: nn.Module, layout: Layout) -> GatedMLP:
        """What `mlp` computes if `layout` is its layout. Raises ValueError when it has no such layers."""
        children = dict(mlp.named_children())
        missing = {layout.gate, layout.up, layout.down} - set(children)
        if missing:
            raise ValueError(f"{type(mlp).__name__} has no {', '.join(sorted(missing))}")
        return cls(children, layout)

    def forward(self, x: Tensor) -> Tensor:
        layers, layout = self._modules, self.layout
        gate, down = layers[layout.gate], layers[layout.down]
        assert gate is not None and down is not None
        if layout.up == layout.gate:
            return down(gated_halves(gate(x), layout.act, gate_first=layout.gate_first))  # type: ignore[no-any-return]
        up = layers[layout.up]
        assert up is not None
        if not torch.is_grad_enabled() and not self.training:
            made = self._at_once(x, gate, up, down)
            if made is not None:
                return made
        return down(gated(gate(x), up(x), layout.act))  # type: ignore[no-any-return]

    def _at_once(self, x: Tensor, *layers: nn.Module) -> Tensor | None:
        """The MLP in one native call, where there is one: for the few rows of decoding. Hooks of layers don't run."""
        gate, up, down = (layer.parts(x.dtype) if isinstance(layer, QuantLinear) else None for layer in layers)
        if gate is None or up is None or down is None:
            return None
        y = kernels.gated_mlp(x.reshape(-1, x.shape[-1]), gate, up, down, self.layout.act)
        return None if y is None else y.view(x.shape)

    def extra_repr(self) -> str:
        return self.layout.act


def replace_parts(net: nn.Module, device: torch.device) -> list[Replacement]:
    """Replace in `net` what can be replaced where native code or Liger-Kernel runs on `device`; a line for each class
    looked at."""
    found: dict[str, list[tuple[str, nn.Module]]] = {}
    for name, module in net.named_modules():
        if _looks_like_norm(module) or _looks_like_mlp(module):
            found.setdefault(type(module).__name__, []).append((name, module))
    choice = choose_parts(device)
    if choice.name == "reference":
        return [Replacement(kind, len(modules), choice.reason) for kind, modules in found.items()]
    trial = _Trial(device, dtypes_of(choice), choice.name == "gpu")
    return [_replace_class(net, kind, modules, trial, choice) for kind, modules in found.items()]


def _replace_class(
    net: nn.Module, kind: str, modules: list[tuple[str, nn.Module]], trial: _Trial, choice: Choice
) -> Replacement:
    """Replace the modules of one class, all or none. What is tried once for a class is tried again where
    instances differ in more than their weights."""
    made: dict[str, nn.Module] = {}
    tried: dict[Any, Style | Layout | None] = {}
    for name, module in modules:
        traits = _traits(module)
        if traits not in tried:
            tried[traits] = (_style_of if _looks_like_norm(module) else _layout_of)(module, trial)
        fit = tried[traits]
        if fit is None:
            return Replacement(kind, len(modules), "it computes something else")
        if reason := _uncovered(fit, choice):
            return Replacement(kind, len(modules), reason)
        made[name] = GatedMLP.from_base(module, fit) if isinstance(fit, Layout) else RMSNorm.from_base(module, fit)
    for name, module in made.items():
        net.set_submodule(name, module.train(net.get_submodule(name).training))
    return Replacement(kind, len(modules))


def _uncovered(fit: Style | Layout, choice: Choice) -> str:
    """Why Liger-Kernel has nothing for a part that computes what we know; empty if it has."""
    if choice.name != "gpu" or not isinstance(fit, Layout):
        return ""
    from halfbyte.kernels.gate import gpu

    fused = fit.gate == fit.up
    if gpu.covers(fit.act, fused=fused, gate_first=fit.gate_first):
        return ""
    return f"Liger-Kernel has no kernel for {fit.act} of {'a fused projection' if fused else 'two layers'}"


def _traits(module: nn.Module) -> tuple[Any, ...]:
    """All that tells instances of one class apart but their weights: plain attributes, and the children's kinds."""
    plain = {key: value for key, value in vars(module).items() if isinstance(value, (bool, int, float, str))}
    plain.pop("layer_idx", None)
    children = tuple((name, type(child).__name__) for name, child in module.named_children())
    return type(module), tuple(sorted(plain.items())), children


# ---- norms ----------------------------------------------------------------------------------------------------------


def _looks_like_norm(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    alone = not module._modules and not module._buffers and len(module._parameters) == 1
    normlike = "Norm" in type(module).__name__ and _epsilon(module) is not None
    return alone and normlike and not isinstance(module, RMSNorm) and weight is not None and weight.ndim == 1


def _epsilon(module: nn.Module) -> float | None:
    return next((value for name in _EPS_NAMES if isinstance(value := getattr(module, name, None), float)), None)


def _style_of(norm: nn.Module, trial: _Trial) -> Style | None:
    """The style in which `norm` computes what we compute."""
    if len(inspect.signature(norm.forward).parameters) != 1:  # those of hybrid models take a gate, too
        return None
    width = norm._parameters["weight"].shape[0]  # type: ignore[union-attr]  # `_looks_like_norm` saw it
    make = torch.Generator().manual_seed(0)
    x, weight = torch.randn(_ROWS, width, generator=make) * 3, torch.randn(width, generator=make)
    x, weight = x.to(trial.device), weight.to(trial.device)

    def error(style: Style) -> float:
        total = 0.0
        for dtype in trial.dtypes:
            theirs = _copied(norm)
            theirs._parameters = {"weight": nn.Parameter(weight.to(dtype), requires_grad=False)}
            total += trial.error(theirs, RMSNorm.from_base(theirs, style), x.to(dtype))
        return total

    return _least(error, STYLES)


# ---- gated MLPs -----------------------------------------------------------------------------------------------------


def _looks_like_mlp(module: nn.Module) -> bool:
    """Two or three QuantLinear layers, at most an activation beside them, and nothing of its own."""
    children = list(module.children())
    layers = [child for child in children if isinstance(child, QuantLinear)]
    others = [child for child in children if not isinstance(child, QuantLinear)]
    plain = not module._parameters and not module._buffers and not isinstance(module, GatedMLP)
    if not plain or len(layers) not in (2, 3) or len(others) > 1 or any(True for o in others for _ in o.children()):
        return False
    return bool(list(_layouts(module)))


def _layouts(module: nn.Module) -> Iterator[Layout]:
    """Every layout that the shapes of its layers allow."""
    layers = {name: child for name, child in module.named_children() if isinstance(child, QuantLinear)}
    for act, names in itertools.product(ACTS, itertools.permutations(layers)):
        first, down = layers[names[0]], layers[names[-1]]
        fused = len(names) == 2
        inner = first.out_features // 2 if fused else first.out_features
        if down.in_features != inner or down.out_features != first.in_features:
            continue
        if fused and first.out_features % 2 == 0:
            yield from (Layout(names[0], names[0], names[1], act, gate_first) for gate_first in (True, False))
        elif not fused and layers[names[1]].home.shape == first.home.shape:
            gate, up, last = names
            yield Layout(gate, up, last, act)


def _layout_of(mlp: nn.Module, trial: _Trial) -> Layout | None:
    """The layout in which `mlp` computes what we compute, tried with small layers in the place of its own."""
    dropout = any(isinstance(child, nn.Dropout) or "dropout" in name for name, child in mlp.named_modules())
    dropout = dropout or any("dropout" in key for key, value in vars(mlp).items() if value)
    if dropout or len(inspect.signature(mlp.forward).parameters) != 1:
        return None
    x = torch.randn(_ROWS, _NARROW, generator=torch.Generator().manual_seed(0)).to(trial.device) * 2

    def error(layout: Layout) -> float:
        total = 0.0
        for dtype in trial.dtypes:
            theirs = _copied(mlp)
            theirs._modules = {**mlp._modules, **_small_layers(layout, dtype, trial.device)}
            total += trial.error(theirs, GatedMLP.from_base(theirs, layout), x.to(dtype))
        return total

    return _least(error, _layouts(mlp))


def _small_layers(layout: Layout, dtype: torch.dtype, device: torch.device) -> dict[str, nn.Module]:
    """Random layers; down is the identity where it can be, so that an error of ours is not lost in a sum."""
    make = torch.Generator().manual_seed(1)
    layers: dict[str, nn.Module] = {}
    for name in dict.fromkeys((layout.gate, layout.up)):
        width = 2 * _WIDE if layout.gate == layout.up else _WIDE
        layers[name] = _Small(torch.randn(width, _NARROW, generator=make).to(device, dtype))
    return layers | {layout.down: _Small(torch.eye(_WIDE, dtype=dtype, device=device))}


class _Small(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


# ---- trying ---------------------------------------------------------------------------------------------------------


def _copied(module: nn.Module) -> nn.Module:
    """A module of the same class and attributes, in eval mode, whose children and parameters can be exchanged."""
    made = copy.copy(module)
    made.training = False
    return made


def _least(error: Callable[[_Fit], float], fits: Iterable[_Fit]) -> _Fit | None:
    """What fits best, or None if nothing does: styles that differ in one rounding may both be close enough."""
    errors = [(error(fit), fit) for fit in fits]
    least, best = min(errors, key=lambda pair: pair[0])
    return best if math.isfinite(least) else None


@dataclass(frozen=True)
class _Trial:
    """Where and in which types parts are tried, and whether their gradients are, too."""

    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    gradients: bool

    def error(self, theirs: Callable[[Tensor], Any], ours: Callable[[Tensor], Tensor], x: Tensor) -> float:
        """How far the two are apart on `x`: infinitely far if it is more than rounding, or another kind of result."""
        try:
            wanted, wanted_grad = self._run(theirs, x)
        except Exception:  # it wants other inputs than such a part gets: then it is none
            return math.inf
        try:
            got, got_grad = self._run(ours, x)
        except Exception:
            if not self.gradients:
                raise  # native code has no reason to
            return math.inf  # a card's compiler has many
        relative, absolute = _CLOSE[x.dtype]
        if (
            wanted_grad is not None and got_grad is not None
        ):  # its roundings are relative to the sums that it is made of
            bound = 2 * relative * float(wanted_grad.float().abs().max()) + absolute
            if not torch.allclose(got_grad.float(), wanted_grad.float(), rtol=relative, atol=bound):
                return math.inf
        if not isinstance(wanted, Tensor) or wanted.shape != got.shape or wanted.dtype != got.dtype:
            return math.inf
        got, wanted = got.float(), wanted.float()
        close = torch.allclose(got, wanted, rtol=relative, atol=absolute)
        return float((got - wanted).abs().mean()) if close else math.inf

    def _run(self, part: Callable[[Tensor], Any], x: Tensor) -> tuple[Any, Tensor | None]:
        """What `part` makes of `x`, and the gradient of `x`, if that is asked for."""
        if not self.gradients:
            with torch.no_grad():
                return part(x), None
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            made = part(leaf)
            weights = torch.linspace(-1, 1, made.numel(), device=x.device).view(made.shape).to(made.dtype)
            return made.detach(), torch.autograd.grad(made, leaf, weights)[0]
