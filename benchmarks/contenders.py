"""Who trains and decodes on a card, each in a process of its own: halfbyte (with all weights on the card, and with its
layers streamed and its activations on the host), the stock stack, Unsloth.

A case of a turn is {"do": "step", "tokens", "batch"}: one optimiser step over `batch` items of so many tokens, all of
them learned; or {"do": "decode", "new_tokens"}: one greedy answer. Everybody has an adapter of rank 16 on all linear
layers and AdamW with fp32 moments, and recomputes as its own documentation says: halfbyte what its plan says for the
memory at hand, the others every layer. Where a case does not fit, its figure is `out_of_memory`, and the turns go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks import parity, peers
from benchmarks.turns import Case, Figures, Phase

RANK, ALPHA, RATE = 16, 32, 1e-4
PROMPT = 32  # tokens before an answer
LONGEST = 8192  # tokens


class Contender(Protocol):
    """A loaded model."""

    def ready(self, tokens: int, batch: int) -> tuple[Callable[[], float], Figures]:
        """One optimiser step, which gives its loss, and what is known beforehand."""

    def decode(self, prompt: list[int], new_tokens: int) -> float:
        """Tokens a second, the first one left out."""


def tokens_of(count: int, seed: int = 0) -> list[int]:
    return torch.randint(256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


class Halfbyte:
    def __init__(self, folder: str, device: str, compute: str = "auto", streamed: bool = False) -> None:
        from halfbyte.config import AdapterConfig
        from halfbyte.model.build import load_model
        from halfbyte.model.offload import Offloader
        from halfbyte.model.stream import stream_layers

        self.folder, self.device, self.streamed = str(Path(folder) / "nf4"), device, streamed
        self.free = _free(device)
        on = streamed and device != "cpu"
        self.model = load_model(self.folder, device=device, compute=compute, stream="on" if on else "off")
        if streamed and not on:  # the same steps, where there is no card to spare
            stream_layers(self.model.net, self.model.layers(), self.model.device)
        self.model.add_adapter(AdapterConfig(rank=RANK, alpha=ALPHA))
        self.offload = Offloader(self.model.device, self.model.net) if streamed else None

    def ready(self, tokens: int, batch: int) -> tuple[Callable[[], float], Figures]:
        from halfbyte.config import TuneConfig
        from halfbyte.data.encode import Item
        from halfbyte.plan.ladder import plan_model
        from halfbyte.tune.loop import Plan, train
        from halfbyte.tune.state import State

        planned = plan_model(self.folder, rank=RANK, sequence=tokens, batch=batch, memory=self.free, device=self.device,
                             compute=self.model.compute, stream="on" if self.streamed else "off",
                             offload=self.streamed)  # fmt: skip
        layers = int(planned.settings["recompute"])
        self.model.recompute(layers, offload=self.offload)
        options = TuneConfig(batch=batch, max_steps=10_000, learning_rate=RATE, warmup=0.0, schedule="constant")
        state = State(self.model.parameters_to_train(), options)
        items = [Item.of(tokens_of(tokens, seed), [False] + [True] * (tokens - 1), 0, 0, "") for seed in range(batch)]
        plan = Plan(steps=10_000, steps_per_epoch=1, micro_batch=batch, pad_id=0, seed=0, validate_at=frozenset())
        records = train(self.model, items, [], state, options, plan)
        facts, phase = {"recomputed_layers": float(layers)}, planned.phases["tune"]
        if phase.peak_bytes is not None:  # of what torch allocates, so without the driver's context
            facts["planned_peak_bytes"] = float(phase.peak_bytes - (phase.parts.get("context") or 0))
        return lambda: next(records).loss, facts

    def decode(self, prompt: list[int], new_tokens: int) -> float:
        from halfbyte.config import DecodingConfig
        from halfbyte.evaluate.generate import generate

        self.model.recompute(0)
        options = DecodingConfig(max_new_tokens=new_tokens + 1, stop=[])
        made = generate(self.model, [prompt], options, batch=1, ends=(), settle=False)
        return made.decoded_tokens / made.decode_seconds

    def bytes_per_token(self) -> int:
        from benchmarks.limits import bytes_per_token

        return bytes_per_token(self.model.net)


class Stock:
    """transformers, bitsandbytes and PEFT, with the autocast that its trainer uses."""

    def __init__(self, folder: str, device: str) -> None:
        self.device = device
        self.dtype = torch.float16 if device != "cpu" and not torch.cuda.is_bf16_supported(False) else torch.bfloat16
        self.net = peers.load(folder, device=device, dtype=self.dtype)
        self.net = peers.to_train(self.net, rank=RANK, targets="all", recompute=True)

    def ready(self, tokens: int, batch: int) -> tuple[Callable[[], float], Figures]:
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
        ids = torch.tensor([tokens_of(tokens, seed) for seed in range(batch)], device=self.device)
        scaler = torch.amp.GradScaler(enabled=self.dtype == torch.float16)
        self.for_training()

        def step() -> float:
            optimiser.zero_grad()
            with torch.autocast(self.device.partition(":")[0], dtype=self.dtype):
                loss = self.net(input_ids=ids, labels=ids).loss
            scaler.scale(loss).backward()
            scaler.unscale_(optimiser)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            scaler.step(optimiser)
            scaler.update()
            return float(loss.detach())

        return step, {}

    def for_training(self) -> None:
        self.net.train()

    def for_decoding(self) -> None:
        self.net.eval()

    def decode(self, prompt: list[int], new_tokens: int) -> float:
        self.for_decoding()
        with torch.autocast(self.device.partition(":")[0], dtype=self.dtype):
            _, _, seconds = peers.decode(self.net, [prompt], new_tokens + 1)
        return new_tokens / seconds


class Unsloth(Stock):
    """As its notebooks have it, but for the optimiser, which is everybody's."""

    def __init__(self, folder: str, device: str) -> None:
        from unsloth import FastLanguageModel

        self.device, self.fast = device, FastLanguageModel
        net, _ = FastLanguageModel.from_pretrained(str(Path(folder) / "bf16"), max_seq_length=LONGEST, dtype=None,
                                                   load_in_4bit=True)  # fmt: skip
        self.net = FastLanguageModel.get_peft_model(
            net, r=RANK, lora_alpha=ALPHA, lora_dropout=0, bias="none", use_gradient_checkpointing="unsloth",
            target_modules=[*peers.TARGETS["attention"], "gate_proj", "up_proj", "down_proj"],
        )  # fmt: skip
        self.dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16

    def for_training(self) -> None:
        self.fast.for_training(self.net)

    def for_decoding(self) -> None:
        self.fast.for_inference(self.net)


