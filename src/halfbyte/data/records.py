"""Records: the rows of JSONL, JSON, CSV, Parquet files or of a hub data set, each with the place it came from.

Values stay as they are written: CSV's are texts, JSON's and Parquet's keep their type.
"""

from __future__ import annotations

import csv
import glob
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.errors import DataError, MissingDependency
from halfbyte.option_files import expanded

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+){0,2}")
_SHOWN = 5  # faults that one error spells out


@dataclass(frozen=True, slots=True)
class Record:
    """A row: its columns, and the place it came from ("file:line"; a row's number where a file has no lines)."""

    values: dict[str, Any]
    origin: str


def load_records(source: str, *, split: str = "train") -> list[Record]:
    """Every record of `source`, in order; at least one. Raises as `iter_records` does."""
    return list(iter_records(source, split=split))


def iter_records(source: str, *, split: str = "train") -> Iterator[Record]:
    """The records of `source`, one after the other: but for a .json file, which is read whole, none is kept.

    `source` is a file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet), a glob of such files (taken in sorted order), or
    the id of a hub data set: `id`, `id:configuration` or `id:configuration:split` (without one, `split` is taken).

    Raises DataError for what is missing, empty or broken (faults of single lines once the file is at its end), and
    MissingDependency where a library is not installed.
    """
    path = expanded(source)
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir())[:10]
        raise DataError("a folder stands where a data file is expected", where=path, found=", ".join(inside) or "empty",
                        do=f"name a file, or a glob such as '{path}/*.jsonl'")  # fmt: skip
    if path.exists():
        yield from _from_file(path)
        return
    if glob.has_magic(source):
        files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 absolute, too
        files = [file for file in files if file.is_file()]
        if not files:
            raise DataError("no file matches the pattern", where=source, do="check the pattern and the folder")
        for file in files:
            yield from _from_file(file)
        return
    if path.suffix.lower() in _READERS or path.is_absolute() or not _HUB_ID.fullmatch(source):
        raise _not_found(path)
    yield from _from_hub(source, split)


def files_of(source: str) -> list[Path]:
    """The files that `source` (see `load_records`) stands for; of a hub data set none."""
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    return [file for file in map(Path, sorted(glob.glob(str(path), recursive=True))) if file.is_file()]  # noqa: PTH207


def _not_found(path: Path) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError("there is no such file", where=path, found=f"no folder {folder} either", do="check the path")
    near = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in _READERS)[:10]
    found = f"data files there: {', '.join(near)}" if near else "no data file in that folder"
    return DataError("there is no such file", where=path, found=found, do="check the path")


def _from_file(path: Path) -> Iterator[Record]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError("data files of this kind are not read", where=path, found=path.suffix or "no suffix",
                        do=f"use one of {', '.join(_READERS)}")  # fmt: skip
    empty = True
    try:
        for record in reader(path):
            empty = False
            yield record
    except UnicodeDecodeError:
        raise DataError("the file is no UTF-8 text", where=path, found=_first_bad_byte(path),
                        do="save it as UTF-8") from None  # fmt: skip
    except OSError as error:
        raise DataError("the file can't be read", where=path, found=str(error), do="make it readable") from None
    if empty:
        raise DataError("the file holds no record", where=path, found=f"{path.stat().st_size} bytes",
                        do="put records into it, or name another file")  # fmt: skip


def _first_bad_byte(path: Path) -> str:
    """The byte that is no UTF-8 and its place."""
    with path.open("rb") as lines:
        offset = 0
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"byte {line[error.start]:#04x} at offset {offset + error.start}, line {number}"
            offset += len(line)
    return "a character that is cut short at its end"


def _raise_faults(faults: list[str], path: Path, what: str, do: str) -> None:
    if faults:
        more = f"\n         and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise DataError(what, where=path, found="\n         ".join(faults[:_SHOWN]) + more, do=do)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once each."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return made


_JSON = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object)


def _decode(text: str) -> Any:
    """The value of a JSON text. Raises what `_FAULTS` names."""
    value = _JSON.decode(text)
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise ValueError(f"half a surrogate pair, \\u{ord(half):04x}, is no text") from None
    return value


_FAULTS = (ValueError, RecursionError)  # of a text that is no JSON, or nested without end


def _jsonl(path: Path) -> Iterator[Record]:
    faults = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = _decode(line)
            except _FAULTS as error:
                faults.append(f"line {number}: {_said(error)}")
                continue
            if isinstance(value, dict):
                yield Record(value, f"{path}:{number}")
            else:
                faults.append(f"line {number}: {_kind(value)} where an object is expected")
    _raise_faults(
        faults, path, "the file is no valid JSONL", 'write one object a line: {"prompt": ..., "completion": ...}'
    )


