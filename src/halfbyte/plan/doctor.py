"""`halfbyte doctor`: the machine, the libraries, the kernels chosen and why, what is missing. It changes nothing."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from halfbyte.checkpoint.source import cache_folder
from halfbyte.errors import HalfbyteError
from halfbyte.plan.calibration import load as load_calibration
from halfbyte.plan.machine import Machine, this_machine
from halfbyte.plan.weighing import gb

Mark = Literal["ok", "note", "problem"]

PYTHON = (3, 11)
# The lowest version that is supported and the first that is not; those of pyproject.toml, which a test holds them to.
LIBRARIES: dict[str, tuple[str, str | None]] = {
    "torch": ("2.11", None),
    "transformers": ("5.17", "6"),
    "safetensors": ("0.5", None),
    "huggingface_hub": ("1.0", None),
    "tokenizers": ("0.22", None),
    "numpy": ("1.26", None),
    "scipy": ("1.13", None),
    "pyyaml": ("6", None),
    "rich": ("13.8", None),
    "filelock": ("3.13", None),
    "jinja2": ("3.1", None),
    "matplotlib": ("3.9", None),
}
EXTRAS: dict[str, tuple[str, ...]] = {"data": ("datasets", "pyarrow")}
# Families that the tests hold to transformers' own modules with all norms and MLPs replaced (test_blocks.py).
TESTED = ("gemma2", "gemma3", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
_LOW_MEMORY, _LOW_DISK = 2 * 10**9, 5 * 10**9  # bytes
_CACHE_FILES = 10_000  # counted at most


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what was found, and what to do about it."""

    mark: Mark
    what: str
    found: str
    do: str = ""


def doctor(machine: Machine | None = None) -> list[Finding]:
    """Look at everything that decides whether and how halfbyte runs here. Imports torch, if there is one."""
    machine = machine or this_machine()
    findings = [_python(), Finding("ok", "system", machine.system), *_hardware(machine)]
    findings += [_library(name, *bounds) for name, bounds in LIBRARIES.items()]
    findings += [_extra(name, packages) for name, packages in EXTRAS.items()]
    findings += [
        _kernels(),
        *_kernels_on_card(),
        _parts(),
        *_parts_on_card(),
        _compute(),
        _calibration(),
        _compiler(),
        _cuda(machine),
        _cache(),
        _disk(Path.cwd()),
    ]
    return findings


def render_doctor(findings: list[Finding], console: Console) -> int:
    """Print the findings; the exit code: 1 if one of them is a problem, else 0."""
    marks = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "bold red")}
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for finding in findings:
        word, style = marks[finding.mark]
        text = Text(finding.found)
        if finding.do:
            text.append(f"\n{finding.do}", style="dim")
        table.add_row(Text(word, style=style), Text(finding.what), text)
    console.print(table)
    problems = sum(finding.mark == "problem" for finding in findings)
    notes = sum(finding.mark == "note" for finding in findings)
    closing = f"{problems} problem{'s' * (problems != 1)}, {notes} note{'s' * (notes != 1)}"
    console.print(Text(closing, style="bold red" if problems else "bold green"))
    return 1 if problems else 0


def _python() -> Finding:
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] < PYTHON:
        return Finding("problem", "Python", found, f"halfbyte needs {PYTHON[0]}.{PYTHON[1]} or newer")
    return Finding("ok", "Python", found)


def _hardware(machine: Machine) -> list[Finding]:
    cores = Finding("ok", "processor", f"{machine.processor}, {machine.cores} cores for this process")
    total, free = machine.total_bytes, machine.available_bytes
    if total is None or free is None:
        found = "this system does not tell how much memory it has, or how much is free"
        return [cores, Finding("note", "memory", found, "give --memory to plan, and memory: to a run")]
    found = f"{gb(free)} free of {gb(total)}"
    if machine.limit_bytes is not None:
        found += f"; this container may take {gb(machine.limit_bytes)}"
    if free < _LOW_MEMORY:
        return [cores, Finding("note", "memory", found, "close other programs: only the smallest models fit")]
    return [cores, Finding("ok", "memory", found)]


