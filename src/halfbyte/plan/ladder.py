"""The plan of a model and a run: what it weighs in each format, and what each phase needs at its peak.

Two kinds of numbers, never mixed: what shapes decide (weights, constants, adapter, gradients, optimiser) is exact to
the byte; what the code allocates while it runs is modelled in `activations.py`. What can't be said is None, with the
reason in `unknown`. Peaks count as they are measured elsewhere in the project: anonymous and shared memory and dirty
pages; the clean pages of the memory-mapped weights stand apart as `mapped_bytes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from halfbyte.config import AdapterConfig
from halfbyte.errors import ConfigError, nearest
from halfbyte.formats import QUANTISED, WEIGHTS, Weights, moment_bytes, packed_otherwise
from halfbyte.options import parse_bytes
from halfbyte.plan import activations
from halfbyte.plan.activations import shape_info
from halfbyte.plan.answering import Scored, items_at_once, pieces, token_budget
from halfbyte.plan.answers import complete
from halfbyte.plan.budget import Choice, amount, choose, spoken_for
from halfbyte.plan.compute import activation_bytes, foretold_compute, require_int8
from halfbyte.plan.devices import Device, find_device
from halfbyte.plan.held import held_bytes
from halfbyte.plan.inventory import Inventory, take_inventory
from halfbyte.plan.native import Native, foretold
from halfbyte.plan.phases import Phase, evaluation, packing, settle_recompute, training, verdict
from halfbyte.plan.scratch import library_bytes, narrow_bytes, scratch_bytes
from halfbyte.plan.shapes import TensorSpec, text_config
from halfbyte.plan.streaming import in_words, needs_streaming, no_layers, offload_words, opened_on_card, streaming
from halfbyte.plan.time import Length
from halfbyte.plan.weighing import gb, mapped_bytes, mapped_of, packed_sizes, state_bytes, stored_bytes
from halfbyte.targets import select_targets

SEQUENCE, BATCH, EVALUATION_BATCH = 512, 1, 16  # defaults: tokens, items trained at once, items evaluated at once


@dataclass(frozen=True)
class Plan:
    """All bytes; `to_json` gives the object that `halfbyte plan --json` prints."""

    model: str
    source: str
    settings: dict[str, Any]
    parameters: int | None
    linear_parameters: int
    linear_layers: int
    expert_parameters: int
    weights_bytes: dict[str, int | None]
    constants_bytes: dict[str, int]
    tables_bytes: dict[str, int]
    json_bytes: dict[str, int]
    adapter_parameters: int
    adapter_layers: int
    memory_bytes: int | None
    phases: dict[str, Phase]
    fits: bool | None
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    packed: str | None = None
    device: dict[str, Any] = field(default_factory=dict)
    time: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    parallel: dict[str, Any] = field(default_factory=dict)
    held_bytes: dict[str, int | None] = field(default_factory=dict)
    streaming: dict[str, Any] = field(default_factory=dict)  # of a base that is streamed to the card; else empty
    disk_bytes: dict[str, int | None] = field(default_factory=dict)

    @property
    def why_unknown(self) -> str:
        """Why it can't be said whether it fits, in words that begin with "unknown"."""
        if self.memory_bytes is None:
            return "unknown, because this system does not tell how much memory is free; give --memory"
        known = (self.unknown.get(name) for name in ("activations", "parameters"))
        return next((why for why in known if why), "unknown, because the need is not known")

    @property
    def adapter_bytes(self) -> int:
        return 4 * self.adapter_parameters

    @property
    def gradient_bytes(self) -> int:
        return 4 * self.adapter_parameters

    @property
    def optimiser_bytes(self) -> int:
        return self.phases["tune"].parts["optimiser"] or 0

    def to_json(self) -> dict[str, Any]:
        fields = {**asdict(self), "phases": {name: phase.to_json() for name, phase in self.phases.items()}}
        late = {name: fields.pop(name) for name in ("memory_bytes", "phases", "fits", "reasons", "notes", "unknown",
                                                         "device", "time", "fit", "parallel")}  # fmt: skip
        exact = {"adapter_bytes": self.adapter_bytes, "gradient_bytes": self.gradient_bytes,
                 "optimiser_bytes": self.optimiser_bytes}  # fmt: skip
        return {"schema": 1, **fields, **exact, **late}

    def _repr_html_(self) -> str:
        from halfbyte.plan.show import plan_html

        return plan_html(self.to_json())


