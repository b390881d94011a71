"""A checkpoint's model without its weights: transformers' own causal LM on the meta device.

Every parameter and persistent buffer is a meta tensor that `load_state` has a value for. What no file holds, the
buffers that a model computes for itself (rotary frequencies, Gemma's embedding scale), is real and on the CPU:
transformers' `_init_weights`, which `from_pretrained` uses for the same purpose, runs on exactly the modules that own
such buffers. It can't touch a parameter, because initialising a meta tensor does nothing.

No code that comes with a checkpoint is run: an architecture that this transformers does not know is refused by name.
"""

from __future__ import annotations

import copy
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from halfbyte.checkpoint.mapped import Mapped
from halfbyte.checkpoint.recipes import rename, ties
from halfbyte.checkpoint.source import CONFIG, Checkpoint
from halfbyte.errors import CheckpointError

_MOST_BUFFERS = 1 << 30  # bytes; those of real models are some MB
_building = threading.Lock()  # transformers sets torch's default dtype while it builds, and that is every thread's


def skeleton(checkpoint: Checkpoint) -> Any:
    """transformers' causal LM for `checkpoint`, in eval mode, weights on the meta device in `checkpoint.dtype`.

    A parameter or buffer that transformers keeps in fp32 has that dtype. Raises CheckpointError for a model that
    transformers does not know, or does not build as a causal LM.
    """
    config = read_config(checkpoint)
    _check_layers(checkpoint, config)
    model = _build(checkpoint, config)
    if _tied_but_different(checkpoint, model):  # transformers then goes by the weights, not by the config
        config = copy.deepcopy(config)
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        model = _build(checkpoint, config)
    return model


def linear_names(model: Any) -> list[str]:
    """The layers that are quantised, by module name: every nn.Linear but the output head and what is tied.

    Only nn.Linear itself counts, no class derived from it, and no layer that transformers keeps in fp32, so that
    transformers with bitsandbytes finds our packed weights where it looks for them. It would pack Conv1D (GPT-2), too;
    here that stays as it is and is named.
    """
    return [name for name, reason in linear_layers(model).items() if reason is None]


def linear_layers(model: Any) -> dict[str, str | None]:
    """Every layer with a weight matrix that is multiplied: why it is not quantised, or None where it is."""
    head = model.get_output_embeddings()
    tied = {name for pair in ties(model).items() for name in pair}
    fp32 = [*(model._keep_in_fp32_modules or []), *(model._keep_in_fp32_modules_strict or [])]
    layers: dict[str, str | None] = {}
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)):
            continue
        reason = None
        if module is head:
            reason = "the output head"
        elif f"{name}.weight" in tied:
            reason = "tied to another layer"
        elif any(re.search(key, name) for key in fp32):
            reason = "transformers keeps it in fp32"
        elif type(module) is not nn.Linear:
            reason = f"{type(module).__name__} is not nn.Linear"
        layers[name] = reason
    return layers


def kept_in_fp32(model: Any, dtype: torch.dtype) -> set[str]:
    """The parameters and stored buffers that transformers keeps in fp32 in a model of `dtype`, by name."""
    keys = [re.compile(key.replace("*", ".*")) for key in model._get_dtype_plan(dtype)]
    return {name for name in model.state_dict() if any(key.search(name) for key in keys)}


