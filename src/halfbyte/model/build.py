"""A model from a checkpoint: transformers' own, with its linear layers swapped and its weights mapped, not copied."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig

from halfbyte import targets
from halfbyte.checkpoint.load import load_state
from halfbyte.checkpoint.mapped import Stamps
from halfbyte.checkpoint.pack import NOTE, as_weights
from halfbyte.checkpoint.skeleton import skeleton
from halfbyte.checkpoint.source import Checkpoint, open_checkpoint
from halfbyte.config import AdapterConfig
from halfbyte.errors import CheckpointError, ConfigError
from halfbyte.formats import Weights
from halfbyte.kernels.choice import Choice, choose
from halfbyte.kernels.compute import compute_name
from halfbyte.kernels.cross_entropy import fault_on_card
from halfbyte.memory import hold_little
from halfbyte.model.adapter import load_adapter, quant_linears
from halfbyte.model.assemble import assemble, decoder_layers, multiply_bytes, settle_compute
from halfbyte.model.attention import NAME, use_attention
from halfbyte.model.blocks import Replacement, replace_parts
from halfbyte.model.decoding import Decoding
from halfbyte.model.linear import QuantLinear
from halfbyte.model.loss import Head, LinearHead, linear_head
from halfbyte.model.offload import Offloader, offloaded
from halfbyte.model.recompute import recomputed
from halfbyte.model.rotary import replace_rotary
from halfbyte.model.stream import Streamer, settle_stream
from halfbyte.plan.devices import find_device

Progress = Callable[[str, int, int], None]  # what, done, total (bytes)
# Words whose tokens the tokenizers library keeps, by default 10,000 for each thread, never freed: among what is freed
# between them they held 6 MB a thread (58 MB on 8), where 256 hold 1 MB. Encoding takes up to a sixth longer.
_CACHED_WORDS = 256


class _Handed:
    """A decoder's output: last hidden states, and None for whatever else a family looks for in it."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: Any) -> Any:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        return None


class _HandThrough(nn.Module):
    """Stands where the decoder stood and returns the hidden states that it is given."""

    @property
    def decoder(self) -> _HandThrough:
        """OPT's head goes past its model to the decoder within."""
        return self

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Handed:
        return _Handed(inputs_embeds)