def plan_model(
    name_or_path: str,
    *,
    rank: int = AdapterConfig.rank,
    targets: str | Sequence[str] = AdapterConfig.targets,
    weights: str | None = None,
    sequence: int = SEQUENCE,
    batch: int | None = BATCH,
    memory: str | int | None = None,
    recompute: int | str = "auto",
    evaluation_batch: int = EVALUATION_BATCH,
    evaluation_sequence: int | None = None,
    evaluation_new: int = 0,
    scored: Scored | None = None,
    items: int | None = None,
    learned: int | None = None,
    native: Native | None = None,
    compute: str = "auto",
    revision: str | None = None,
    device: Device | str | None = None,
    ranks: int | None = None,
    link: str | int | None = None,
    length: Length | None = None,
    step_items: int | None = None,
    settled: str | None = None,
    optimiser: str = "adamw",
    stream: str = "auto",
    offload: bool = False,
) -> Plan:
    """Plan a local folder, a model of the catalogue or one of the hub, without torch and without reading weights.

    `rank` and `targets` describe the adapter, `weights` the format that runs (None: the one in which the checkpoint is
    packed already, else nf4), `revision` a branch, tag or commit of a hub model, `sequence` the longest item in tokens,
    `batch` the items computed at once, `memory` what the run may take, mapped weights included (bytes, or "8GB"; None
    or "auto": what is free here), `recompute` the number of layers whose activations are computed again ("auto": as few
    as fit), `evaluation_batch` the answers at once, `evaluation_sequence` the tokens of the longest with its prompt
    (None: as `sequence`), `evaluation_new` those of them that are generated (0: not known), `scored` what a task scores
    where nothing is generated, `items` those of a task (then as many at once as `evaluate` takes), `learned` the tokens
    of an item whose loss counts, at most (None: all), `native` the parts that native code computes (None: as this
    machine's CPU will), `compute` the type of activations (auto: as the weights, 16 bits where those are quantised).
    `device` is where it runs (see `devices.find_device`; None: this machine's processor), `ranks` how many of them
    would train together over links of `link` bytes a second each, `length` the run whose time is asked for.
    With `step_items`, the items of an optimiser step, `batch` (None: open) and `recompute` are settled as by `tune`
    (`budget.choose`); where they are settled already, `settled` says why. `optimiser` is `tune.optimiser`, `stream` as
    in a run: auto is on where a card has no room for the weights beside one item, every layer recomputed; `offload` is
    `tune.offload_activations`, which means nothing off a card.

    Raises ConfigError for an unknown name, a wrong path or setting, or a target that matches nothing, and
    CheckpointError for a model that can't be read.
    """
    _check(rank=rank, sequence=sequence, batch=BATCH if batch is None else batch, evaluation_batch=evaluation_batch,
           evaluation_sequence=evaluation_sequence or sequence)  # fmt: skip
    known: dict[str, Weights] = {name: name for name in WEIGHTS}
    if weights is not None and weights not in known:
        raise ConfigError("unknown format", where="weights", found=repr(weights), do=nearest(weights, known))
    inventory = take_inventory(name_or_path, revision)
    weights = weights or inventory.packed or "nf4"
    if inventory.packed not in (None, weights):
        error = packed_otherwise(str(inventory.packed), weights, inventory.where)
        raise ConfigError(error.what, where=error.where, do=error.do)
    where = device if isinstance(device, Device) else find_device(device or "cpu")
    available = where.memory_bytes if memory is None or memory == "auto" else (
        memory if isinstance(memory, int) else parse_bytes(memory))  # fmt: skip
    if where.kind == "cuda" and (available or 0) > (has := where.memory_bytes or available or 0):
        less = f"it has {amount(has)}, less than the {amount(available or 0)} that memory says"
        where, available = replace(where, reason=f"{where.reason}; {less}"), has
    if compute == "int8":
        require_int8(where, known[weights])
    foreseen = "" if settled else "as asked"
    if compute == "auto":
        compute, foreseen = foretold_compute(inventory, known[weights], where)
    native = native or foretold(inventory.config, dtype_bytes=activation_bytes(weights, compute), device=where.kind)

    if items is not None:
        budget = token_budget(text_config(inventory.config), activation_bytes(weights, compute), where.kind)
        most = items_at_once(budget, evaluation_sequence or sequence, where.kind, scored)
        evaluation_batch = min(max(1, items), most)

    asked: dict[str, Any] = {
        "rank": rank, "targets": targets, "weights": known[weights], "sequence": sequence,
        "batch": BATCH if batch is None else batch, "memory_bytes": available, "recompute": recompute,
        "evaluation_batch": evaluation_batch, "evaluation_sequence": evaluation_sequence, "native": native,
        "evaluation_new": evaluation_new, "scored": scored,
        "compute": compute, "kind": where.kind, "learned": learned, "settled": settled, "foreseen": foreseen,
        "optimiser": optimiser, "offload": offload and where.kind == "cuda",
    }  # fmt: skip
    asked["stream"] = settle_stream(inventory, asked, stream) if where.kind == "cuda" else "off"
    choice = None if step_items is None else _choice(inventory, asked, batch, step_items)
    if choice is not None:
        asked |= {"batch": choice.micro_batch, "recompute": choice.recompute, "settled": str(choice)}

    def made(**changed: Any) -> Plan:
        return make_plan(inventory, **(asked | changed))

    return complete(made, inventory, where, ranks=ranks, link=link, length=length)


