"""Packing: a checkpoint in another number format, written tensor by tensor, in bitsandbytes' layout.

The new folder is what transformers writes, too: the tensors under the model's own names (so experts are fused once and
for all), config.json with `quantization_config`, tokenizer, templates and licence copied. Linear layers are quantised
from the values as they are stored; the rest becomes bf16 (fp16 stays fp16; what transformers keeps in fp32 does).

A source tensor is mapped while it is used: what is copied as it is waits for the disk as a mapping, which is no memory
that the system can't take back; what is computed waits in at most `stream.BEHIND` bytes. So the peak is the runtime's
plus less than twice the largest tensor, however large the model. The folder is made beside its
destination under another name and then renamed, so that it is there completely or not at all. Its `halfbyte.json`,
which is this program's note of what it was made of, is what lets a second run see that the work is done.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from halfbyte import kernels
from halfbyte.checkpoint import bnb
from halfbyte.checkpoint.card import Card
from halfbyte.checkpoint.headers import DTYPES
from halfbyte.checkpoint.mapped import Mapped, read
from halfbyte.checkpoint.recipes import Recipe, plan_tensors
from halfbyte.checkpoint.skeleton import kept_in_fp32, linear_layers, skeleton
from halfbyte.checkpoint.source import CONFIG, INDEX, Checkpoint, cache_folder, open_folder
from halfbyte.checkpoint.stream import BEHIND, ReadAhead, Span, WriteBehind
from halfbyte.checkpoint.writer import FLUSH, Entry, Writer
from halfbyte.errors import CheckpointError
from halfbyte.formats import QUANTISED, Weights, packed_bytes
from halfbyte.memory import MemoryMeter, hold_little

Progress = Callable[[str, int, int], None]  # what, bytes done, bytes in all
NOTE = "halfbyte.json"
_CPU = torch.device("cpu")
_LAYOUT = 1  # of what is written; a cached copy of another layout is not used
_COPIED = ("*.json", "*.model", "*.txt", "*.jinja", "tokenizer*", "LICENSE*", "LICENCE*", "NOTICE*", "README*")
_SAFETENSORS = {name: short for short, (name, _) in DTYPES.items()}


class _Quantise(Protocol):
    """As `kernels.quantise`, of a tensor on the host and with the result there."""

    def __call__(self, weight: Tensor, weights: Weights, *, name: str) -> kernels.PackedWeight: ...


@dataclass(frozen=True)
class Left:
    """What stays in 16 bits (or in 32) beside quantised layers: its name, its bytes as written, and why."""

    name: str
    nbytes: int
    reason: str


@dataclass(frozen=True)
class PackReport:
    out: str
    weights: Weights
    seconds: float
    nbytes: int  # of the weight files
    quantised: int  # layers
    quantised_nbytes: int  # their codes and constants
    left: list[Left] = field(default_factory=list)
    peak_bytes: int | None = None  # see `halfbyte.memory`; None where nothing measures it
    already: bool = False  # it was there; nothing was done


@dataclass(frozen=True)
class _Job:
    """A tensor of the model on its way to the new checkpoint."""

    recipe: Recipe
    target: str
    dtype: str  # safetensors' name, of what is not quantised
    entries: tuple[Entry, ...]
    quantised: bool

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries if entry.room is None)


def pack(
    checkpoint: Checkpoint, out: Path, weights: Weights, *, device: torch.device = _CPU,
    progress: Progress | None = None,
) -> PackReport:  # fmt: skip
    """Write `checkpoint` to the folder `out` in the format `weights`. A complete pack of the same is left as it is.

    `device` quantises, a card part by part (checkpoint/card.py); the files are the same on every device.
    `progress` is called with what is done, the bytes done and the bytes in all (of the checkpoint's own tensors).
    Raises CheckpointError for a checkpoint that is packed in another format, that has nothing to quantise, or whose
    values can't be (NaN, infinity); for an `out` that holds something else; for a disk that is full.
    """
    started = time.monotonic()
    if checkpoint.weights not in (None, weights):
        raise _packed_otherwise(checkpoint, weights)
    done = _already(checkpoint, out, weights)
    if done:
        return done
    hold_little()  # pieces of many megabytes are made on one thread and freed on another
    model = skeleton(checkpoint)
    jobs, left = _jobs(checkpoint, model, weights)
    with MemoryMeter() as meter, _made_beside(out, sum(job.nbytes for job in jobs)) as folder:
        written = _write_tensors(checkpoint, model, jobs, weights, folder, progress, _quantiser(device))
        _write_config(checkpoint, model, jobs, weights, folder)
        _copy_others(checkpoint.path, folder)
        report = PackReport(
            out=str(out),
            weights=weights,
            seconds=time.monotonic() - started,
            nbytes=written,
            quantised=sum(job.quantised for job in jobs),
            quantised_nbytes=sum(_packed_nbytes(job, weights) for job in jobs if job.quantised),
            left=left,
            peak_bytes=meter.peak_bytes,
        )
        note = {"layout": _LAYOUT, "fingerprint": checkpoint.fingerprint, "model": checkpoint.name}
        _write_json(folder / NOTE, note | {"report": asdict(report)})
    return report


def as_weights(checkpoint: Checkpoint, weights: Weights, *, progress: Progress | None = None) -> Checkpoint:
    """`checkpoint` in the format `weights`: itself if it is, else a packed copy in the cache, made once.

    "bf16" means 16 bits: a checkpoint in fp16 is that already. The copy's folder is named after the checkpoint's
    identity; two processes may make it at once, the first to be ready wins.
    Raises CheckpointError as `pack` does, and for a cache that can't be written.
    """
    if checkpoint.weights is not None:
        if checkpoint.weights != weights:
            raise _packed_otherwise(checkpoint, weights)
        return checkpoint
    plain = {"bf16": ("bfloat16", "float16"), "fp32": ("float32",)}.get(weights, ())
    if checkpoint.dtype in plain:
        recipes = plan_tensors(checkpoint, skeleton(checkpoint))
        if all(recipe.converter is None for recipe in recipes):
            return checkpoint
    name = checkpoint.name.replace("/", "--")
    copy = cache_folder() / f"{name}-{weights}-{checkpoint.identity[:16]}"
    try:
        if not _is_complete(checkpoint, copy, weights):
            shutil.rmtree(copy, ignore_errors=True)  # of another layout, or damaged
            pack(checkpoint, copy, weights, progress=progress)
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise CheckpointError(
                "the cache for packed models can't be written",
                where=cache_folder(),
                found=error.__cause__.strerror,
                do="set HALFBYTE_CACHE to a folder that can be written, or pack the model yourself: halfbyte pack",
            ) from error.__cause__
        raise
    return open_folder(copy, name=checkpoint.name, revision=checkpoint.revision)


def _packed_otherwise(checkpoint: Checkpoint, weights: Weights) -> CheckpointError:
    return CheckpointError(
        f"this checkpoint is packed as {checkpoint.weights} and can't become {weights}",
        where=checkpoint.path,
        do=f"use it as it is (weights {checkpoint.weights}), or start from the model's 16-bit checkpoint",
    )


def _jobs(checkpoint: Checkpoint, model: Any, weights: Weights) -> tuple[list[_Job], list[Left]]:
    """What is to be written, in the model's order, and what of it is not quantised and why."""
    layers = linear_layers(model)
    wanted = {f"{name}.weight" for name, reason in layers.items() if reason is None} if weights in QUANTISED else set()
    dtype = "float32" if weights == "fp32" else "float16" if checkpoint.dtype == "float16" else "bfloat16"
    keep = kept_in_fp32(model, getattr(torch, dtype))
    expected = model.state_dict()
    jobs: list[_Job] = []
    for recipe in plan_tensors(checkpoint, model):
        for target, shape in recipe.targets.items():
            quantised = target in wanted and (checkpoint.weights is None or recipe.packed)
            floating = expected[target].is_floating_point()
            short = "F32" if target in keep else _SAFETENSORS[dtype if floating else str(expected[target].dtype)[6:]]
            entries = [Entry(target, short, shape)]
            if quantised:
                stored = bnb.layout(target, weights, (shape[0], shape[1]))
                entries = [Entry(n, d, s, bnb.STATE_ROOM if bnb.STATE in n else None) for n, (d, s) in stored.items()]
            jobs.append(_Job(recipe, target, short, tuple(entries), quantised))
    if weights in QUANTISED and not any(job.quantised for job in jobs):
        reasons = ", ".join(f"{name} ({reason})" for name, reason in list(layers.items())[:5])
        raise CheckpointError(
            f"this model has no linear layer that can be quantised to {weights}",
            where=checkpoint.path,
            found=reasons or "no linear layers",
            do="use it in 16 bits: --weights bf16",
        )
    return jobs, _left(jobs, layers, model) if weights in QUANTISED else []


def _packed_nbytes(job: _Job, weights: Weights) -> int:
    rows, columns = job.recipe.targets[job.target]
    size = packed_bytes(weights, rows, columns)
    return size.codes + size.constants


def _left(jobs: list[_Job], layers: dict[str, str | None], model: Any) -> list[Left]:
    """Every matrix that is not quantised, by name; vectors together, since there are many and they are small."""
    embedding = model.get_input_embeddings()
    left: list[Left] = []
    small: list[_Job] = []
    for job in jobs:
        (entry, *_), owner = job.entries, job.target.rpartition(".")[0]
        if job.quantised:
            continue
        if len(entry.shape) < 2:
            small.append(job)
        elif model.get_submodule(owner) is embedding:
            left.append(Left(job.target, job.nbytes, "the embedding"))
        elif owner in layers:
            left.append(Left(job.target, job.nbytes, layers[owner] or "left so by whoever packed it"))
        else:
            kind = type(model.get_submodule(owner)).__name__
            left.append(Left(job.target, job.nbytes, f"no linear layer: {list(entry.shape)} of {kind}"))
    if small:
        total = sum(job.nbytes for job in small)
        left.append(Left(f"{len(small)} norms, biases and other vectors", total, "no matrix"))
    return left


def _write_tensors(
    checkpoint: Checkpoint,
    model: Any,
    jobs: list[_Job],
    weights: Weights,
    folder: Path,
    progress: Progress | None,
    quantise: _Quantise,
) -> int:
    compute = "float16" if checkpoint.dtype == "float16" else "bfloat16"
    total = sum(_source_bytes(checkpoint, job) for job in jobs)
    done = 0
    writer = Writer(folder, [job.entries for job in jobs])
    try:
        with ReadAhead([_spans(checkpoint, job) for job in jobs]) as ahead, WriteBehind(_limit(jobs)) as behind:
            for index, job in enumerate(jobs):
                if progress:
                    progress("pack", done, total)
                ahead.reached(index)
                if job.quantised:
                    made = bnb.tensors(job.target, _quantised(checkpoint, model, job, weights, quantise), compute)
                    behind.put(job.nbytes, partial(_write_all, writer, made))
                    del made
                else:
                    mapped = job.recipe.converter is None
                    for piece in _values(checkpoint, model, job):
                        behind.put(0 if mapped else piece.nbytes, partial(writer.append, job.target, piece))
                    behind.put(0, partial(writer.end, job.target))
                done += _source_bytes(checkpoint, job)
        if progress:
            progress("pack", total, total)
        return writer.finish()
    finally:
        writer.close()


def _limit(jobs: list[_Job]) -> int:
    """Bytes that may wait for the disk: half of what the largest tensor takes, so that a small model can bear them."""
    return min(BEHIND, max(FLUSH, max(job.nbytes for job in jobs) // 2))


def _write_all(writer: Writer, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        writer.write(name, [tensor])


def _spans(checkpoint: Checkpoint, job: _Job) -> list[Span]:
    """What is read of the checkpoint's files for `job`."""
    stored = [checkpoint.tensors[name] for names in job.recipe.sources.values() for name in names]
    return [Span(checkpoint.path / one.file, one.start, one.end) for one in stored]


def _source_bytes(checkpoint: Checkpoint, job: _Job) -> int:
    names = [name for names in job.recipe.sources.values() for name in names]
    return sum(checkpoint.tensors[name].nbytes for name in names) // len(job.recipe.targets)


def _quantiser(device: torch.device) -> _Quantise:
    return kernels.quantise if device.type == "cpu" else Card(device).quantise


def _quantised(
    checkpoint: Checkpoint, model: Any, job: _Job, weights: Weights, quantise: _Quantise
) -> kernels.PackedWeight:
    if job.recipe.packed:
        shape = tuple(model.state_dict()[job.target].shape)
        return bnb.read_packed(Mapped(checkpoint), job.recipe.source, shape, weights)
    (weight,) = _values(checkpoint, model, job)
    weight = weight.float() if weight.dtype == torch.float64 else weight
    return quantise(weight, weights, name=f"{checkpoint.path}: {job.target}")


def _values(checkpoint: Checkpoint, model: Any, job: _Job) -> Iterator[Tensor]:
    """The tensor's values, in pieces where it can be made piece by piece; each over a mapping that ends with it."""

    def one(name: str) -> Tensor:
        return read(checkpoint, name)

    if job.recipe.parts > 1 and not job.quantised:
        yield from job.recipe.pieces(one, model)
    else:
        yield job.recipe.make(one, model)[job.target]


def _write_config(checkpoint: Checkpoint, model: Any, jobs: list[_Job], weights: Weights, folder: Path) -> None:
    config = {key: value for key, value in checkpoint.config.items() if key not in ("torch_dtype", "dtype")}
    config.pop("quantization_config", None)
    floats = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    sizes = {name: sum(job.nbytes for job in jobs if job.dtype == short) for short, name in floats.items()}
    config["dtype"] = dtype = max(sizes, key=lambda name: sizes[name])
    if getattr(model.config, "tie_word_embeddings", None) is False:
        config["tie_word_embeddings"] = False
    if weights in QUANTISED:
        quantised = {job.target for job in jobs if job.quantised}
        skipped = [name for name in linear_layers(model) if f"{name}.weight" not in quantised]
        config["quantization_config"] = _quantization_config(weights, dtype, skipped)
    _write_json(folder / CONFIG, config)


def _quantization_config(weights: Weights, dtype: str, skipped: list[str]) -> dict[str, Any]:
    """What transformers writes for bitsandbytes, with the layers that stay in 16 bits."""
    settings: dict[str, Any] = {"quant_method": "bitsandbytes", "llm_int8_skip_modules": skipped}
    if weights == "int8":
        return settings | {"load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 6.0}
    return settings | {
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": weights == "nf4",
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
    }


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy_others(source: Path, folder: Path) -> None:
    """Tokenizer, templates, generation settings, licence: everything small that is not made anew."""
    for pattern in _COPIED:
        for file in source.glob(pattern):
            new = file.name not in (CONFIG, INDEX, NOTE) and not (folder / file.name).exists()
            if new and file.is_file() and _stays_inside(file):
                shutil.copyfile(file, folder / file.name)


def _stays_inside(file: Path) -> bool:
    """Whether `file` is none of a stranger's links to elsewhere, of which a copy would be passed on. The hub's cache
    links from `snapshots/COMMIT/` to the `blobs/` beside."""
    source, real = file.parent.resolve(), file.resolve()
    beside = source.parent.parent / "blobs" if source.parent.name == "snapshots" else source
    return real.is_relative_to(source) or real.is_relative_to(beside)


def _already(checkpoint: Checkpoint, out: Path, weights: Weights) -> PackReport | None:
    """The report of an `out` that is this very pack, None if there is room for it. Raises CheckpointError."""
    if out.is_file():
        raise CheckpointError("this is a file; a packed model is a folder", where=out, do="name another folder")
    if not out.is_dir() or not any(out.iterdir()):
        return None
    try:
        note = json.loads((out / NOTE).read_text(encoding="utf-8"))
        report = note["report"]
        same = note["layout"] == _LAYOUT and note["fingerprint"] == checkpoint.fingerprint
        if same and report["weights"] == weights:
            open_folder(out)  # raises where files are missing or cut
            left = [Left(**item) for item in report.pop("left")]
            return PackReport(**report | {"out": str(out), "left": left, "seconds": 0.0, "already": True})
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        pass
    raise CheckpointError(
        "this folder is not empty, and what it holds is not this model in this format",
        where=out,
        do="name a new folder, or remove this one",
    )


def _is_complete(checkpoint: Checkpoint, out: Path, weights: Weights) -> bool:
    try:
        return _already(checkpoint, out, weights) is not None
    except CheckpointError:
        return False


@contextmanager
def _made_beside(out: Path, need: int) -> Iterator[Path]:
    """A folder that takes the place of `out` when all went well, and of which nothing stays otherwise."""
    mark = f".{out.name}.{socket.gethostname()}-"
    folder = out.parent / f"{mark}{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out.parent, mark)
        free = shutil.disk_usage(out.parent).free
        if free < need + (1 << 24):
            raise CheckpointError(
                "there is not enough room on this disk",
                where=out.parent,
                found=f"{free / 1e6:,.0f} MB free, {need / 1e6:,.0f} MB needed",
                do="free some space, or name a folder on another disk",
            )
        folder.mkdir()
        yield folder
        _put(folder, out)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CheckpointError(
            "the disk is full" if full else "the packed model can't be written",
            where=out.parent,
            found=f"{error.strerror or error} after {need / 1e9:.1f} GB were asked for" if full else error,
            do="free some space, or name a folder on another disk" if full else "name a folder that can be written",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(folder: Path, out: Path) -> None:
    """Rename `folder` to `out`. Another process may have been faster; what it made is as good."""
    try:
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        folder.rename(out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not (out / NOTE).is_file():
            raise


def _remove_stale(parent: Path, mark: str) -> None:
    """Remove what processes of this machine left that were killed before they could clean up."""
    for folder in parent.glob(f"{mark}*.partial"):
        pid = folder.name.removeprefix(mark).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)