def read_config(checkpoint: Checkpoint) -> Any:
    """The checkpoint's configuration as transformers reads it. Raises CheckpointError for one that can't be run."""
    kind, file = checkpoint.config["model_type"], checkpoint.path / CONFIG
    if kind not in CONFIG_MAPPING:
        own = "auto_map" in checkpoint.config
        raise CheckpointError(
            f"transformers does not know the architecture '{kind}'",
            where=file,
            found="it brings code of its own, which is never run" if own else None,
            do="update transformers, or use a model that it knows",
        )
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False)
    except Exception as error:  # every configuration class raises what it likes
        raise CheckpointError(
            "transformers can't read this config.json", where=file, found=_first_line(error), do="fetch the file again"
        ) from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(
            f"'{kind}' is no causal language model, or transformers does not build it as one",
            where=file,
            do="use a text model, e.g. the text part of a multimodal one",
        )
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _check_layers(checkpoint: Checkpoint, config: Any) -> None:
    """Refuse a config.json that announces more layers than there are tensors: each would be built, if only to be
    missed, and a number takes no more room in a file when it is a billion."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > len(checkpoint.tensors):
        raise CheckpointError(
            "config.json describes more layers than the weights can have",
            where=checkpoint.path / CONFIG,
            found=f"{layers:,} layers, {len(checkpoint.tensors):,} tensors",
            do="use config.json and weights of the same model and revision",
        )


def _build(checkpoint: Checkpoint, config: Any) -> Any:
    dtype = getattr(torch, checkpoint.dtype)
    try:
        with _building, torch.device("meta"), torch.no_grad(), _quiet():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        keep = kept_in_fp32(model, dtype)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in keep:
                tensor.data = tensor.data.float()
        _compute_buffers(model)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"transformers can't build this model ({checkpoint.config['model_type']})",
            where=checkpoint.path / CONFIG,
            found=_first_line(error),
            do="check config.json, or update transformers",
        ) from None
    return model.eval()


@torch.no_grad()
def _compute_buffers(model: Any) -> None:
    """Give every non-persistent buffer its value. Two runs over different garbage tell whether it has one."""
    owned = [(module, owner, name) for module, owner in _owners(model, model)
             for name in _buffers(module)]  # fmt: skip
    nbytes = sum(module._buffers[name].nbytes for module, _, name in owned)
    if nbytes > _MOST_BUFFERS:
        raise CheckpointError("this config.json asks for buffers larger than any model's", where=type(model).__name__,
                              found=f"{nbytes:,} bytes", do="fetch config.json again")  # fmt: skip
    runs: list[list[Tensor]] = []
    for garbage in (0, 1):
        for module, _, name in owned:
            buffer = module._buffers[name]
            module._buffers[name] = torch.full_like(buffer, garbage, device="cpu")
        for module, owner in {id(module): (module, owner) for module, owner, _ in owned}.values():
            owner._init_weights(module)
        runs.append([module._buffers[name].clone() for module, _, name in owned])
    unset = [name for (_, _, name), one, two in zip(owned, *runs, strict=True) if not torch.equal(one, two)]
    if unset:
        raise CheckpointError(
            "transformers gives these buffers no value",
            where=type(model).__name__,
            found=", ".join(sorted(set(unset))),
            do="this model can't be run here; use another, or another version of transformers",
        )


def _buffers(module: Any) -> list[str]:
    """The module's own buffers that no file holds."""
    return [name for name in module._buffers
            if name in module._non_persistent_buffers_set and module._buffers[name] is not None]  # fmt: skip


def _owners(module: Any, owner: Any) -> Iterator[tuple[Any, Any]]:
    """Every module with the (sub-)model whose `_init_weights` is responsible for it, as transformers assigns them."""
    owner = module if isinstance(module, PreTrainedModel) else owner
    yield module, owner
    for child in module.children():
        yield from _owners(child, owner)


def _tied_but_different(checkpoint: Checkpoint, model: Any) -> bool:
    """Whether the config ties two tensors that the checkpoint stores with different values."""
    pairs = ties(model)
    if not pairs:
        return False
    stored = {new: name for name, (new, converter, _) in rename(checkpoint, model).items() if converter is None}
    mapped = Mapped(checkpoint)
    for target, source in pairs.items():
        if target in stored and source in stored:
            one, two = mapped.read(stored[target]), mapped.read(stored[source])
            if one.dtype != two.dtype or not torch.equal(one, two):
                return True
    return False


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' remarks on configurations are for its own developers; errors still come through."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
