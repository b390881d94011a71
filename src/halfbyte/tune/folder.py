"""The folder of a run: whether a run may begin in it or go on in it, and that only one process trains there."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from halfbyte import durable
from halfbyte.config import RunConfig
from halfbyte.data import check_report
from halfbyte.errors import ConfigError, DataError
from halfbyte.option_files import flat, read_yaml, to_dict
from halfbyte.options import build
from halfbyte.plan import measured
from halfbyte.tune.inputs import changed_inputs
from halfbyte.tune.state import last_checkpoint, last_inputs

CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"
LOCK = ".lock"  # locked by the process that trains here; the file stays, the lock goes with the process
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}  # what a file system says that has none
_ELSEWHERE = "choose another: --set out=..."
# What a run leaves that was killed before it trained
_BEFORE = {"evaluations", measured.FILE, check_report.FILE, "task.yaml"}
# Options that a resume may change: they decide when something is written or where it runs, not what comes out.
_FREE = {
    "tune.checkpoint_every",
    "tune.explosion",
    "tune.offload_activations",
    "memory",
    "device",
    "stream",
    "out",
    "task",
}


def prepare_folder(config: RunConfig, resume: bool, inputs: Callable[[], Mapping[str, str]] | None = None) -> RunConfig:
    """Check that `config` may begin in the run's folder, or go on in it; returns the options to use.

    `inputs` gives what the run is made of (`inputs_of`), which is asked for on a resume only.
    Raises ConfigError when it can't be made there, when it holds a run and `resume` is not asked for, or when options
    that matter, or the inputs, are not those that the run was started with: with the list of all that differ; and
    TrainingError when there are checkpoints and none is whole.
    """
    folder = Path(config.out)
    stored = folder / "run.yaml"
    if not stored.exists():
        if resume and not _is_ours(folder / measured.FILE):
            raise ConfigError("there is no run to go on with", where=folder, do="leave --resume away to start it")
        _spare_others(folder, config.task)
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            found = f"{above} is {'no folder' if not above.is_dir() else 'not writable'}"
            raise ConfigError("the run's folder can't be made", where=folder, found=found, do=_ELSEWHERE)
        return config
    if not resume:
        raise ConfigError(
            "the folder holds a run already",
            where=folder,
            do="go on with --resume, or choose another folder: --set out=...",
        )
    said = read_yaml(stored)
    before = build(RunConfig, said, str(stored))
    if "packing" not in said.get("tune", {}):  # of a version that always padded
        before = dataclasses.replace(before, tune=dataclasses.replace(before.tune, packing="off"))
    config = _settled(config, before)
    old, new = flat(to_dict(before)), flat(to_dict(config))
    keys = sorted({*old, *new} - _FREE)
    changed = [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys if old.get(key) != new.get(key)]
    if inputs is not None:
        changed += _changed(folder, inputs())
    _refuse(changed, folder)
    last_checkpoint(folder / CHECKPOINTS)  # where none is whole, that is said before anything is loaded or written
    return config


def _settled(config: RunConfig, before: RunConfig) -> RunConfig:
    """`config` with the automatic choices that the run was started with."""
    micro_batch = before.tune.micro_batch if config.tune.micro_batch == "auto" else config.tune.micro_batch
    recompute = before.tune.recompute if config.tune.recompute == "auto" else config.tune.recompute
    packing = before.tune.packing if config.tune.packing == "auto" else config.tune.packing
    tune = dataclasses.replace(config.tune, micro_batch=micro_batch, recompute=recompute, packing=packing)
    compute = before.compute if config.compute == "auto" else config.compute
    return dataclasses.replace(config, tune=tune, compute=compute)


def refuse_other_inputs(folder: Path, inputs: Mapping[str, str]) -> None:
    """Raises ConfigError where a run was made of something else than `inputs`."""
    _refuse(_changed(folder, inputs), folder)


def _changed(folder: Path, inputs: Mapping[str, str]) -> list[str]:
    before = last_inputs(folder / CHECKPOINTS)
    return [] if before is None else changed_inputs(before, inputs)


def _refuse(changed: list[str], folder: Path) -> None:
    if changed:
        raise ConfigError(
            "the run can't go on: what it was started with has changed",
            where=folder,
            found="\n         ".join(changed),
            do="put it back, or start another run: --set out=...",
        )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make the run's folder, ready for a run that begins or goes on in it, and let no other process train there.

    Within a process it may be entered again. Where the file system knows no locks nobody is kept out.
    Raises ConfigError where another process trains there, and where the folder can't be made.
    """
    lock = FileLock(folder.absolute() / LOCK, is_singleton=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError("another process trains in this folder", where=folder,
                          do="wait until it has ended, or stop it; another run: --set out=...") from None  # fmt: skip
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise _not_made(folder, error) from None
    try:
        _clear(folder)
        yield
    finally:
        if lock.is_locked:
            lock.release()


def _not_made(folder: Path, error: OSError) -> ConfigError:
    return ConfigError("the run's folder can't be made", where=folder, found=str(error), do=_ELSEWHERE)


def _clear(folder: Path) -> None:
    try:
        (folder / measured.PART).unlink(missing_ok=True)  # of a run that was killed while it wrote
        for left in folder.glob(f".*{durable.PART}"):
            left.unlink()
    except OSError as error:
        raise _not_made(folder, error) from None


def _spare_others(folder: Path, task: str | None) -> None:
    """Raises ConfigError where a run that begins in `folder` would write over what no run of ours left there."""
    ours = _is_ours(folder / measured.FILE)
    mine = folder / "task.yaml"
    if task and not ours and mine.exists() and Path(task).resolve() == mine.resolve():
        raise ConfigError("the run would write its own copy of the task over this file", where=mine,
                          do="move it out of the run's folder, or choose another folder: --set out=...")  # fmt: skip
    parts = {durable.part_of(folder / name).name for name in (*_BEFORE, "run.yaml")}
    allowed = {"evaluations", LOCK, measured.PART} | parts | (_BEFORE if ours else set())
    found = sorted(path.name for path in folder.iterdir() if path.name not in allowed) if folder.is_dir() else []
    if found or (folder.exists() and not folder.is_dir()):
        raise ConfigError("the run's folder holds something else", where=folder, found=", ".join(found[:8]) or "a file",
                          do="choose another: --set out=...")  # fmt: skip


def _is_ours(file: Path) -> bool:
    try:
        measured.checked(measured.read_object(file), file)
    except DataError:
        return False
    return True


def cut_metrics(file: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which are done again, and one that was being written when the run was
    killed. Raises OSError."""
    if not file.exists():
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    kept = "".join(line for line in text.splitlines(keepends=True) if _stays(line, step))
    if kept != text:
        durable.write_text(file, kept)


def _stays(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