def make_plan(
    inventory: Inventory,
    rank: int,
    targets: str | Sequence[str],
    weights: Weights,
    sequence: int,
    batch: int,
    memory_bytes: int | None,
    recompute: int | str,
    evaluation_batch: int,
    native: Native,
    compute: str = "auto",
    kind: str = "cpu",
    evaluation_sequence: int | None = None,
    evaluation_new: int = 0,
    scored: Scored | None = None,
    learned: int | None = None,
    settled: str | None = None,
    foreseen: str = "",
    optimiser: str = "adamw",
    stream: str = "off",
    offload: bool = False,
) -> Plan:
    """The plan of an inventory; as `plan_model`, with everything looked up and without the answers of `complete`."""
    linears = inventory.linears
    chosen = select_targets(targets, list(linears), where=f"the linear layers of {inventory.name}")
    sizes = _adapter_sizes(linears, chosen, rank)
    adapter = sum(sizes)
    info = shape_info(inventory.config, rank=rank, targets=targets, native=native, learned=learned, weights=weights,
                      stored=inventory.dtype, offload=offload)  # fmt: skip
    quantised = inventory.quantised
    packed = packed_sizes(quantised.values())
    weights_bytes = stored_bytes(inventory, packed)
    constants = {format_: total.constants for format_, total in packed.items()}
    mapped = mapped_of(weights, weights_bytes, constants)
    b = activation_bytes(weights, compute)
    runtime = activations.runtime_bytes(info, inventory.tokenizer_bytes)
    opened: dict[str, int | None] = {"runtime": runtime}
    streamed = streaming(inventory, weights) if stream == "on" else None
    if kind == "cuda":  # nothing is mapped there, and the host's share is not the card's
        opened, mapped = opened_on_card(mapped, streamed), 0
    fixed = {**opened, "adapter": 4 * adapter, "narrow_copy": narrow_bytes(sizes, b)}
    if kind == "cpu":
        fixed["runtime"] = activations.running_bytes(info, inventory.tokenizer_bytes)

    def scratch(tokens: int, positions: int, trains: bool) -> int:
        shared = scratch_bytes(info, linears.values(), tokens, weights in QUANTISED, b, trains=trains,
                               positions=positions)  # fmt: skip
        return shared + (library_bytes(info, linears.values(), b) if kind == "cpu" else 0)

    loaded = 4 * adapter if kind == "cpu" else 0  # an adapter that was trained is mapped from its file
    answering = fixed | {"adapter": 4 * adapter - loaded}
    asked, budget = evaluation_sequence or sequence, token_budget(text_config(inventory.config), b, kind)
    read = None if mapped is None else mapped + loaded
    there = pieces(evaluation_batch, asked, kind, budget, info.dims.vocabulary or 0 if info.dims else 0, scored,
                   evaluation_new)  # fmt: skip
    needs = {**fixed, "gradients": 4 * adapter, "optimiser": moment_bytes(optimiser, sizes),
             "scratch": scratch(batch * sequence, activations.learned_tokens(info, batch, sequence), True)}  # fmt: skip
    taken = sum(size or 0 for size in needs.values())
    layers, why, mapped_counts = settle_recompute(info, recompute, batch, sequence, memory_bytes, taken, mapped or 0, b)
    phases = {
        "pack": packing(inventory, weights),
        "open": Phase(opened, mapped),
        "evaluate": Phase({**answering, **evaluation(info, evaluation_batch, asked, b, kind, budget, scored,
                                                    evaluation_new),
                           "scratch": scratch(there.tokens, there.positions, False)}, read),
        "tune": Phase({**needs, **training(info, batch, sequence, layers, b)}, mapped),
    }  # fmt: skip
    unknown = dict(inventory.unknown)
    if info.dims is None:
        unknown.setdefault("activations", info.unknown)
    on_device = {name: phase for name, phase in phases.items() if kind == "cpu" or name != "pack"}  # that is the host's
    fits, reasons = verdict(on_device, memory_bytes, unknown, mapped_counts)
    experts = sum(spec.count for spec in inventory.tensors if spec.kind == "expert")
    return Plan(
        model=inventory.name,
        source=inventory.where,
        settings={"weights": weights, "rank": rank, "targets": targets if isinstance(targets, str) else list(targets),
                  "sequence": sequence, "learned": learned, "batch": batch, "evaluation_batch": evaluation_batch,
                  "evaluation_sequence": asked, "scored": None if scored is None else asdict(scored),
                  "recompute": layers,
                  "layers": info.layers, "compute": compute, "dtype_bytes": b, "stream": "on" if streamed else "off",
                  "offload_activations": offload},
        parameters=inventory.parameters,
        linear_parameters=sum(rows * columns for rows, columns in quantised.values()),
        linear_layers=len(quantised),
        expert_parameters=experts,
        weights_bytes=weights_bytes,
        constants_bytes=_json_keys(constants),
        tables_bytes=_json_keys({format_: total.tables for format_, total in packed.items()}),
        json_bytes=_json_keys({format_: state_bytes(format_, quantised.values()) for format_ in QUANTISED}),
        adapter_parameters=adapter,
        adapter_layers=len(chosen),
        memory_bytes=memory_bytes,
        phases=phases,
        fits=fits,
        reasons=[*reasons, settled or why, *([f"compute {compute}: {foreseen}"] if foreseen else []),
                 *([in_words(streamed)] if streamed else []), *offload_words(info, batch, sequence, layers, b),
                 f"activations: {native}"],
        notes=[*inventory.notes, *_beyond(inventory.config, sequence, asked), *_kept(inventory, experts)],
        unknown=unknown,
        packed=inventory.packed,
        held_bytes=held_bytes(inventory, weights, b),
        streaming=asdict(streamed) | {"seconds_a_pass": streamed.seconds} if streamed else {},
    )  # fmt: skip


