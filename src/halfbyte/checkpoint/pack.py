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
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from halfbyte import kernels
from halfbyte.checkpoint import bnb
from halfbyte.checkpoint.beside import made_beside, reading
from halfbyte.checkpoint.card import Card
from halfbyte.checkpoint.jobs import Job, Left, packed_nbytes, plan_jobs
from halfbyte.checkpoint.mapped import Mapped, read
from halfbyte.checkpoint.recipes import plan_tensors
from halfbyte.checkpoint.skeleton import linear_layers, skeleton
from halfbyte.checkpoint.source import CONFIG, INDEX, Checkpoint, cache_folder, open_folder
from halfbyte.checkpoint.stream import BEHIND, ReadAhead, Span, WriteBehind
from halfbyte.checkpoint.writer import FLUSH, Writer
from halfbyte.errors import CheckpointError
from halfbyte.formats import QUANTISED, Weights, packed_otherwise
from halfbyte.memory import MemoryMeter, hold_little

Progress = Callable[[str, int, int], None]  # what, bytes done, bytes in all
NOTE = "halfbyte.json"
_CPU = torch.device("cpu")
_LAYOUT = 1  # of what is written; a cached copy of another layout is not used
_COPIED = ("*.json", "*.model", "*.txt", "*.jinja", "tokenizer*", "LICENSE*", "LICENCE*", "NOTICE*", "README*")


class _Quantise(Protocol):
    """As `kernels.quantise`, of a tensor on the host and with the result there."""

    def __call__(self, weight: Tensor, weights: Weights, *, name: str) -> kernels.PackedWeight: ...


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
        raise packed_otherwise(checkpoint.weights, weights, checkpoint.path)
    done = _already(checkpoint, out, weights)
    if done:
        return done
    hold_little()  # pieces of many megabytes are made on one thread and freed on another
    model = skeleton(checkpoint)
    jobs, left = plan_jobs(checkpoint, model, weights)
    with MemoryMeter() as meter, made_beside(out, sum(job.nbytes for job in jobs), NOTE) as folder:
        written = _write_tensors(checkpoint, model, jobs, weights, folder, progress, _quantiser(device))
        _write_config(checkpoint, model, jobs, weights, folder)
        _copy_others(checkpoint.path, folder)
        report = PackReport(
            out=str(out),
            weights=weights,
            seconds=time.monotonic() - started,
            nbytes=written,
            quantised=sum(job.quantised for job in jobs),
            quantised_nbytes=sum(packed_nbytes(job, weights) for job in jobs if job.quantised),
            left=left,
            peak_bytes=meter.peak_bytes,
        )
        with reading(checkpoint.path):
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
            raise packed_otherwise(checkpoint.weights, weights, checkpoint.path)
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


def _write_tensors(
    checkpoint: Checkpoint,
    model: Any,
    jobs: list[Job],
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


def _limit(jobs: list[Job]) -> int:
    """Bytes that may wait for the disk: half of what the largest tensor takes, so that a small model can bear them."""
    return min(BEHIND, max(FLUSH, max(job.nbytes for job in jobs) // 2))


def _write_all(writer: Writer, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        writer.write(name, [tensor])


def _spans(checkpoint: Checkpoint, job: Job) -> list[Span]:
    """What is read of the checkpoint's files for `job`."""
    stored = [checkpoint.tensors[name] for names in job.recipe.sources.values() for name in names]
    return [Span(checkpoint.path / one.file, one.start, one.end) for one in stored]


def _source_bytes(checkpoint: Checkpoint, job: Job) -> int:
    names = [name for names in job.recipe.sources.values() for name in names]
    return sum(checkpoint.tensors[name].nbytes for name in names) // len(job.recipe.targets)


def _quantiser(device: torch.device) -> _Quantise:
    return kernels.quantise if device.type == "cpu" else Card(device).quantise


def _quantised(
    checkpoint: Checkpoint, model: Any, job: Job, weights: Weights, quantise: _Quantise
) -> kernels.PackedWeight:
    if job.recipe.packed:
        shape = tuple(model.state_dict()[job.target].shape)
        return bnb.read_packed(Mapped(checkpoint), job.recipe.source, shape, weights)
    (weight,) = _values(checkpoint, model, job)
    weight = weight.float() if weight.dtype == torch.float64 else weight
    return quantise(weight, weights, name=f"{checkpoint.path}: {job.target}")


def _values(checkpoint: Checkpoint, model: Any, job: Job) -> Iterator[Tensor]:
    """The tensor's values, in pieces where it can be made piece by piece; each over a mapping that ends with it."""

    def one(name: str) -> Tensor:
        return read(checkpoint, name)

    if job.recipe.parts > 1 and not job.quantised:
        yield from job.recipe.pieces(one, model)
    else:
        yield job.recipe.make(one, model)[job.target]


def _write_config(checkpoint: Checkpoint, model: Any, jobs: list[Job], weights: Weights, folder: Path) -> None:
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
                with reading(file):
                    content = file.read_bytes()
                (folder / file.name).write_bytes(content)


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