def _library(name: str, lowest: str, ceiling: str | None) -> Finding:
    wanted = f">={lowest}" + (f",<{ceiling}" if ceiling else "")
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding("problem", name, "not installed", f"pip install '{name}{wanted}'")
    if _release(version) < _release(lowest):
        return Finding("problem", name, f"{version}, too old", f"pip install --upgrade '{name}{wanted}'")
    if ceiling is not None and _release(version) >= _release(ceiling):
        return Finding("problem", name, f"{version}, newer than what is supported", f"pip install '{name}{wanted}'")
    return Finding("ok", name, version)


def _release(version: str) -> tuple[int, ...]:
    """The numbers at the start of a version: 2.13.0+cpu is (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _extra(name: str, packages: tuple[str, ...]) -> Finding:
    missing = []
    for package in packages:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        found = f"{', '.join(missing)} not installed: no Parquet files, no data sets of the hub"
        return Finding("note", f"extra '{name}'", found, f"pip install 'halfbyte[{name}]' if you need them")
    return Finding("ok", f"extra '{name}'", ", ".join(packages))


def _kernels() -> Finding:
    try:
        from halfbyte.kernels.choice import choose

        choice = choose("cpu")
    except HalfbyteError as error:  # HALFBYTE_KERNELS asks for what is not there
        return Finding("problem", "kernels", f"{error.what}: {error.found}", error.do or "")
    except Exception as error:  # a broken torch must not keep the doctor from telling the rest
        return Finding("problem", "kernels", f"can't be loaded: {error}", "reinstall torch and halfbyte")
    if choice.name == "reference":
        return Finding("note", "kernels", f"reference: {choice.reason}", "right, but slower than the native library")
    return Finding("ok", "kernels", f"{choice.name}: {choice.reason}")


def _kernels_on_card() -> list[Finding]:
    """What quantises, dequantises and multiplies on a card, if torch has one."""
    try:
        import torch

        if not torch.cuda.is_available():
            return []
        from halfbyte.kernels.choice import choose

        choice = choose("cuda")
    except HalfbyteError as error:
        return [Finding("problem", "kernels on the card", f"{error.what}: {error.found}", error.do or "")]
    except Exception as error:  # a broken torch must not keep the doctor from telling the rest
        return [Finding("problem", "kernels on the card", f"can't be loaded: {error}", "reinstall torch and halfbyte")]
    if choice.name == "reference":
        return [Finding("note", "kernels on the card", f"reference: {choice.reason}", "right, but slower than Triton")]
    return [Finding("ok", "kernels on the card", f"{choice.name}: {choice.reason}")]


def _parts() -> Finding:
    found = (
        f"norms and gated MLPs run natively in {', '.join(TESTED)}; in any other family each is tried against its own "
        "module when a model is opened, and runs unchanged where it differs; `tune` says which"
    )
    if _kernels().mark != "ok":
        return Finding("note", "parts of a model", "transformers' own: there are no native kernels")
    return Finding("ok", "parts of a model", found)


def _parts_on_card() -> list[Finding]:
    """What computes norms, gates, rotary embeddings and the loss on a card, if torch has one."""
    try:
        import torch

        if not torch.cuda.is_available():
            return []
        from halfbyte.kernels.fused import choose_parts

        choice = choose_parts(torch.device("cuda"))
    except HalfbyteError as error:
        return [Finding("problem", "parts on the card", f"{error.what}: {error.found}", error.do or "")]
    except Exception as error:  # a broken torch must not keep the doctor from telling the rest
        return [Finding("problem", "parts on the card", f"can't be loaded: {error}", "reinstall torch and halfbyte")]
    if choice.name != "gpu":
        return [Finding("note", "parts on the card", choice.reason, "right, but slower than Liger-Kernel's")]
    found = (
        f"{choice.reason}: RMSNorm, SwiGLU, GeGLU, rotary embedding, cross-entropy; each is tried against the model's "
        "own when it is opened, and runs unchanged where it differs; `tune` says which"
    )
    return [Finding("ok", "parts on the card", found)]


def _compute() -> Finding:
    """What `compute: auto` stands for on this processor, and whether int8 can be had; of a card, each run says it."""
    try:
        from halfbyte.kernels import product_int8
        from halfbyte.kernels.compute import fastest

        choice, missing = fastest(), product_int8.missing()
    except HalfbyteError as error:  # HALFBYTE_KERNELS asks for what is not there
        return Finding("problem", "compute", f"{error.what}: {error.found}", error.do or "")
    except Exception as error:  # a broken torch must not keep the doctor from telling the rest
        return Finding("problem", "compute", f"can't be measured: {error}", "reinstall torch")
    int8 = f"can't be had: {missing}" if missing else "can be asked for, at some price in quality"
    if not missing and product_int8.is_slower():
        int8 = "can be asked for, but bf16 is faster here"
    return Finding("ok", "compute", f"{choice.name}: {choice.reason}; int8 {int8}")


def _calibration() -> Finding:
    found, reason = load_calibration()
    if found is None:
        return Finding("note", "calibration", "plans give no times: this machine is " + reason.split(";")[0],
                       "halfbyte doctor --calibrate (a minute or two)")  # fmt: skip
    rates = {
        name: f"{found.rates[f'product_{name}'] / 1e9:,.0f} GFLOP/s in {name}"
        for name in found.costs
        if f"product_{name}" in found.rates
    }
    words = f"{', '.join(rates.values())}, reads {found.rates['read'] / 1e9:.1f} GB/s"
    return Finding("ok", "calibration", f"{reason}: {words}")


def _compiler() -> Finding:
    found = next((path for name in ("c++", "g++", "clang++", "cl") if (path := shutil.which(name))), None)
    if found is None:
        return Finding("note", "compiler", "none found; it is needed only to install from source")
    return Finding("ok", "compiler", found)


def _cuda(machine: Machine) -> Finding:
    names = ", ".join(f"{device.name} ({gb(device.free_bytes)} free of {gb(device.total_bytes)})"
                      for device in machine.cuda)  # fmt: skip
    try:
        import torch
    except Exception as error:
        return Finding("problem", "CUDA", f"torch can't be imported: {error}", "reinstall torch")
    if torch.cuda.is_available():
        return Finding("ok", "CUDA", names or torch.cuda.get_device_name(0))
    if machine.cuda:
        built = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        do = "install the build that PyTorch's own selector names for this driver: https://pytorch.org/get-started"
        return Finding("note", "CUDA", f"{names}, but this torch ({built}) can't use it", do)
    return Finding("ok", "CUDA", "no device; everything runs on the processor")


def _cache() -> Finding:
    folder = cache_folder()
    if not folder.exists():
        return Finding("ok", "cache", f"{folder} (not made yet)")
    total = count = 0
    try:
        for file in folder.rglob("*"):
            if file.is_file():
                total, count = total + file.stat().st_size, count + 1
            if count >= _CACHE_FILES:
                break
    except OSError as error:
        return Finding("note", "cache", f"{folder} can't be read: {error}", "set HALFBYTE_CACHE to another folder")
    more = "at least " if count >= _CACHE_FILES else ""
    return Finding("ok", "cache", f"{folder}: {more}{gb(total)} of packed models, made again when they are missing")


def _disk(folder: Path) -> Finding:
    """Free space where runs are written, and where packed copies are kept if that is another disk."""
    places = {"here": folder}
    cache = cache_folder()
    existing = next((path for path in (cache, *cache.parents) if path.exists()), None)
    if existing is not None and existing.stat().st_dev != folder.stat().st_dev:
        places["cache"] = existing
    free = {name: shutil.disk_usage(path).free for name, path in places.items()}
    found = ", ".join(f"{name} {gb(size)}" for name, size in free.items())
    if min(free.values()) < _LOW_DISK:
        return Finding(
            "note", "free disk", found, "packed models take half a byte a weight; set HALFBYTE_CACHE and out:"
        )
    return Finding("ok", "free disk", found)