def settle_stream(inventory: Inventory, asked: Mapping[str, Any], stream: str) -> str:
    """Whether the weights are streamed to a card: "on" or "off". `asked`: the settings of `make_plan`.

    auto: on where they leave no room for one item with every layer recomputed, since that costs less than the link."""
    if stream == "on" and streaming(inventory, asked["weights"]) is None:
        raise no_layers()
    if stream != "auto" or asked["memory_bytes"] is None:
        return "off" if stream == "auto" else stream
    least = dict(asked) | {"stream": "off", "batch": 1}
    least["recompute"] = make_plan(inventory, **least).settings["layers"]
    phases = make_plan(inventory, **least).phases
    on, _ = needs_streaming(inventory, asked["weights"], phases["tune"], phases["open"], asked["memory_bytes"])
    return "on" if on else "off"


def _choice(inventory: Inventory, asked: dict[str, Any], batch: int | None, step_items: int) -> Choice | None:
    """What `tune` will choose for the settings that were `asked`; None where the memory or a shape is not known."""
    rank, weights, sequence = asked["rank"], asked["weights"], asked["sequence"]
    info = shape_info(inventory.config, rank=rank, targets=asked["targets"], native=asked["native"],
                      learned=asked["learned"], weights=weights, stored=inventory.dtype,
                      offload=asked["offload"])  # fmt: skip
    if asked["memory_bytes"] is None or (info.dims is not None and info.dims.vocabulary is None):
        return None
    b, mapped = activation_bytes(weights, asked["compute"]), mapped_bytes(inventory, weights) or 0
    names = select_targets(asked["targets"], list(inventory.linears), where=f"the linear layers of {inventory.name}")
    sizes, on_card = _adapter_sizes(inventory.linears, names, rank), asked["kind"] == "cuda"
    runtime = activations.running_bytes(info, inventory.tokenizer_bytes)
    runtime += library_bytes(info, inventory.linears.values(), b)
    if on_card:
        streamed = streaming(inventory, weights) if asked["stream"] == "on" else None
        runtime = sum(size or 0 for size in opened_on_card(mapped, streamed).values())
    fixed = spoken_for(
        info, inventory.linears.values(), packed=weights in QUANTISED, dtype_bytes=b,
        adapter=sizes, optimiser_bytes=moment_bytes(asked["optimiser"], sizes),
        step_items=step_items, longest=sequence, there_bytes=runtime,
    )  # fmt: skip
    recompute = asked["recompute"]
    return choose(
        info, batch=step_items, longest_tokens=sequence, memory_bytes=asked["memory_bytes"], fixed_bytes=fixed,
        mapped_bytes=0 if on_card else mapped, dtype_bytes=b, micro_batch=batch,
        recompute=recompute if isinstance(recompute, int) else None,
    )  # fmt: skip


