"""Adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, both ways.

A key is `base_model.model.<module>.lora_A.weight` [rank, in] or `...lora_B.weight` [out, rank]. What PEFT can say and
this model does not compute (DoRA, trained biases, modules saved whole, ...) is refused by name, never left out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from halfbyte import durable
from halfbyte.config import AdapterConfig
from halfbyte.errors import CheckpointError, nearest
from halfbyte.model.linear import QuantLinear

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")

# Settings of PEFT's LoraConfig that change what is computed; anything but these values is refused.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),  # the others change the base's weights, too
}


def quant_linears(net: nn.Module) -> dict[str, QuantLinear]:
    """The layers that can carry an adapter, by module name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, QuantLinear)}


def adapter_tensors(net: nn.Module) -> dict[str, Tensor]:
    """The adapter under PEFT's keys."""
    tensors: dict[str, Tensor] = {}
    for name, layer in quant_linears(net).items():
        if layer.lora_A is not None and layer.lora_B is not None:
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach().cpu().contiguous()
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach().cpu().contiguous()
    return tensors


def save_adapter(net: nn.Module, folder: Path, config: AdapterConfig, base: str, fingerprint: str) -> None:
    """Write the adapter so that PEFT loads it. `base` names the base model, `fingerprint` is that of its checkpoint.

    Each file is written beside its place, flushed and renamed, so that an interruption leaves the old one whole.
    Raises OSError, SafetensorError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / WEIGHTS
    part = durable.part_of(file)
    part.unlink(missing_ok=True)  # of a run that was killed: it may be another name of a checkpoint's file
    save_file(adapter_tensors(net), part, metadata={"format": "pt", "halfbyte_base_fingerprint": fingerprint})
    mask = os.umask(0)
    os.umask(mask)
    part.chmod(0o666 & ~mask)  # safetensors writes for the owner alone
    durable.put(part, file)
    save_config(net, folder, config, base)


def save_config(net: nn.Module, folder: Path, config: AdapterConfig, base: str) -> None:
    """Write what PEFT needs to know of the adapter beside its weights. Raises OSError."""
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": _target_modules(net),
    }
    durable.write_text(folder / CONFIG, json.dumps(described, indent=2) + "\n")


def _target_modules(net: nn.Module) -> list[str]:
    """Last parts of the adapted modules' names where they say it all (PEFT matches by suffix), else whole names."""
    layers = quant_linears(net)
    adapted = {name for name, layer in layers.items() if layer.lora_A is not None}
    suffixes = {name.rpartition(".")[2] for name in adapted}
    matched = {name for name, module in net.named_modules() if name.rpartition(".")[2] in suffixes}
    return sorted(suffixes if matched == adapted else adapted)


def load_adapter(net: nn.Module, folder: Path, fingerprint: str | None = None) -> AdapterConfig:
    """Put a PEFT LoRA adapter into `net` and return its configuration (of the first module, where ranks differ).

    Raises CheckpointError that lists every fault: files missing, settings that are not computed here, keys that match
    no layer, tensors missing or misshapen, an adapter that was trained on another base (by halfbyte's fingerprint).
    """
    described = _read_config(folder)
    refused = [
        f"{key}: {described[key]!r}"
        for key, allowed in _REQUIRED.items()
        if key in described and described[key] not in allowed
    ]
    if refused:
        raise CheckpointError(
            "the adapter uses what is not computed here",
            where=folder,
            found="; ".join(refused),
            do="only plain LoRA on linear layers is read; merge the adapter with PEFT first",
        )
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError("the adapter's weights can't be read", where=folder / WEIGHTS, found=str(error)) from None
    _check_base(folder, fingerprint)
    layers = quant_linears(net)
    pairs = _match(layers, tensors, folder)
    ranks, alphas = described.get("rank_pattern") or {}, described.get("alpha_pattern") or {}
    rslora = bool(described.get("use_rslora"))
    for name, (a, b) in pairs.items():
        rank = int(_pattern(ranks, name, described.get("r", a.shape[0])))
        alpha = float(_pattern(alphas, name, described.get("lora_alpha", rank)))
        if rank != a.shape[0]:
            raise CheckpointError(
                "the adapter's rank differs from its configuration",
                where=f"{folder}: {name}",
                found=f"r = {rank}, lora_A of {tuple(a.shape)}",
            )
        layer = layers[name]
        layer.set_adapter(a.to(layer.device), b.to(layer.device), alpha / (rank**0.5 if rslora else rank))
    return AdapterConfig(
        rank=int(described.get("r", 1)),
        alpha=float(described.get("lora_alpha", 1)),
        dropout=float(described.get("lora_dropout") or 0.0),
        targets=sorted(pairs),
        rslora=rslora,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise CheckpointError(
            f"the adapter lacks {' and '.join(missing)}",
            where=folder,
            found=there or "an empty folder",
            do="name the folder that holds both, e.g. runs/NAME/adapter",
        )
    try:
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "the adapter's configuration can't be read", where=folder / CONFIG, found=str(error)
        ) from None
    if not isinstance(described, dict):
        raise CheckpointError("the adapter's configuration is no JSON object", where=folder / CONFIG)
    return described


def _check_base(folder: Path, fingerprint: str | None) -> None:
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        trained_on = (file.metadata() or {}).get("halfbyte_base_fingerprint")
    if fingerprint and trained_on and trained_on != fingerprint:
        raise CheckpointError(
            "the adapter was trained on another base model",
            where=folder,
            found=f"base {trained_on[:12]}, this model {fingerprint[:12]}",
            do="load it beside the model that its run.yaml names",
        )


def _match(
    layers: Mapping[str, QuantLinear], tensors: Mapping[str, Tensor], folder: Path
) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair the tensors with layers; every fault in one error."""
    faults: list[str] = []
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if not match:
            faults.append(f"{key}: no LoRA weight of a linear layer")
        elif match[1] not in layers:
            faults.append(f"{key}: the model has no such quantised layer ({nearest(match[1], layers, 'layers')})")
        else:
            pairs.setdefault(match[1], {})[match[2]] = tensor
    for name, pair in pairs.items():
        layer = layers[name]
        if set(pair) != {"A", "B"}:
            faults.append(f"{name}: lora_{'B' if 'A' in pair else 'A'} is missing")
            continue
        a, b = pair["A"], pair["B"]
        if (
            a.ndim != 2
            or b.ndim != 2
            or a.shape[1] != layer.in_features
            or b.shape[0] != layer.out_features
            or a.shape[0] != b.shape[1]
        ):
            faults.append(
                f"{name}: A {tuple(a.shape)}, B {tuple(b.shape)} for {layer.out_features} x {layer.in_features}"
            )
        elif not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            faults.append(f"{name}: holds NaN or infinity")
    if not tensors:
        faults.append("the file holds no tensor")
    if faults:
        shown = faults[:20] + ([f"... and {len(faults) - 20} more"] if len(faults) > 20 else [])
        raise CheckpointError("the adapter does not fit this model", where=folder, found="\n         ".join(shown))
    return {name: (pair["A"], pair["B"]) for name, pair in pairs.items()}


def _pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """PEFT's rank_pattern and alpha_pattern: a key is a regular expression that the end of the name matches."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(?:.+\.)?(?:{pattern})", name):
            return value
    return default
