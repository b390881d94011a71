"""The stock stack as its documentation says to use it: transformers, bitsandbytes (NF4) and PEFT."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import compute
from benchmarks.turns import Case, Figures, Phase

TARGETS = {"attention": ["q_proj", "k_proj", "v_proj", "o_proj"], "all": "all-linear"}


def load(folder: str, *, quantised: bool = True, device: str = "cpu", dtype: torch.dtype | None = None) -> Any:
    """The causal LM in `folder`/bf16: quantised to NF4 with double quantisation while it is read, or in `dtype` (None:
    `compute`'s)."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = compute.dtype() if dtype is None else dtype
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=dtype)  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(
        Path(folder) / "bf16", dtype=dtype, quantization_config=config if quantised else None,
        **({} if device == "cpu" else {"device_map": {"": device}}),
    )  # fmt: skip


def with_adapter(net: Any, rank: int, targets: str) -> Any:
    """PEFT's LoRA around `net`; targets: "attention" or "all"."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(net, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS[targets]))


def to_train(net: Any, *, rank: int, targets: str, recompute: bool, quantised: bool = True) -> Any:
    """`net` ready to train; what is quantised goes through PEFT's own preparation."""
    from peft import prepare_model_for_kbit_training

    if quantised:
        net = prepare_model_for_kbit_training(net, use_gradient_checkpointing=recompute)
    elif recompute:
        net.gradient_checkpointing_enable()
        net.enable_input_require_grads()
    return with_adapter(net, rank, targets).train()


def as_loaded(net: Any, dtype: torch.dtype) -> Any:
    """Undo `to_train` and `with_adapter`: the same tensors in the same types as after loading (what the preparation
    turned to fp32 was `dtype`, so nothing is lost)."""
    from peft import PeftModel

    if isinstance(net, PeftModel):
        net = net.unload()
    net.gradient_checkpointing_disable()
    net.disable_input_require_grads()
    for parameter in net.parameters():
        parameter.grad = None
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)
    return net.requires_grad_(False)


class Session:
    """A loaded model and the work it was made ready for last."""

    def __init__(self, folder: str, quantised: bool) -> None:
        from halfbyte.memory import MemoryMeter

        self.quantised, self.folder = quantised, folder
        self.net, self.ready = load(folder, quantised=quantised), Case()
        self.step: Callable[[], float]
        self.meter = MemoryMeter()

    def turn(self, case: Case) -> Figures:
        """One turn of `case`, made ready for first where the last turn was another case's."""
        from halfbyte.memory import give_back

        works: dict[str, tuple[Callable[[Case], None], Callable[[Case], Figures]]] = {
            "step": (self._ready_to_train, self._train),
            "decode": (self._ready_to_decode, self._decode),
            "evaluate": (self._ready_to_decode, self._evaluate),
        }
        ready, work = works[case["do"]]
        if case != self.ready:
            self.net = as_loaded(self.net, compute.dtype())
            ready(case)
            give_back()
            self.meter.reset()
            self.ready = case
        figures = work(case)
        return {**figures, "peak_bytes": self.meter.peak_bytes or 0, "mapped_bytes": self.meter.mapped_bytes or 0}

    def _ready_to_train(self, case: Case) -> None:
        packed = [module for module in self.net.modules() if _packed(module)]
        assert not packed, "bitsandbytes has repacked the weights for decoding, which training can't use"
        self.net = to_train(self.net, rank=case["rank"], targets=case["targets"], recompute=case["recompute"],
                            quantised=self.quantised)  # fmt: skip
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
        ids = torch.tensor([case["ids"]])

        def step() -> float:
            optimiser.zero_grad()
            loss = self.net(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            return float(loss.detach())

        self.step = step

    def _train(self, case: Case) -> Figures:
        began = time.perf_counter()
        loss = self.step()
        return {"seconds": time.perf_counter() - began, "loss": loss}

    def _ready_to_decode(self, case: Case) -> None:
        if case.get("rank"):
            self.net = with_adapter(self.net, case["rank"], case["targets"])
        self.net.eval()

    def _decode(self, case: Case) -> Figures:
        new_tokens = case["new_tokens"]
        _, prefill, seconds = decode(self.net, case["prompts"], new_tokens + 1)
        return {"tokens_per_second": len(case["prompts"]) * new_tokens / seconds, "prefill_seconds": prefill}

    def _evaluate(self, case: Case) -> Figures:
        from benchmarks import evaluate

        return evaluate.by_a_plain_loop(self.net, self.folder, case["limit"])


def _packed(module: Any) -> bool:
    return bool(getattr(getattr(getattr(module, "weight", None), "quant_state", None), "packing_format_for_cpu", False))


def session(folder: str, quantised: bool = True) -> Phase:
    """A loaded model that trains, decodes or evaluates, a turn at a time, as its case says; training comes first, since
    the first forward pass in eval mode repacks the weights. The opening tells of the load, imports left out and the
    checkpoint in the cache as far as it fits."""
    from halfbyte.memory import MemoryMeter

    for name in ("transformers.models.llama.modeling_llama", "bitsandbytes", "peft"):
        importlib.import_module(name)
    with MemoryMeter() as meter:
        before, began = meter.peak_bytes or 0, time.perf_counter()
        made = Session(folder, quantised)
        figures = {"seconds": time.perf_counter() - began, "growth_bytes": (meter.peak_bytes or 0) - before,
                   "peak_bytes": meter.peak_bytes or 0, "mapped_bytes": meter.mapped_bytes or 0,
                   "footprint_bytes": made.net.get_memory_footprint()}  # fmt: skip
    with made.meter:
        case = yield figures
        while True:
            case = yield made.turn(case)


def decode(net: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[list[list[int]], float, float]:
    """Greedy answers of `new_tokens` tokens each; the seconds until the first token, and those of all after it.

    Prompts of several lengths are padded on the left.
    """
    from transformers import StoppingCriteriaList

    times: list[float] = []

    def note(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        times.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=net.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=net.device)
    began = time.perf_counter()
    with torch.inference_mode():
        made = net.generate(input_ids=ids, attention_mask=mask, do_sample=False, use_cache=True, pad_token_id=0,
                            max_new_tokens=new_tokens, min_new_tokens=new_tokens,
                            stopping_criteria=StoppingCriteriaList([note]))  # fmt: skip
    assert made.shape[1] == width + new_tokens
    return made[:, width:].tolist(), times[0] - began, times[-1] - times[0]
