"""Which linear layers get an adapter: the presets `all` and `attention`, names and patterns, for plan and model alike.

A layer is called by its module name, e.g. `model.layers.0.self_attn.q_proj`. Only linear layers of the blocks come in
here (no embedding, no output head, no GPT-2 style Conv1D), so `all` is simply everything that is offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from halfbyte.errors import ConfigError, nearest

# The last part of the name, as the model families of transformers call their attention projections.
ATTENTION = frozenset(
    (
        *("q_proj", "k_proj", "v_proj", "o_proj"),  # Llama and most others
        *("qkv_proj", "out_proj"),  # Phi-3; OPT, CodeGen
        *("query_key_value", "query", "key", "value", "c_attn"),  # GPT-NeoX, Falcon, BLOOM; BERT; GPT BigCode
        *("Wqkv", "W_pack", "wqkv"),  # MPT, Baichuan, InternLM
        *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),  # DeepSeek's latent attention
    )
)
# Names that mean an attention projection only inside an attention module: `mlp.c_proj` is none.
ATTENTION_INSIDE = frozenset(("dense", "c_proj", "wo", "wq", "wk", "wv", "proj"))

PRESETS = ("all", "attention")


def is_attention(name: str) -> bool:
    """Whether the linear layer `name` projects to queries, keys or values, or back from them."""
    *parents, last = name.split(".")
    if last in ATTENTION:
        return True
    return last in ATTENTION_INSIDE and any("attn" in part or "attention" in part for part in parents)


def select_targets(spec: str | Sequence[str], linear_names: Sequence[str], *, where: str = "targets") -> list[str]:
    """The names among `linear_names`, in their order, that `spec` means.

    `spec` is a preset, one name or pattern, several in a list, or several in a text with commas. A name is the last
    part of a layer's name (`q_proj`), its end (`self_attn.q_proj`) or all of it; a pattern is a shell pattern
    (`*.layers.1?.mlp.*`) on all of it. Presets may stand in a list, too.

    Raises ConfigError when there is nothing to choose from, or when a name or pattern matches nothing; the message
    lists what there is.
    """
    asked = [part.strip() for part in spec.split(",")] if isinstance(spec, str) else list(spec)
    asked = [part for part in asked if part]
    if not linear_names:
        raise ConfigError("the model has no linear layer in its blocks that could get an adapter", where=where,
                          do="use another model")  # fmt: skip
    if not asked:
        raise ConfigError("no linear layer is named", where=where, found=repr(spec), do="write all, attention or names")
    chosen: set[str] = set()
    faults: list[str] = []
    for part in asked:
        matching = {name for name in linear_names if _matches(part, name)}
        chosen |= matching
        if not matching:
            faults.append(part)
    if faults:
        raise ConfigError(
            f"nothing matches the target{'s' if len(faults) > 1 else ''} " + ", ".join(map(repr, faults)),
            where=where,
            found=describe(linear_names),
            do=_hint(faults[0], linear_names),
        )
    return [name for name in linear_names if name in chosen]


def _matches(part: str, name: str) -> bool:
    if part == "all":
        return True
    if part == "attention":
        return is_attention(name)
    return name == part or name.endswith("." + part) or fnmatchcase(name, part)


def _hint(part: str, names: Sequence[str]) -> str:
    kinds = {name.rsplit(".", 1)[-1] for name in names} | set(PRESETS)
    return "write all, attention, or names and patterns; " + nearest(part, kinds, "layers")


def describe(linear_names: Sequence[str]) -> str:
    """What there is, in a line: each kind of layer once, with how many there are."""
    kinds: dict[str, int] = {}
    for name in linear_names:
        kind = ".".join(name.split(".")[-2:])
        kinds[kind] = kinds.get(kind, 0) + 1
    shown = [f"{kind} ({count})" for kind, count in list(kinds.items())[:24]]
    return ", ".join(shown) + (", ..." if len(kinds) > 24 else "")