def _adapter_sizes(linears: Mapping[str, tuple[int, int]], names: Iterable[str], rank: int) -> list[int]:
    """Numbers of each matrix of the adapter: of each layer [out, in] A and B."""
    return [rank * side for name in names for side in reversed(linears[name])]


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name.replace('_', ' ')} must be a whole number of at least 1", found=repr(value),
                              do="give e.g. 16")  # fmt: skip


def _json_keys(values: dict[Weights, int]) -> dict[str, int]:
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _beyond(config: Mapping[str, Any], sequence: int, evaluated: int) -> list[str]:
    """What is longer than the model was built for; to evaluate it is refused, to train on it is not."""
    context = text_config(config).get("max_position_embeddings")
    if not isinstance(context, int) or context < 1:
        return []
    notes = []
    if sequence > context:
        notes.append(f"items of {sequence:,} tokens are longer than the model's context of {context:,} tokens")
    if evaluated > context:
        notes.append(f"{evaluated:,} tokens of prompt and answer do not fit into the model's context of {context:,} "
                     "tokens: evaluating refuses them")  # fmt: skip
    return notes


def _kept(inventory: Inventory, experts: int) -> list[str]:
    """What stays in 16 bits although it is large, by name."""
    notes = []
    if experts:
        names = [spec.name for spec in inventory.tensors if spec.kind == "expert"]
        notes.append(f"{experts:,} parameters ({gb(2 * experts)}) are experts ({names[0]}, ...), which transformers "
                     "fuses into one tensor: no linear layers, they stay in 16 bits in every format")  # fmt: skip
    others = [spec for spec in inventory.tensors if spec.kind == "other" and spec.count > 1_000_000]
    if others:
        size = sum(spec.count for spec in others)
        notes.append(f"{size:,} parameters ({gb(2 * size)}) are no linear layers of the blocks ({_most(others)}): "
                     "they stay in 16 bits")  # fmt: skip
    return notes


def _most(specs: list[TensorSpec]) -> str:
    return max(specs, key=lambda spec: spec.count).name + (", ..." if len(specs) > 1 else "")