@dataclass
class Model:
    """A causal language model, its tokenizer and what is known about it."""

    net: Any  # transformers' causal LM; its linear layers are QuantLinear
    tokenizer: Any
    name: str
    weights: Weights
    dtype: torch.dtype  # of activations and norms; matrices stay as they are stored
    device: torch.device
    device_reason: str
    fingerprint: str  # of the checkpoint, or of the one that it was packed from
    path: Path  # of the checkpoint that was named
    adapter: AdapterConfig | None = None
    dtype_reason: str = ""
    int8: bool = False  # products with packed weights are computed in it
    attention: Choice | None = None  # transformers' name of it, and why; None: as transformers chose
    packs_with: str | None = None  # transformers' name of the attention for items in a row; "": there is none
    replaced: list[Replacement] = field(default_factory=list)  # the parts that halfbyte computes itself, and which not
    files: Stamps = field(default_factory=Stamps)  # that its weights are mapped from
    streamer: Streamer | None = None  # brings the layers' weights to the card; None: all of them are there
    stream_reason: str = ""

    def __post_init__(self) -> None:
        self._body: Any = getattr(self.net, self.net.base_model_prefix, None)
        if self._body is None or "past_key_values" not in inspect.signature(self._body.forward).parameters:
            raise CheckpointError(
                "this architecture is not supported: it is no decoder with a key/value cache",
                where=self.name,
                found=type(self.net).__name__,
                do="take a model of another family",
            )
        # A second view of the model whose decoder hands through: its forward is the head, whatever a family does there.
        self._head = copy.copy(self.net)
        self._head._modules = {**self.net._modules, self.net.base_model_prefix: _HandThrough()}
        self._linear_head: LinearHead | None = None
        self._head_was_tried = False
        native = self.attention is not None and self.attention.name == NAME and self.streamer is None
        self.decoding = Decoding(self._body, self.dtype, native)

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Last hidden states [B, T, H] of `input_ids` [B, T] (int64).

        `attention_mask` [B, T + cached] is 1 where a token stands and 0 where padding does; `cache` (see `new_cache`)
        is read and extended in place.
        """
        if cache is not None and input_ids.shape[1] == 1 and position_ids is not None:
            made = self.decoding.step(input_ids, attention_mask, position_ids, cache)
            if made is not None:
                return made
        output = self._body(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output[0]  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., H], by the model's own head with its soft caps and scales."""
        logits = self._head(inputs_embeds=hidden.reshape(1, -1, hidden.shape[-1]), use_cache=False).logits
        return logits.view(*hidden.shape[:-1], -1)  # type: ignore[no-any-return]

    @property
    def compute(self) -> str:
        """The compute type by its name in `config.py`."""
        return "int8" if self.int8 else compute_name(self.dtype)

    @property
    def head(self) -> Head:
        """The head for the loss: a LinearHead where it is one, else `logits`."""
        if not self._head_was_tried:
            text = self.net.config.get_text_config()
            self._linear_head = linear_head(self.net.get_output_embeddings(), self.logits, text, self.dtype)
            self._head_was_tried = True
        return self._linear_head or self.logits

    def new_cache(self, capacity: int | None = None) -> Any:
        """An empty key/value cache of the kind that this family needs, with room for `capacity` tokens a row."""
        from halfbyte.model.cache import new_cache

        return new_cache(self.net.config, capacity)

    def parameters_to_train(self) -> dict[str, nn.Parameter]:
        """The adapter's matrices by name."""
        return {name: p for name, p in self.net.named_parameters() if p.requires_grad}

    def layers(self) -> list[Any]:
        """The decoder's layers that can be computed again in the backward pass instead of being remembered."""
        return decoder_layers(self.net)

    def recompute(self, count: int, *, offload: Offloader | None = None) -> None:
        """Compute the first `count` layers again in the backward pass (Chen et al. 2016, arXiv:1604.06174); `offload`
        takes what all layers keep to the host."""
        for index, layer in enumerate(self.layers()):
            layer.gradient_checkpointing = index < count or offload is not None
            function: Callable[..., Any] = recomputed if index < count else offloaded
            layer._gradient_checkpointing_func = functools.partial(function, offload=offload)

    def targeted(self, config: AdapterConfig) -> list[QuantLinear]:
        """The layers that `config` names. Raises ConfigError when a target matches nothing."""
        layers = quant_linears(self.net)
        return [layers[name] for name in targets.select_targets(config.targets, list(layers), where="adapter.targets")]

    def adapter_sizes(self, config: AdapterConfig) -> list[int]:
        """How many parameters each matrix of an adapter of `config` has."""
        layers = self.targeted(config)
        return [config.rank * side for layer in layers for side in (layer.in_features, layer.out_features)]

    def check_files(self) -> None:
        """Raises CheckpointError when a file that the weights are mapped from is not the one that was opened."""
        if changed := self.files.changed():
            raise CheckpointError("a file of the model was changed while it was in use", where=self.name,
                                  found="; ".join(changed),
                                  do="put the very file back and start again; a run goes on with --resume")  # fmt: skip

    def add_adapter(self, config: AdapterConfig, seed: int = 0) -> None:
        """Give the targeted layers a fresh LoRA pair. Raises ConfigError when a target matches nothing."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.targeted(config):
            layer.add_adapter(config, generator)
        self.adapter = config


def choose_device(asked: str = "auto") -> tuple[torch.device, str]:
    """The device and the reason for it. Raises ConfigError when the one that is asked for is not there."""
    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0), f"a CUDA device is there: {torch.cuda.get_device_name(0)}"
        return torch.device("cpu"), "no CUDA device is there"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise _no_device(asked) from None
    if device.type == "cpu":
        return torch.device("cpu"), "asked for"
    if device.type != "cuda":
        raise ConfigError(
            "this kind of device is not supported", where="device", found=repr(asked), do="use cpu or cuda"
        )
    if not torch.cuda.is_available():
        build = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        raise ConfigError(
            "the device is not there", where="device", found=f"{asked!r}; {build}", do="use device: auto or cpu"
        )
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise ConfigError(
            "the device is not there",
            where="device",
            found=f"{asked!r}; there are {torch.cuda.device_count()}",
            do="count from cuda:0",
        )
    return torch.device("cuda", index), "asked for"


def _no_device(asked: str) -> ConfigError:
    """The error for a device that torch does not know: a card that is named is known to `plan` alone."""
    run = "use auto, cpu, cuda or cuda:N"
    try:
        card = find_device(asked)
    except ConfigError:
        return ConfigError("unknown device", where="device", found=repr(asked), do=run)
    return ConfigError("a device that is named is for planning, nothing can run on it", where="device",
                       found=f"{asked!r}: {card.name}",
                       do=f"to run, {run}; to plan for it: halfbyte plan MODEL|RUN --device '{asked}'")  # fmt: skip


def load_model(
    model: str,
    *,
    revision: str | None = None,
    weights: Weights | None = None,
    adapter: Path | AdapterConfig | None = None,
    device: str = "auto",
    compute: str = "auto",
    stream: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Model:
    """Open `model` (a folder or a hub id) in the format `weights` (None: as it is stored, else nf4).

    A checkpoint that is not in that format yet is packed once into the cache and mapped from there. `adapter` is a
    folder with a PEFT adapter, or the configuration of a fresh one (seeded with `seed`). `compute` is the type that
    activations have: bf16, fp16, fp32, int8 (bf16, with packed weights multiplied as bytes) or auto, see
    `halfbyte.kernels.compute`; `stream`, on or off, whether a card gets the layers' weights one ahead of use; auto:
    where it has no room for them and for answers.
    Raises CheckpointError, ConfigError.
    """
    where, reason = choose_device(device)
    hold_little()
    source, checkpoint, weights = open_packed(model, revision, weights, progress=progress)
    net, files = skeleton(checkpoint), Stamps.of(checkpoint)
    state = load_state(checkpoint, net)
    chosen = settle_compute(compute, where, net, state, weights)
    streamed, why = settle_stream(stream, where, checkpoint.path, weights, chosen.name)
    streamer = assemble(net, state, where, chosen.dtype, stream=streamed)
    if chosen.name == "int8":
        chosen = multiply_bytes(net)
    net.eval().requires_grad_(False)
    replaced = [*replace_parts(net, where), *replace_rotary(net, where), *_loss_on(where, chosen.dtype)]
    if (source.path / "generation_config.json").is_file():
        net.generation_config = _generation_config(source.path)
    fingerprint = origin(source)
    made = Model(
        net=net,
        tokenizer=load_tokenizer(source, net.config.get_text_config().vocab_size),
        name=model,
        weights=weights,
        dtype=chosen.dtype,
        dtype_reason=chosen.reason,
        int8=chosen.name == "int8",
        device=where,
        device_reason=reason,
        fingerprint=fingerprint,
        path=source.path,
        attention=use_attention(net, where),
        replaced=replaced,
        files=files,
        streamer=streamer,
        stream_reason=why,
    )
    if isinstance(adapter, AdapterConfig):
        made.add_adapter(adapter, seed)
    elif adapter is not None:
        made.adapter = load_adapter(net, Path(adapter), fingerprint)
    return made


def _loss_on(device: torch.device, dtype: torch.dtype) -> list[Replacement]:
    """What computes the cross-entropy of a chunk of logits, where it is not our own."""
    if choose(device).name != "gpu":
        return []
    return [Replacement("cross-entropy", 1, fault_on_card(device, dtype))]


def open_packed(
    model: str, revision: str | None, weights: Weights | None, *, progress: Progress | None = None
) -> tuple[Checkpoint, Checkpoint, Weights]:
    """The checkpoint that `model` names, the one that runs (in the cache, packed if it is not yet), and its format."""
    source = open_checkpoint(model, revision)
    used = weights or source.weights or "nf4"
    return source, as_weights(source, used, progress=progress), used


def origin(checkpoint: Checkpoint) -> str:
    """The fingerprint of the checkpoint that `checkpoint` was packed from, else its own."""
    try:
        return str(json.loads((checkpoint.path / NOTE).read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return checkpoint.fingerprint


def _generation_config(folder: Path) -> Any:
    try:
        return GenerationConfig.from_pretrained(folder)
    except Exception as error:  # transformers raises whatever its checks do
        raise CheckpointError(
            "transformers can't read this generation_config.json",
            where=folder / "generation_config.json",
            found=str(error).strip().split("\n")[0],
            do="fetch the file again, or remove it",
        ) from None


def load_tokenizer(checkpoint: Checkpoint, vocabulary: int) -> Any:
    """The checkpoint's own tokenizer. Raises CheckpointError when it is missing or larger than the embedding."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parsers do
        there = any(next(checkpoint.path.glob(pattern), None) for pattern in ("token*", "vocab*", "merges*"))
        said = " ".join(str(error).split())[:200] if there else "no tokenizer.json, tokenizer.model or vocab file"
        raise CheckpointError(
            "the tokenizer can't be loaded",
            where=checkpoint.path,
            found=said,
            do="put tokenizer.json and tokenizer_config.json beside the model",
        ) from None
    # added tokens apart: some models carry one that they have no embedding for
    tokens = 1 + max(set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder), default=-1)
    if max(tokens, tokenizer.vocab_size) > vocabulary:
        raise CheckpointError(
            "the tokenizer has more tokens than the model has embeddings",
            where=checkpoint.path,
            found=f"{max(tokens, tokenizer.vocab_size)} tokens, {vocabulary} embeddings",
            do="use the tokenizer that came with this model",
        )
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    resize = getattr(model, "_resize_cache", None)
    if resize is not None:
        resize(_CACHED_WORDS)
    return tokenizer
