"""Reading YAML that may come from anybody: plain data only, bounded, and whatever is wrong is one kind of error.

What a word stands for is said by the core schema of YAML 1.2, not by YAML 1.1, which PyYAML reads: 2e-4 and 0o17 are
numbers, 010 is ten; yes, no, on, off, 1:30, 1_000 and dates are texts. Tags other than those of plain data, and keys
that stand twice, are refused. An alias (`*name`) may repeat what an anchor named, but not itself, and not more often
than a file written out could: ten lines of aliases of aliases would otherwise stand for gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

LIMIT = 200_000  # characters of a file; PyYAML reads some 100,000 a second
_MOST = 4 * LIMIT  # characters and values, with every alias written out
_SHOWN = 60  # characters of a line that is quoted
_DEEPEST = 100  # brackets within brackets
_LONGEST = 1000  # digits of a number
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_PREFIX = "tag:yaml.org,2002:"
# YAML 1.2.2, section 10.3.2; with the letters that each can begin with
_WORDS = {
    "null": (re.compile(r"(?:null|Null|NULL|~|)\Z"), ["n", "N", "~", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    "int": (re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"), list("-+0123456789")),
    "float": (
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        list("-+.0123456789"),
    ),
}
_BASES = {"0o": 8, "0x": 16}


def parse_yaml(text: str) -> Any:
    """What a YAML text says, as dicts, lists, texts, numbers, bools and None. Raises ValueError that says what is wrong
    and on which line."""
    if len(text) > LIMIT:
        raise ValueError(f"it is over the limit of {LIMIT:,} characters")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _size(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise ValueError(_said(error, text)) from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_text(file: Path) -> str:
    """A file's text (UTF-8) for `parse_yaml`: of one that is over the limit no more than shows that. Raises OSError and
    UnicodeDecodeError."""
    with file.open(encoding="utf-8") as stream:
        return stream.read(LIMIT + 1)


def dump_yaml(value: Any) -> str:
    """Plain data as YAML that `parse_yaml`, and a reader of YAML 1.1, read as the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _said(error: yaml.MarkedYAMLError, text: str) -> str:
    """The fault in one line: where, what, and how the line reads."""
    mark, began = error.problem_mark or error.context_mark, error.context_mark
    what = " ".join(str(error.problem or error.context).split())
    while_ = (
        f" ({error.context} that begins on line {began.line + 1})" if error.problem and error.context and began else ""
    )
    if mark is None:
        return what + while_
    lines = text.splitlines()
    line = lines[mark.line].rstrip() if mark.line < len(lines) else ""
    first = max(0, mark.column - _SHOWN // 2)
    shown = f"{'...' * (first > 0)}{line[first : first + _SHOWN].strip()}{'...' * (len(line) > first + _SHOWN)}"
    return f"line {mark.line + 1}, column {mark.column + 1}: {what}{': ' * bool(line)}{shown * bool(line)}{while_}"


def _size(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Characters and values of a node with every alias written out; `known` holds None for what is being counted."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise yaml.constructor.ConstructorError(None, None, "an alias stands within what it names", node.start_mark)
        return size
    known[id(node)] = None
    if isinstance(node, yaml.MappingNode):
        size = 1 + sum(_size(key, known) + _size(value, known) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        size = 1 + sum(_size(item, known) for item in node.value)
    else:
        size = 1 + len(node.value)
    if size > _MOST:
        what = f"its aliases stand for more than {_MOST:,} characters"
        raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
    known[id(node)] = size
    return size


class _Loader(yaml.SafeLoader):
    def fetch_flow_collection_start(self, kind: Any) -> None:
        if self.flow_level >= _DEEPEST:  # PyYAML's time grows with the square of it
            raise yaml.scanner.ScannerError(None, None, "brackets are nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(kind)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            made = super().construct_object(node, deep)
        except ValueError:
            raise self._fault(node) from None
        if isinstance(made, int) and not -(2**63) <= made < 2**63:
            raise self._fault(node)
        return made

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():  # PyYAML refuses `!!map [a]`
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                what = f"the key {key!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            seen |= {key} if isinstance(key, Hashable) else set()
        return super().construct_mapping(node, deep)

    def construct_bool(self, node: Any) -> bool:
        return self._word(node, "bool").lower() == "true"

    def construct_int(self, node: Any) -> int:
        text = self._word(node, "int")
        return int(text, _BASES.get(text[:2], 10))

    def construct_float(self, node: Any) -> float:
        text = self._word(node, "float").lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def _word(self, node: Any, kind: str) -> str:
        """The text of a scalar that is of this kind, also where a tag says so. Raises ValueError where it isn't."""
        text = str(self.construct_scalar(node))
        if len(text) > _LONGEST or not _WORDS[kind][0].match(text):
            raise ValueError
        return text

    def _fault(self, node: yaml.Node) -> yaml.YAMLError:
        kind, value = node.tag.removeprefix(_PREFIX), str(node.value)[:60]
        return yaml.constructor.ConstructorError(None, None, f"{value!r} can't be read as {kind}", node.start_mark)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around texts that are other words in YAML 1.1, as PyYAML does, or in YAML 1.2."""


_Loader.yaml_constructors = {
    tag: made
    for tag, made in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_PREFIX) in _PLAIN
} | {f"{_PREFIX}{kind}": getattr(_Loader, f"construct_{kind}") for kind in ("bool", "int", "float")}
_Loader.yaml_implicit_resolvers = {}
for _kind, (_pattern, _first) in _WORDS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_PREFIX}{_kind}", _pattern, _first)