WHO: Mapping[str, type[Any]] = {"halfbyte": Halfbyte, "peer": Stock, "unsloth": Unsloth}


def session(
    who: str, folder: str, device: str, compute: str = "auto", plain: bool = False, streamed: bool = False
) -> Phase:
    """A loaded model and its turns; halfbyte computes in `compute`, if `plain` by torch alone, and if `streamed` with
    its weights and activations on the host."""
    with parity.reference() if plain else nullcontext():
        yield from _session(who, folder, device, compute, streamed)


def _session(who: str, folder: str, device: str, compute: str, streamed: bool) -> Phase:
    began = time.perf_counter()
    made = Halfbyte(folder, device, compute, streamed) if who == "halfbyte" else WHO[who](folder, device)
    _settle(device)
    facts = {"bytes_per_token": float(made.bytes_per_token())} if who == "halfbyte" else {}
    case = yield {"seconds": time.perf_counter() - began, **facts}
    before, turns = Case(), iter(())
    while True:
        if case != before:
            before, turns = case, iter(())  # what the last case held goes first
            turns = _turns(made, case, device)
        try:
            figures = next(turns)
        except (torch.OutOfMemoryError, MemoryError):
            figures, before = {"out_of_memory": 1.0}, Case()
        case = yield figures


def _turns(made: Contender, case: Case, device: str) -> Iterator[Figures]:
    from halfbyte.memory import MemoryMeter, give_back

    give_back()
    if device != "cpu":
        torch.cuda.empty_cache()
    with MemoryMeter() as meter:
        if case["do"] == "decode":
            while True:
                speed = made.decode(tokens_of(PROMPT), case["new_tokens"])
                yield {"tokens_per_second": speed, "peak_bytes": _peak(meter)}
        step, facts = made.ready(case["tokens"], case["batch"])
        while True:
            began = time.perf_counter()
            loss = step()
            _settle(device)
            seconds = time.perf_counter() - began
            yield {"tokens_per_second": case["tokens"] * case["batch"] / seconds, "loss": loss,
                   "peak_bytes": _peak(meter), **facts}  # fmt: skip


def _settle(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _peak(meter: Any) -> float:
    """What torch held on the card at most; without one, the process."""
    return float(meter.cuda_peak_bytes or meter.peak_bytes or 0)


def _free(device: str) -> int | None:
    return None if device == "cpu" else int(torch.cuda.mem_get_info(device)[0])
