"""Adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, both ways.

A key is `base_model.model.<module>.lora_A.weight` [rank, in] or `...lora_B.weight` [out, rank]. What PEFT can say and
this model does not compute (DoRA, trained biases, modules saved whole, ...) is refused by name, never left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from halfbyte import durable
from halfbyte.checkpoint.files import Folder
from halfbyte.checkpoint.headers import TensorInfo, listed, read_header, shown
from halfbyte.config import AdapterConfig
from halfbyte.errors import CheckpointError, nearest
from halfbyte.kernels.pool import pool
from halfbyte.model.linear import QuantLinear

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_FLOATS = {"BF16", "F16", "F32", "F64"}
_HINTS = 20  # keys of no layer that the nearest layer is looked for
_LONGEST, _MOST_PATTERNS, _REPEATS = 500, 10_000, 2  # of rank_pattern and alpha_pattern
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


def adapter_digest(tensors: Mapping[str, Tensor]) -> str | None:
    """SHA-256 over the adapter's tensors by PEFT's keys, in fp32 as they are computed with; None: there are none."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest() if tensors else None


def save_adapter(net: nn.Module, folder: Path, config: AdapterConfig, base: str, fingerprint: str) -> None:
    """Write the adapter so that PEFT loads it. `base` names the base model, `fingerprint` is that of its checkpoint.

    Each file is written beside its place, flushed and renamed, so that an interruption leaves the old one whole.
    Raises OSError, SafetensorError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / WEIGHTS
    part = durable.part_of(file)
    part.unlink(missing_ok=True)  # of a run that was killed: it may be another name of a checkpoint's file
    pool.clear()  # as before a checkpoint
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
    Nothing is put into `net` then.
    """
    described = _read_config(folder)
    header = read_header(folder / WEIGHTS)
    faults = [
        f"{key}: {shown(repr(described[key]))} is not computed here, only plain LoRA on linear layers"
        for key, allowed in _REQUIRED.items()
        if key in described and described[key] not in allowed
    ]
    faults += _other_base(folder, fingerprint)
    layers = quant_linears(net)
    pairs = _match(layers, header, faults)
    settings = _settings(described, {name: header[a].shape[0] for name, (a, _) in pairs.items()}, faults)
    made = _read_pairs(folder / WEIGHTS, pairs, faults)
    _refuse(faults, folder)
    rslora = bool(described.get("use_rslora"))
    for name, (lora_A, lora_B) in made.items():
        rank, alpha = settings[name]
        device = layers[name].device
        layers[name].set_adapter(lora_A.to(device), lora_B.to(device), alpha / (rank**0.5 if rslora else rank))
    rank, alpha = next(iter(settings.values()))
    return AdapterConfig(
        rank=rank if described.get("r") is None else described["r"],
        alpha=alpha if described.get("lora_alpha") is None else float(described["lora_alpha"]),
        dropout=float(described.get("lora_dropout") or 0.0),
        targets=sorted(pairs),
        rslora=rslora,
    )


def _refuse(faults: list[str], folder: Path) -> None:
    if faults:
        raise CheckpointError(
            "the adapter does not fit this model, or uses what is not computed here",
            where=folder,
            found=listed(faults),
            do="load it beside the model that it was trained on; what is not plain LoRA, merge with PEFT first",
        )


def _read_config(folder: Path) -> dict[str, Any]:
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing == [WEIGHTS] and (folder / _PICKLED).is_file():
        raise CheckpointError(
            "this folder holds a pickled adapter, which can run code when it is opened and is not read",
            where=folder,
            found=_PICKLED,
            do="convert it with PEFT: AutoPeftModelForCausalLM.from_pretrained('FOLDER').save_pretrained('NEW_FOLDER')",
        )
    if missing:
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise CheckpointError(
            f"the adapter lacks {' and '.join(missing)}",
            where=folder,
            found=there or "an empty folder",
            do="name the folder that holds both, e.g. runs/NAME/adapter",
        )
    return Folder(folder).json(CONFIG)


