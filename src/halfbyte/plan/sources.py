"""`halfbyte plan NAME --sources`: where each figure comes from, what is unknown and why, and who disagrees.

Two layers: the facts that a model's shapes follow from (catalogue, config.json, headers), and how each figure of the
plan follows from them (arithmetic, a model of the code, or a constant that was measured).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from halfbyte.plan import catalogue
from halfbyte.plan.activations import RUNTIME_BYTES, shape_info
from halfbyte.plan.inventory import Inventory, take_inventory
from halfbyte.plan.prose import prose

_FACTS = (
    *("architecture", "released", "licence", "published_params", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"),
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "qkv_bias", "max_position_embeddings", "sliding_window"),
    *("rope_theta", "rope_scaling", "rms_norm_eps", "num_experts", "num_local_experts", "n_routed_experts"),
    *("num_experts_per_tok", "top_k_experts", "moe_intermediate_size", "n_shared_experts"),
    *("shared_expert_intermediate_size", "intermediate_size_mlp", "interleave_moe_layer_step", "decoder_sparse_step"),
    *("first_k_dense_replace", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    *("full_attention_interval", "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim"),
    *("linear_value_head_dim", "linear_conv_kernel_dim", "layer_types", "global_head_dim", "attention_k_eq_v"),
    *("num_global_key_value_heads", "num_kv_shared_layers", "use_double_wide_mlp", "enable_moe_block"),
    *("hidden_size_per_layer_input", "vocab_size_per_layer_input"),
)
_OWN_SOURCE = {name: f"{name}_source" for name in ("released", "licence", "published_params")}
_NOT_NEEDED = frozenset(("sliding_window", "rope_scaling"))  # null: there is none, or nobody says; no figure needs them


def sources(name: str, revision: str | None = None) -> dict[str, Any]:
    """`model`, `where`, `facts` {name: {`value`, `from` or `unknown`}}, `sources`, `figures` {name: words},
    `conflicts`, `notes`.

    Raises what `take_inventory` does.
    """
    inventory = take_inventory(name, revision)
    entry = catalogue.lookup(inventory.name) if inventory.source == "catalogue" else None
    return {
        "schema": 1,
        "model": inventory.name,
        "where": inventory.where,
        "facts": _read_facts(inventory) if entry is None else _catalogue_facts(entry),
        "sources": list(entry.fields["source"]) if entry else [],
        "figures": _figures(inventory),
        "conflicts": dict((entry.fields.get("conflicts") or {}) if entry else {}),
        "notes": inventory.notes if entry is None or not entry.fields.get("notes") else [entry.fields["notes"]],
        "unknown": inventory.unknown,
    }


def _catalogue_facts(entry: catalogue.Entry) -> dict[str, dict[str, Any]]:
    """What each field of the catalogue's entry says and who states it."""
    facts: dict[str, dict[str, Any]] = {}
    listed, twice = entry.fields["source"], entry.fields.get("fields_confirmed_by_2plus") or ()
    for name in _FACTS:
        if name not in entry.fields:
            continue
        value = entry.fields[name]
        if value is None:
            if name not in _NOT_NEEDED:
                facts[name] = {"value": None, "unknown": f"no source states it: {', '.join(listed)}"}
        elif name in _OWN_SOURCE:
            facts[name] = {"value": value, "from": entry.fields.get(_OWN_SOURCE[name]) or "not recorded"}
        else:
            count = "two or more" if name in twice else "one"
            facts[name] = {"value": value, "from": f"{count} of: {', '.join(listed)}"}
    return facts


def _read_facts(inventory: Inventory) -> dict[str, dict[str, Any]]:
    """Of a folder or a hub model: its own config.json; shapes are the headers', where there are any."""
    config = inventory.config
    facts = {name: {"value": config[name], "from": "config.json"} for name in _FACTS if config.get(name) is not None}
    if inventory.source != "config":
        facts["tensors"] = {"value": len(inventory.tensors), "from": "names and shapes in the safetensors headers"}
    return facts


def _figures(inventory: Inventory) -> dict[str, str]:
    shapes = "the headers" if inventory.source in ("headers", "hub") else "the facts above"
    modelled = "modelled on what the code keeps (plan/activations.py), from the facts above"
    info = shape_info(inventory.config)
    return {
        "parameters": inventory.unknown.get("parameters") or f"counted, from the shapes in {shapes}",
        "weights, constants": "arithmetic, to the byte, from the same shapes and the packed format's layout",
        "adapter, gradients, optimiser": "arithmetic, to the byte: 4, 4 and 8 bytes for each adapter parameter",
        "activations, loss, KV cache": modelled if info.dims is not None else info.unknown,
        "runtime": f"measured once: {RUNTIME_BYTES:,} bytes, and more for a large vocabulary",
        "memory that is there": "read from this machine, or as --memory says",
    }


def render(found: Sequence[dict[str, Any]], console: Console) -> None:
    """Print what `sources` gave, a table a model."""
    for one in found:
        prose(console, f"{one['model']}  from {one['where']}", bold=len(one["model"]))
        of_all = ", ".join(one["sources"])
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("fact", "value", "where from"):
            table.add_column(column, overflow="fold")
        for name, fact in one["facts"].items():
            known = fact["value"] is not None
            words = fact["from"] if known else f"unknown, because {fact['unknown']}"
            words = words.replace(f"of: {of_all}", "of the sources").removesuffix(f": {of_all}")
            origin = Text(words, style="" if known else "yellow")
            table.add_row(Text(name), Text(_value(fact["value"])), origin)
        console.print(table)
        console.print()
        for title, lines in _lines(one):
            for line in lines:
                prose(console, f"{title}: {line}", bold=len(title) + 1)
        console.print()


def _lines(one: dict[str, Any]) -> list[tuple[str, list[str]]]:
    conflicts = [f"on {name}: {'; '.join(map(str, words))}" for name, words in one["conflicts"].items()]
    figures = [f"{name}: {words}" for name, words in one["figures"].items()]
    return [
        ("source", list(one["sources"])),
        ("figure", figures),
        ("sources disagree", conflicts),
        ("note", list(one["notes"])),
    ]


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{count} x {item}" for item, count in Counter(map(str, value)).items())
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "" if value is None else f"{value:,}" if type(value) is int and value > 99_999 else str(value)
