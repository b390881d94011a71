"""Answers so far, kept until the evaluation is written: an interruption, even a kill, costs no more than a batch.

`answers.jsonl` in the evaluation's folder has a line a batch: the key of what is asked, the batch's rows, what the
model gave for each, and the seconds that it took. A line counts only under its own key, which is made of the model
(checkpoint, size and time of writing of its weight files, format, adapter to the bit, compute, device, kernels,
versions), the decoding, and every prompt to the token. How answers are judged is no part of it, so a scoring function
that fails can be mended without the model answering again.

Batches are cut from all items as if nothing were known, and a batch is taken whole or asked whole: what goes on has the
shapes, and so the bits, of what was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.evaluate.results import refused

if TYPE_CHECKING:
    from halfbyte.model.build import Model

ANSWERS = "answers.jsonl"
Rows = tuple[int, ...]
Kept = dict[tuple[str, Rows], tuple[list[Any], float]]  # values and seconds


class Journal:
    """The file of one evaluation. Without a `folder` nothing is kept. `resumed`: answers that were there already, which
    took `seconds`; `say` is told of them before anything is asked."""

    def __init__(
        self, folder: Path | None = None, model: Model | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        self.file = None if folder is None else folder / ANSWERS
        self.resumed, self.seconds = 0, 0.0
        self._say = say
        self._model = model
        self._identity: Any = None
        self._known: Kept | None = None

    def section(self, *asked: Any, count: int) -> Section:
        """The part that belongs to `asked`: plain data, all that the answers of `count` items depend on beside the
        model."""
        if self.file is None:
            return Section(self, "")
        if self._known is None:
            self._known, self._identity = _read(self.file), identity(self._model) if self._model else None
        text = json.dumps([self._identity, asked], sort_keys=True, separators=(",", ":"))
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        there = len({row for own, rows in self._known if own == key for row in rows})
        if there and self._say:
            self._say(f"goes on: {there:,} of {count:,} answers are there already")
        return Section(self, key)

    def known(self, key: str, rows: Rows, whole: Callable[[Any], bool]) -> list[Any] | None:
        values, seconds = (self._known or {}).get((key, rows), (None, 0.0))
        if values is None or not all(map(whole, values)):
            return None
        self.resumed += len(rows)
        self.seconds += seconds
        return values

    def add(self, key: str, rows: Rows, values: Sequence[Any], seconds: float) -> None:
        """Append a line; it is with the system before this returns. Raises HalfbyteError when the disk refuses."""
        if self.file is None:
            return
        line = json.dumps({"key": key, "rows": rows, "seconds": seconds, "values": values}, separators=(",", ":"))
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a+b") as stream:
                whole = stream.tell() == 0 or _last_byte(stream) == b"\n"
                stream.write((b"" if whole else b"\n") + line.encode() + b"\n")
        except OSError as error:
            raise refused(self.file, error) from None

    def remove(self) -> None:
        """The evaluation is written, and speaks for itself."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)


class Section:
    """What the journal holds of one set of prompts."""

    def __init__(self, journal: Journal, key: str) -> None:
        self._journal, self._key = journal, key

    def batch(self, rows: Sequence[int], ask: Callable[[], list[Any]], whole: Callable[[Any], bool]) -> list[Any]:
        """What the model gives for `rows`, a value each, as plain data: as it is known, else by `ask`. `whole` says
        whether a value has the shape that it must have; where one has not, all are asked again."""
        known = self._journal.known(self._key, tuple(rows), whole)
        if known is not None:
            return known
        began = time.perf_counter()
        values = ask()
        self._journal.add(self._key, tuple(rows), values, time.perf_counter() - began)
        return values


def _last_byte(stream: Any) -> bytes:
    stream.seek(-1, 2)
    return bytes(stream.read(1))


def _read(file: Path) -> Kept:
    """The whole lines; one that a kill tore, or that is none of ours, is as good as none."""
    known: Kept = {}
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return known
    except OSError as error:
        raise refused(file, error) from None
    for line in text.split("\n"):
        try:
            found = json.loads(line)
            rows, values = tuple(found["rows"]), found["values"]
            if len(rows) == len(values):
                known[str(found["key"]), rows] = values, float(found.get("seconds", 0.0))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue
    return known


def identity(model: Model) -> dict[str, Any]:
    """What the model's answers depend on, down to the last bit, as plain data."""
    import torch
    import transformers

    from halfbyte import __version__
    from halfbyte.kernels import choose
    from halfbyte.model.adapter import adapter_tensors, quant_linears

    adapter = hashlib.sha256()
    for name, tensor in sorted(adapter_tensors(model.net).items()):
        adapter.update(name.encode() + tensor.view(torch.uint8).numpy().tobytes())
    for name, layer in quant_linears(model.net).items():
        adapter.update(f"{name} {layer.scaling}".encode())
    kernels = choose(model.device)
    return {
        "model": [model.name, model.fingerprint, model.weights, model.compute, str(model.dtype), str(model.device)],
        "files": [list(line) for line in model.files.listed()],
        "adapter": [None if model.adapter is None else asdict(model.adapter), adapter.hexdigest()],
        "kernels": [kernels.name, kernels.isa],
        "versions": [__version__, torch.__version__, transformers.__version__],
    }
