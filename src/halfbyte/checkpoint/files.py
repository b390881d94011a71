"""Where a model's files lie, as far as their headers are read: a folder, or a repository of the hub (`remote.py`).

What lies there is not trusted: JSON is bounded before it is parsed, and an error quotes no more than a line of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from halfbyte.checkpoint.headers import TensorInfo, read_header, shown
from halfbyte.errors import CheckpointError

JSON_LIMIT = 100_000_000  # bytes of a JSON file: the index of 200,000 tensors takes a quarter
_MOST_COMMAS = 1_000_000  # in it; more take seconds to parse


class Files(Protocol):
    """The files of one model. All of it raises CheckpointError for what is missing, broken or out of reach."""

    def where(self, name: str = "") -> object:
        """The place of a file, or of the model, as errors name it."""

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file that holds an object."""

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that are known not to be there without asking for them."""

    def headers(self, names: Sequence[str]) -> list[dict[str, TensorInfo]]:
        """The headers of safetensors files, checked."""

    def read(self, name: str, start: int, count: int) -> bytes:
        """Bytes from the midst of a file."""


class Folder:
    """A local folder as `Files`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def where(self, name: str = "") -> Path:
        return self.path / name

    def json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        try:
            with file.open("rb") as stream:
                text = stream.read(JSON_LIMIT + 1)
        except OSError as error:
            raise CheckpointError("this file can't be read", where=file, found=error.strerror,
                                  do="fetch the file again, or make it readable") from None  # fmt: skip
        return parse_json(text, file)

    def missing(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if not (self.path / name).is_file()]

    def headers(self, names: Sequence[str]) -> list[dict[str, TensorInfo]]:
        return [read_header(self.path / name) for name in names]

    def read(self, name: str, start: int, count: int) -> bytes:
        file = self.path / name
        try:
            with file.open("rb") as stream:
                stream.seek(start)
                return stream.read(count)
        except OSError as error:
            raise CheckpointError("this file can't be read", where=file, found=error.strerror,
                                  do="fetch the file again, or make it readable") from None  # fmt: skip


def parse_json(text: bytes, where: object) -> dict[str, Any]:
    """The object that a JSON file holds. Raises CheckpointError for anything else, and for one beyond all measure."""
    if len(text) > JSON_LIMIT or text.count(b",") > _MOST_COMMAS:
        raise CheckpointError("this JSON file is larger than that of any model", where=where, do="fetch the file again")
    try:
        content = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        page = text.lstrip()[:1] == b"<"
        found = "an HTML page, perhaps of a proxy or a login" if page else shown(str(error), 300)
        raise CheckpointError("this is no valid JSON", where=where, found=found, do="fetch the file again") from None
    if not isinstance(content, dict):
        raise CheckpointError("this JSON file holds no object", where=where, do="fetch the file again")
    return content
