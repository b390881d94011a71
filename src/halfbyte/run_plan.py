"""The plan of a run whose model is loaded: what is chosen by itself, whether it fits, and plan.json."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from rich.console import Console

from halfbyte.config import RunConfig
from halfbyte.errors import ConfigError, DoesNotFit
from halfbyte.formats import QUANTISED, Weights, moment_bytes
from halfbyte.options import parse_bytes
from halfbyte.plan.answering import Scored
from halfbyte.plan.inventory import Inventory, take_inventory


class RunPlan:
    """What the plan says of a run: the automatic choices, and plan.json."""

    def __init__(
        self, model: Any, data: Any, force: bool, console: Console, ranks: int = 1, *, begun: bool = False
    ) -> None:
        self.model, self.data, self.force, self.console = model, data, force, console
        self.begun = begun  # the run goes on
        self.ranks = ranks  # that share each step's items, and on a CPU the memory
        self.plan: dict[str, Any] = {}
        self.expected: dict[str, float] | None = None  # of the run, by the mean length of its items
        self.chosen = ""
        # items at once, tokens of each, those of them that are generated, what is scored; None: as the plan supposes
        self.asked: tuple[int, int, int, Scored | None] | None = None

    def choose(self, config: RunConfig) -> RunConfig:
        """Settle micro-batch and recomputation where they are open. Raises DoesNotFit unless `force`."""
        from halfbyte.plan.activations import shape_info
        from halfbyte.plan.budget import choose

        adapter, options, inventory = config.adapter, config.tune, take_inventory(str(self.model.path))
        shape = shape_info(self.model.net.config.to_dict(), rank=adapter.rank, targets=adapter.targets,
                           native=self._native(), learned=self._learned(), weights=config.weights,
                           stored=inventory.dtype,
                           offload=options.offload_activations)  # fmt: skip
        longest = self.data.counts.longest
        fixed, mapped = self._spoken_for(config, shape, inventory, longest)
        chosen = choose(
            shape, batch=self._share(options.batch), longest_tokens=longest, memory_bytes=self._memory(config),
            fixed_bytes=fixed, mapped_bytes=mapped, dtype_bytes=self.model.dtype.itemsize,
            micro_batch=None if options.micro_batch == "auto" else int(options.micro_batch),
            recompute=None if options.recompute == "auto" else int(options.recompute),
        )  # fmt: skip
        config = dataclasses.replace(
            config, tune=dataclasses.replace(options, micro_batch=chosen.micro_batch, recompute=chosen.recompute)
        )
        if chosen.fits is False and not self.force:
            advice = self._planned(config, longest).fit["advice"].get("tune", "close other programs, raise memory")
            raise DoesNotFit("the run does not fit", where=config.out, found=chosen.reason,
                             do=f"{advice}; or start anyway with --force")  # fmt: skip
        self.chosen = str(chosen)
        self.console.print(self.chosen, markup=False)
        packing, said = self._packing(options.packing, chosen.micro_batch)
        self.console.print(said, markup=False)
        return dataclasses.replace(config, tune=dataclasses.replace(config.tune, packing=packing))

    def _packing(self, asked: str, micro_batch: int) -> tuple[str, str]:
        """Whether a micro-batch is packed, and that with its reason. What is planned for it is a bound then: as many
        tokens as padded.

        Raises ConfigError where it is asked for and the model can't. A run that was begun where it could pads here."""
        from halfbyte.model.packing import find_way

        if asked == "off":
            return "off", "packing off: as asked"
        if micro_batch == 1:
            return "off" if asked == "auto" else asked, "packing off: one item at a time has no padding"
        way, reason = find_way(self.model)
        self.model.packs_with = way
        if way:
            worse = f" ({reason})" if reason else ""
            return "on", f"packing on: the items of a micro-batch stand in one row, without padding{worse}"
        if asked == "auto":
            return "off", f"packing off: items are padded, since {reason}"
        if self.begun:
            return asked, f"packing off here: items are padded until the run goes on elsewhere, since {reason}"
        raise ConfigError("the items of a micro-batch can't be packed", where="tune.packing", found=reason,
                          do="use tune.packing: auto or off")  # fmt: skip

    def _spoken_for(self, config: RunConfig, shape: Any, inventory: Inventory, longest: int) -> tuple[int, int]:
        """Bytes that are taken whatever is chosen, and those of the mapped weights."""
        from halfbyte.model.adapter import quant_linears
        from halfbyte.plan.activations import running_bytes
        from halfbyte.plan.budget import spoken_for
        from halfbyte.plan.scratch import library_bytes
        from halfbyte.plan.streaming import opened_on_card, streaming
        from halfbyte.plan.weighing import mapped_bytes

        weights = cast(Weights, config.weights)
        sizes = self.model.adapter_sizes(config.adapter)
        matrices = [(layer.out_features, layer.in_features) for layer in quant_linears(self.model.net).values()]
        on_card, mapped = self.model.device.type != "cpu", mapped_bytes(inventory, weights)
        streamed = streaming(inventory, weights) if self.model.streamer is not None else None
        there = sum(size or 0 for size in opened_on_card(mapped, streamed).values())
        b = int(self.model.dtype.itemsize)
        if not on_card:
            there = running_bytes(shape, inventory.tokenizer_bytes) + library_bytes(shape, matrices, b)
        fixed = spoken_for(
            shape, matrices, packed=weights in QUANTISED, dtype_bytes=b, adapter=sizes,
            optimiser_bytes=moment_bytes(config.tune.optimiser, sizes),
            step_items=self._share(config.tune.batch), longest=longest,
            there_bytes=there if config.memory != "auto" else 0,  # what is free is counted beside it
        )  # fmt: skip
        return fixed, 0 if on_card else mapped or 0  # on a card they can't be dropped

    def _native(self) -> Any:
        """What the loaded model says of its parts."""
        import torch

        from halfbyte.kernels import multiplies_many
        from halfbyte.kernels.choice import choose as choose_kernels
        from halfbyte.plan import native

        kernels, dtype = choose_kernels(self.model.device), self.model.dtype
        if kernels.isa is None or dtype == torch.float16:  # the kernels between the products take bf16 and fp32
            return native.plain(kernels.beside if kernels.isa is None else "activations are fp16")
        attention = self.model.attention
        products = multiplies_many(kernels.isa, dtype)
        return native.of_model(self.model.replaced, "" if attention is None else attention.name, products=products,
                               reason=kernels.reason)  # fmt: skip

    def _memory(self, config: RunConfig) -> int:
        """Bytes that this process may take: of the run's on a CPU its share, on a card all that is said or free."""
        from halfbyte.plan.machine import this_machine

        on_card = self.model.device.type == "cuda"
        if config.memory != "auto":
            return parse_bytes(config.memory) // (1 if on_card else self.ranks)
        if on_card:
            import torch

            return int(torch.cuda.mem_get_info(self.model.device)[0])
        available = this_machine(cuda=False).available_bytes
        if available is None:
            raise ConfigError("this system does not say how much memory is free", where="memory", do="set memory: 8GB")
        return available // self.ranks

    def _share(self, items: int) -> int:
        """The most of so many items that one rank has."""
        return -(-items // self.ranks)

    def plan_json(self, config: RunConfig) -> dict[str, Any]:
        counts = self.data.counts
        self.expected = self._planned(config, max(1, round(counts.tokens / counts.items))).time["run"]
        self.plan = self._planned(config, counts.longest).to_json() | {"expected": self.expected}
        return self.plan

    def _planned(self, config: RunConfig, tokens: int) -> Any:
        """The plan of the run, settled as `config` says, if every item had `tokens` tokens."""
        from halfbyte.plan.ladder import plan_model

        asked: dict[str, Any] = {}
        if self.asked is not None:
            names = ("evaluation_batch", "evaluation_sequence", "evaluation_new", "scored")
            asked = dict(zip(names, self.asked, strict=True))
        return plan_model(
            str(self.model.path),
            rank=config.adapter.rank,
            targets=config.adapter.targets,
            weights=config.weights,
            sequence=tokens,
            batch=int(config.tune.micro_batch),
            recompute=int(config.tune.recompute),
            optimiser=config.tune.optimiser,
            memory=self._memory(config),
            native=self._native(),
            compute=config.compute,
            device=self._device(config),
            stream="off" if self.model.streamer is None else "on",
            offload=config.tune.offload_activations,
            length=self._length(config),
            learned=self._learned(),
            settled=self.chosen,
            **asked,
        )

    def _learned(self) -> int:
        """Learned tokens of the item that has most of them."""
        return max(int(item.learned_tokens) for item in (*self.data.train, *self.data.validation))

    def _length(self, config: RunConfig) -> Any:
        from halfbyte.plan.time import Length

        options = config.tune
        train, validation, batch = map(self._share, (len(self.data.train), len(self.data.validation), options.batch))
        return Length(train, validation, options.epochs, batch, options.max_steps, options.validate_every)

    def _device(self, config: RunConfig) -> Any:
        """Where the model lies, as the plan takes it."""
        from halfbyte.plan.devices import Device, find_device

        if self.model.device.type != "cuda":
            return find_device("cpu")
        import torch

        name, bf16 = torch.cuda.get_device_name(self.model.device), self.model.compute == "bf16"
        return Device("cuda", name, self._memory(config), bf16, self.model.device_reason)