def _read_pairs(
    file: Path, pairs: Mapping[str, tuple[str, str]], faults: list[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, tuple[Tensor, Tensor]] = {}
    with _opened(file) as stored:
        for name, (a, b) in pairs.items():
            found[name] = stored.get_tensor(a), stored.get_tensor(b)
            if not all(torch.isfinite(tensor).all() for tensor in found[name]):
                faults.append(f"{name}: holds NaN or infinity")
    return found


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError("the adapter's weights can't be read", where=file, found=str(error)) from None


def trained_on(file: Path) -> str | None:
    """The fingerprint of the base model that an adapter's weights name; None where they name none, or can't be read."""
    try:
        with safe_open(file, framework="pt") as opened:
            found: str | None = (opened.metadata() or {}).get("halfbyte_base_fingerprint")
    except (OSError, SafetensorError):
        return None
    return found


def _other_base(folder: Path, fingerprint: str | None) -> list[str]:
    base = trained_on(folder / WEIGHTS)
    if fingerprint and base and base != fingerprint:
        return [f"trained on another base model: {shown(base, 12)}, this one is {fingerprint[:12]}"]
    return []


def _match(
    layers: Mapping[str, QuantLinear], header: Mapping[str, TensorInfo], faults: list[str]
) -> dict[str, tuple[str, str]]:
    """The keys of A and B for each layer that has both, in shapes that fit; whatever is wrong joins `faults`."""
    pairs: dict[str, dict[str, str]] = {}
    for key in header:
        match = _KEY.fullmatch(key)
        if not match:
            faults.append(f"{shown(key)}: no LoRA weight of a linear layer")
        elif match[1] not in layers:
            hint = f" ({nearest(match[1][:200], layers, 'layers')})" if len(faults) < _HINTS else ""
            faults.append(f"{shown(key)}: the model has no such quantised layer{hint}")
        else:
            pairs.setdefault(match[1], {})[match[2]] = key
    found: dict[str, tuple[str, str]] = {}
    for name, pair in pairs.items():
        layer = layers[name]
        if set(pair) != {"A", "B"}:
            faults.append(f"{name}: lora_{'B' if 'A' in pair else 'A'} is missing")
            continue
        a, b = header[pair["A"]], header[pair["B"]]
        rank = a.shape[0] if a.shape else 0
        if a.shape != (rank, layer.in_features) or b.shape != (layer.out_features, rank) or not rank:
            shapes = f"A {list(a.shape)}, B {list(b.shape)}"
            faults.append(f"{name}: {shapes} for {layer.out_features} x {layer.in_features}")
        elif not {a.dtype, b.dtype} <= _FLOATS:
            faults.append(f"{name}: stored as {a.dtype} and {b.dtype}, not as {', '.join(sorted(_FLOATS))}")
        else:
            found[name] = pair["A"], pair["B"]
    if not header:
        faults.append("the file holds no tensor")
    return found


def _settings(
    described: Mapping[str, Any], ranks: Mapping[str, int], faults: list[str]
) -> dict[str, tuple[int, float]]:
    """Rank and alpha of each layer, whose matrices have the rank that `ranks` says."""
    for key, fits in (("r", _is_rank), ("lora_alpha", _is_number), ("lora_dropout", _is_share)):
        if described.get(key) is not None and not fits(described[key]):
            faults.append(f"{key}: {shown(repr(described[key]))} is none")
    patterns = {key: _patterns(described, key, fits, faults)
                for key, fits in (("rank_pattern", _is_rank), ("alpha_pattern", _is_number))}  # fmt: skip
    if faults:
        return {}
    found: dict[str, tuple[int, float]] = {}
    for name, stored in ranks.items():
        rank = _of_pattern(patterns["rank_pattern"], name, described.get("r"))
        alpha = _of_pattern(patterns["alpha_pattern"], name, described.get("lora_alpha"))
        if rank is not None and rank != stored:
            faults.append(f"{name}: of rank {stored}, the configuration says {rank}")
        found[name] = stored, float(stored if alpha is None else alpha)
    return found


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value <= 2**31


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e30


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1


def _patterns(
    described: Mapping[str, Any], key: str, fits: Callable[[Any], bool], faults: list[str]
) -> dict[re.Pattern[str], Any]:
    """PEFT's rank_pattern or alpha_pattern: a key is a regular expression that the end of a layer's name matches.

    Some take time without end. Those that repeat a group, or that repeat more than a few parts, are refused; nobody
    needs them to name layers."""
    values = described.get(key) or {}
    if not isinstance(values, dict):
        faults.append(f"{key}: {shown(values)} is no object")
        return {}
    found: dict[re.Pattern[str], Any] = {}
    for pattern, value in values.items():
        try:
            if len(pattern) > _LONGEST or len(values) > _MOST_PATTERNS:
                raise ValueError("it is longer than any list of layers")
            if re.search(r"\)[*+?{]|\\[1-9]|\(\?P=", pattern) or len(re.findall(r"[*+{]", pattern)) > _REPEATS:
                raise ValueError("it may take too long to match")
            made = re.compile(rf"(?:.+\.)?(?:{pattern})")
        except (ValueError, re.error, OverflowError, RecursionError) as error:
            faults.append(f"{key}: {shown(pattern)} is no pattern of layers: {error}")
            continue
        if not fits(value):
            faults.append(f"{key}: {shown(pattern)}: {shown(repr(value))} is none")
        found[made] = value
    return found


def _of_pattern(patterns: Mapping[re.Pattern[str], Any], name: str, default: Any) -> Any:
    return next((value for pattern, value in patterns.items() if pattern.fullmatch(name)), default)
