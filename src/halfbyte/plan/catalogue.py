"""The packaged catalogue: configuration facts of open models, so that a plan needs neither a network nor a download.

`catalogue.json` keeps for each model the sources of its fields, where they disagree (`conflicts`) and what to know
(`notes`). A field that is null was stated by no source: it is unknown, and `Entry.unknown` says so; it never means no.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from halfbyte.errors import ConfigError

# transformers' model_type, which decides how the shapes follow from a configuration, by architecture.
_MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "Gemma3ForConditionalGeneration": "gemma3_text",
    "Phi3ForCausalLM": "phi3",
    "Olmo2ForCausalLM": "olmo2",
    "GraniteForCausalLM": "granite",
    "SmolLM3ForCausalLM": "smollm3",
    "Olmo3ForCausalLM": "olmo3",
    "Gemma4ForConditionalGeneration": "gemma4_text",
    "Mistral3ForConditionalGeneration": "ministral3",
    "MixtralForCausalLM": "mixtral",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "Qwen3NextForCausalLM": "qwen3_next",
    "Qwen3_5ForConditionalGeneration": "qwen3_5_text",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5_moe_text",
    "GptOssForCausalLM": "gpt_oss",
    "OlmoeForCausalLM": "olmoe",
    "GraniteMoeForCausalLM": "granitemoe",
    "Llama4ForConditionalGeneration": "llama4_text",
    "DeepseekV2ForCausalLM": "deepseek_v2",
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "Glm4ForCausalLM": "glm4",
    "Glm4MoeForCausalLM": "glm4_moe",
    "Glm4MoeLiteForCausalLM": "glm4_moe_lite",
}


# Keys that say something about the model but are no key of a config.json.
_NOT_CONFIG = frozenset(
    (
        *("repo_id", "family", "architecture", "released", "released_source", "licence", "licence_source"),
        *("base_or_instruct", "sibling", "published_params", "published_params_source", "source", "conflicts", "notes"),
        *("fields_confirmed_by_2plus", "computed_params", "computed_params_if_unknown_tie", "block_linear_params"),
        *("qkv_bias", "vocab_size_hf_checkpoint", "fused_modules", "norms_per_layer", "qk_norm"),
    )
)


@dataclass(frozen=True)
class Entry:
    """One model. `fields` is its object in catalogue.json, untouched."""

    fields: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.fields["repo_id"])

    @property
    def short_name(self) -> str:
        return self.name.rpartition("/")[2].lower()

    @property
    def config(self) -> dict[str, Any]:
        """The facts under the keys of a Hugging Face config.json; a null stays null: it is unknown."""
        config = {key: value for key, value in self.fields.items() if key not in _NOT_CONFIG}
        config["architectures"] = [self.fields["architecture"]]
        config["model_type"] = _MODEL_TYPES[self.fields["architecture"]]
        return config

    @property
    def parameters(self) -> int | None:
        """The parameters that the shapes give, of the language model alone; None: unknown."""
        value = self.fields["computed_params"]
        return None if value is None else int(value)

    def unknown(self, field: str) -> str:
        """Why `field` is null, in the words that a plan prints."""
        because = f"unknown, because none of the catalogue's sources states '{field}' of {self.name}"
        notes = self.fields.get("notes")
        return because + (f" ({notes})" if notes else "")


@functools.cache
def entries() -> tuple[Entry, ...]:
    """All models, in the file's order."""
    text = resources.files("halfbyte.plan").joinpath("catalogue.json").read_text(encoding="utf-8")
    return tuple(Entry(fields) for fields in json.loads(text)["models"])


def lookup(name: str) -> Entry | None:
    """The model whose repo id, or the part of it after the slash, is `name`, whatever the case; None: none is."""
    wanted = _normal(name)
    found = [entry for entry in entries() if wanted in (_normal(entry.name), entry.short_name)]
    if len(found) > 1:
        raise ConfigError(
            "the short name means more than one model of the catalogue",
            found=", ".join(entry.name for entry in found),
            do="write the whole id",
        )
    return found[0] if found else None


def find(name: str) -> Entry:
    """As `lookup`, but raises ConfigError for an unknown name and names the nearest ones."""
    entry = lookup(name)
    if entry is not None:
        return entry
    near = nearest_names(name)
    raise ConfigError(
        f"the catalogue has no model '{name}'",
        found=f"{len(entries())} models of {len({entry.fields['family'] for entry in entries()})} families",
        do=f"did you mean {' or '.join(near)}?" if near else "give a local folder, or a name from the catalogue",
    )


def nearest_names(name: str) -> list[str]:
    """Up to four short names that begin like `name` or look like it."""
    wanted = _normal(name).rpartition("/")[2]
    known = [entry.short_name for entry in entries()]
    begins = [short for short in known if short.startswith(wanted)] if wanted else []
    close = difflib.get_close_matches(wanted, known, n=4, cutoff=0.6)
    return list(dict.fromkeys(begins + close))[:4]


def _normal(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-")