def _json(path: Path) -> Iterator[Record]:
    """A list of objects; a file of one object a line is taken as JSONL whatever its name says."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        whole = _decode(text)
    except _FAULTS as error:
        if text.lstrip().startswith("{"):
            yield from _jsonl(path)
            return
        raise DataError("the file is no valid JSON", where=path, found=_said(error),
                        do="write a list of objects, or JSONL: one object a line") from None  # fmt: skip
    if not isinstance(whole, list):
        keys = f" with the keys {', '.join(whole)}" if isinstance(whole, dict) else ""
        raise DataError("the file holds no list of records", where=path, found=_kind(whole) + keys,
                        do="write a list of objects, or JSONL: one object a line")  # fmt: skip
    faults = [
        f"item {k}: {_kind(v)} where an object is expected" for k, v in enumerate(whole, 1) if not isinstance(v, dict)
    ]
    _raise_faults(faults, path, "not every item of the list is an object", "write a list of objects")
    for value, line in zip(whole, _lines_of_items(text), strict=True):
        yield Record(value, f"{path}:{line}")


def _said(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _lines_of_items(text: str) -> Iterator[int]:
    """The line on which each item of the JSON list `text` begins; `text` is known to be valid."""
    position, counted, line = text.index("[") + 1, 0, 1
    while True:
        while text[position] in " \t\r\n,":
            position += 1
        if text[position] == "]":
            return
        line += text.count("\n", counted, position)
        counted = position
        yield line
        _, position = _JSON.raw_decode(text, position)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _csv(path: Path, delimiter: str = ",") -> Iterator[Record]:
    faults = []
    with path.open(encoding="utf-8-sig") as file:
        rows = _csv_rows(path, file, delimiter)
        begin, header = next(rows, (0, []))
        _check_header(header, f"{path}:{begin}")
        for line, fields in rows:
            if len(fields) == len(header):
                yield Record(dict(zip(header, fields, strict=True)), f"{path}:{line}")
            else:
                faults.append(f"line {line}: {len(fields)} fields where the header has {len(header)}")
    _raise_faults(faults, path, "rows and header don't fit together", 'put a text that holds a comma in quotes: "a, b"')


def _check_header(header: list[str], where: str) -> None:
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    if twice:
        raise DataError("two columns have the same name", where=where,
                        found=", ".join(map(repr, twice)), do="give each column a name of its own")  # fmt: skip
    other = next((mark for mark in (";", "\t") if mark in header[0]), None) if len(header) == 1 else None
    if other:
        advice = f"write commas instead of {other!r}" + (", or name the file .tsv" if other == "\t" else "")
        raise DataError("the columns are not separated by commas", where=where, found=header[0],
                        do=advice)  # fmt: skip


def _csv_rows(path: Path, lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line on which it begins, fields) of every row that is not blank; the header is the first."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line, limit = reader.line_num + 1, csv.field_size_limit(2**31 - 1)  # of the whole process: only while it reads
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError("the file is no valid CSV", where=f"{path}:{line}", found=str(error),
                            do='double a quote inside a quoted field: "a 3"" pipe"') from None  # fmt: skip
        finally:
            csv.field_size_limit(limit)
        if fields:
            yield line, fields


def _parquet(path: Path) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependency("Parquet files need the library pyarrow", where=path, found="it is not installed",
                                do="pip install 'halfbyte[data]'") from None  # fmt: skip
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(values, f"{path}:{number}")
    except pyarrow.ArrowException as error:
        raise DataError("the file is no valid Parquet", where=path, found=str(error).split("\n")[0],
                        do="write it again") from None  # fmt: skip


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": lambda path: _csv(path, "\t"),
    ".parquet": _parquet,
}


def _from_hub(source: str, split: str) -> Iterator[Record]:
    name, configuration, part = [*source.split(":"), "", ""][:3]
    split = part or split
    try:
        import datasets
    except ImportError:
        raise MissingDependency("data sets of the hub need the library datasets", where=source,
                                found="it is not installed, and there is no file of that name",
                                do="pip install 'halfbyte[data]', or check the path") from None  # fmt: skip
    try:
        rows = datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:  # the library raises what its parts raise: OSErrors, ValueErrors, errors of the network
        text = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError("neither a file nor a hub data set of this name can be opened", where=source, found=text,
                        do="check the path; a data set is named id, id:configuration or id:configuration:split, "
                        "and needs the network the first time (and HF_HUB_OFFLINE not set)"
                        ) from None  # fmt: skip
    number = 0
    for number, row in enumerate(rows, 1):
        yield Record(dict(row), f"{name}:{split}:{number}")
    if number == 0:
        raise DataError("the data set holds no record", where=source, found=f"split {split}",
                        do="name another split: id:configuration:split")  # fmt: skip
