"""Where a run would take place: this machine, one of its cards, or one that is named and not here.

The memory of a card is what `nvidia-smi` prints as its total with ECC as it is delivered, in MiB, read off published
outputs of that program; NVIDIA's data sheets give the round figure that is in the name. bf16 needs compute capability
8.0 (NVIDIA's CUDA programming guide; the NIM support matrix says the same). Amounts such as "24GB" are decimal, as
everywhere in halfbyte, and are taken for a card with bf16.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from halfbyte.errors import ConfigError
from halfbyte.options import parse_bytes
from halfbyte.plan.machine import CudaDevice, Machine, cuda_devices, this_machine
from halfbyte.plan.native import multiplies_bf16

# MiB in all, and whether it multiplies bf16.
CARDS: dict[str, tuple[int, bool]] = {
    "V100 16GB": (16160, False),
    "T4": (15360, False),
    "RTX 3060": (12288, True),
    "RTX 3090": (24268, True),
    "RTX 4060": (8188, True),
    "RTX 4080": (16376, True),
    "RTX 4090": (24564, True),
    "RTX 5090": (32607, True),
    "A10": (23028, True),
    "A10G": (23028, True),
    "L4": (23034, True),
    "A40": (46068, True),
    "L40S": (46068, True),
    "RTX A6000": (49140, True),
    "RTX 6000 Ada": (49140, True),
    "A100 40GB": (40960, True),
    "A100 80GB": (81920, True),
    "H100 80GB": (81559, True),
    "H200": (143771, True),
    "B200": (183359, True),
}
_BEFORE_AMPERE = (  # no bf16
    r"\b(T4|T4G|T1000|T2000|T[46]00|[VP]100|P40?|[GP]V?\d{3,4}|[MK]\d+|MX\d+|GTX|TITAN|RTX 20[5-8]0|Quadro RTX)\b"
)
_SOURCE = "total memory as nvidia-smi prints it"
# Of the driver and of torch's libraries on a card: 0.3 to 0.6 GB, by driver and card. Assumed, not measured here.
CONTEXT_BYTES = 600_000_000
_COUNTED = re.compile(r"\s*(\d+)\s*[xX*]\s*(\S.*)")


@dataclass(frozen=True)
class Device:
    """`memory_bytes` of each of `count` devices: what can be taken now, or all of a device that is not here."""

    kind: Literal["cpu", "cuda"]
    name: str
    memory_bytes: int | None
    bf16: bool
    reason: str
    count: int = 1
    here: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def find_device(asked: str | None) -> Device:
    """The device that `asked` stands for: auto (or None), cpu, cuda, cuda:N; a card's name ("T4", "A100 80GB"), an
    amount of memory ("24GB"), or several of them ("2x80GB"). Raises ConfigError."""
    if asked is None or asked == "auto":
        return _automatic()
    if asked == "cpu":
        return _processor("asked for")
    if asked == "cuda" or re.fullmatch(r"cuda:\d+", asked):
        return _card_here(asked)
    match = _COUNTED.fullmatch(asked)
    count, name = (int(match[1]), match[2]) if match else (1, asked)
    if count < 1:
        raise ConfigError("at least one device is needed", where="device", found=repr(asked), do=f"write e.g. 2x{name}")
    known = {_key(card): card for card in CARDS}
    card = known.get(_key(name)) or _only(name)
    if card is not None:
        mib, bf16 = CARDS[card]
        return Device("cuda", card, mib << 20, bf16, _SOURCE, count, here=False)
    try:
        size = parse_bytes(name)
    except ConfigError:
        do = f"name a card ({', '.join(CARDS)}), an amount (24GB, 2x80GB), auto, cpu or cuda:N"
        several = [card for card in CARDS if _key(name) and _key(name) in _key(card)]
        do = f"write which one: {' or '.join(several)}" if several else do
        if name.strip().isdigit():
            do = f"with a unit, {asked.strip()}GB is an amount of memory; or {do}"
        raise ConfigError("unknown device", where="device", found=repr(asked), do=do) from None
    if size < 1:
        raise ConfigError("a device needs memory", where="device", found=repr(asked), do="write e.g. 24GB")
    return Device("cuda", f"a card with {name.strip()}", size, True, "as asked; taken to have bf16", count, here=False)


def _key(name: str) -> str:
    """A name without what people leave out or add: NVIDIA, GeForce, Tesla, blanks, hyphens."""
    return re.sub(r"nvidia|geforce|tesla|[\s_-]", "", name.lower())


def _only(name: str) -> str | None:
    """A card's name without its memory, where only one has that name ("H100", "3090")."""
    found = [card for card in CARDS if _key(name) in (_key(card).removeprefix("rtx"), _key(card.rpartition(" ")[0]))]
    return found[0] if len(found) == 1 and _key(name) else None


def _automatic() -> Device:
    if not torch_has_cuda():
        return _processor("the installed torch is built without CUDA")
    cards = cuda_devices()
    return _of(cards[0], "a CUDA device is there") if cards else _processor("no CUDA device is there")


def _processor(reason: str) -> Device:
    machine = this_machine(cuda=False)
    return Device("cpu", machine.processor, machine.available_bytes, multiplies_bf16(), reason)


def _card_here(asked: str) -> Device:
    cards, index = cuda_devices(), int(asked.partition(":")[2] or 0)
    if index >= len(cards):
        found = f"{asked!r}; nvidia-smi lists {len(cards) or 'no card'}"
        raise ConfigError("the device is not there", where="device", found=found,
                          do="name the card to plan for (--device T4, --device 24GB), or use device: cpu")  # fmt: skip
    return _of(cards[index], "asked for")


def _of(card: CudaDevice, reason: str) -> Device:
    bf16 = not re.search(_BEFORE_AMPERE, card.name)
    return Device("cuda", card.name, card.free_bytes, bf16, reason)


def torch_has_cuda() -> bool:
    """Whether the installed torch was built for CUDA, read from its version file: importing it takes seconds."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    try:
        text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    match = re.search(r"^cuda\b[^=\n]*=\s*(.+)$", text, re.MULTILINE)
    return match is not None and match[1].strip() not in ("None", "''", '""')


def machine_words(machine: Machine) -> str:
    """What of this machine decides what fits."""
    free, total = (
        "unknown" if n is None else f"{n / 1e9:.1f} GB" for n in (machine.available_bytes, machine.total_bytes)
    )
    words = f"{free} free of {total}"
    if machine.limit_bytes is not None:
        words += f", the container may take {machine.limit_bytes / 1e9:.1f} GB"
    return words
