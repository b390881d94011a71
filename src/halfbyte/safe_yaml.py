"""Reading YAML that may come from anybody: plain data only, bounded, and whatever is wrong is one kind of error.

Of YAML 1.1, which PyYAML reads, some is left out, and numbers are those of YAML 1.2: 2e-4 is a number (1.1 reads text),
a date is text (no option is one). Tags other than those of plain data, and keys that stand twice, are refused. An
alias (`*name`) may repeat what an anchor named, but not itself, and not more often than a file written out could: ten
lines of aliases of aliases would otherwise stand for gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

LIMIT = 200_000  # characters of a file; PyYAML reads some 100,000 a second
_MOST = 4 * LIMIT  # characters and values, with every alias written out
_SHOWN = 60  # characters of a line that is quoted
_DEEPEST = 100  # brackets within brackets
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_PREFIX = "tag:yaml.org,2002:"


def parse_yaml(text: str) -> Any:
    """What a YAML text says, as dicts, lists, texts, numbers, bools and None. Raises ValueError that says what is wrong
    and on which line."""
    if len(text) > LIMIT:
        raise ValueError(f"{len(text):,} characters, over the limit of {LIMIT:,}")
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
        except (ValueError, LookupError, AttributeError, TypeError):  # PyYAML's, for `0x_`, `!!bool x`, `!!int ""`
            raise self._fault(node) from None
        if isinstance(made, int) and not -(2**63) <= made < 2**63:
            raise self._fault(node)
        return made

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                what = f"the key {key!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            seen |= {key} if isinstance(key, Hashable) else set()
        return super().construct_mapping(node, deep)

    def _fault(self, node: yaml.Node) -> yaml.YAMLError:
        kind, value = node.tag.removeprefix(_PREFIX), str(node.value)[:60]
        return yaml.constructor.ConstructorError(None, None, f"{value!r} can't be read as {kind}", node.start_mark)


_Loader.yaml_constructors = {
    tag: made
    for tag, made in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_PREFIX) in _PLAIN
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_PREFIX) in _PLAIN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    f"{_PREFIX}float", re.compile(r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+0123456789.")
)
