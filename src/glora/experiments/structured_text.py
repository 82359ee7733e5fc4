"""JSON and YAML that others wrote: one error with file and line for anything malformed, and limits on what is read.

The parsers alone accept a key given twice, half an emoji and any nesting, and end in other exceptions than their own for a deep
list, `!!bool foo` or a number of 5,000 digits.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from glora.paths import regular_file

YAML_SUFFIXES = (".yaml", ".yml")
SUFFIXES = (".json", *YAML_SUFFIXES)
MAX_DEPTH = 50
MAX_BYTES, MAX_VALUES = 2**18, 2_000
"""Limits of a file that people write by hand. Aliases count at each use, so that a few lines cannot mean billions."""

MAX_BITS = 2**13
"""Of an integer: Python writes no number of more than 4,300 digits, not even into an error."""

_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


class MalformedFileError(ValueError):
    """A file with other content than its suffix says."""


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file, distinguished by the suffix, that holds one mapping of texts, numbers, lists and mappings.

    Raises:
        OSError: there is no such file, it is a folder, a pipe or a device, or it cannot be read.
        MalformedFileError: it is malformed, not UTF-8, not a mapping, too large or deep, or has a key twice.
    """
    regular_file(path)
    if path.suffix.lower() not in SUFFIXES:
        raise MalformedFileError(f"{path}: unknown format; its name must end in one of {', '.join(SUFFIXES)}")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise MalformedFileError(f"{path}: has {size:,} bytes; a file of settings has at most {MAX_BYTES:,}")
    text = decode(path.read_bytes(), path)
    content = _parse_yaml(text, path) if path.suffix.lower() in YAML_SUFFIXES else parse_json(text, path)
    if not isinstance(content, dict):
        found = {list: "a list", str: "a text", type(None): "nothing"}.get(type(content), type(content).__name__)
        raise MalformedFileError(f"{path}: holds {found}; expected names with values")
    _check_values(content, str(path), MAX_VALUES)
    return content


def decode(content: bytes, path: Path, line: int = 1) -> str:
    """Decode UTF-8, without the byte order mark of a first line.

    Args:
        content: a file, or the line of this number.
        path: the file, for the error.
        line: number of the first line of `content`.

    Raises:
        MalformedFileError: it is not UTF-8; names the line.
    """
    try:
        return content.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise MalformedFileError(
            f"{path}, line {line}: not UTF-8 text (byte 0x{content[error.start]:02x}); save the file as UTF-8"
        ) from error


def parse_json(text: str, path: Path, line: int | None = None, *, strict: bool = True) -> Any:
    """Parse JSON.

    Args:
        text: a file, or its line of this number.
        path: the file, for the error.
        line: number of the line.
        strict: refuse a key given twice, half a surrogate pair, and more than `MAX_DEPTH`, too.

    Raises:
        MalformedFileError: the text is malformed.
    """
    where = str(path) if line is None else f"{path}, line {line}"

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            raise MalformedFileError(_twice(where, (key for key, _ in pairs)))
        return content

    try:
        content = json.loads(text, object_pairs_hook=unique if strict else None)
    except json.JSONDecodeError as error:
        at = f"at line {error.lineno}, column {error.colno}" if line is None else f"at column {error.colno}"
        raise MalformedFileError(f"{where}: malformed JSON {at}: {error.msg}") from error
    except RecursionError as error:
        raise MalformedFileError(_too_deep(where)) from error
    except MalformedFileError:
        raise
    except ValueError as error:  # of int(): a limit of Python
        raise MalformedFileError(f"{where}: malformed JSON: a number has thousands of digits") from error
    if strict and ("\\ud" in text.lower() or text.count("[") + text.count("{") > MAX_DEPTH):
        _check_values(content, where)
    return content


def _check_values(content: Any, where: str, limit: float = float("inf")) -> None:
    """Check depth, number and types of everything within."""
    left = [(content, 1)]
    seen = 0
    while left:
        value, depth = left.pop()
        seen += 1
        if seen > limit:
            raise MalformedFileError(f"{where}: holds more than {limit:,} values; is it another file?")
        if depth > MAX_DEPTH:
            raise MalformedFileError(_too_deep(where))
        if isinstance(value, dict):
            odd = [key for key in value if not isinstance(key, str)]
            if odd:
                raise MalformedFileError(f"{where}: the key {odd[0]!r:.40} is not a text; put it in quotes")
            left += [(key, depth) for key in value if _HALF_A_PAIR.search(key)]
            left += [(member, depth + 1) for member in value.values()]
        elif isinstance(value, list):
            left += [(member, depth + 1) for member in value]
        elif isinstance(value, str):
            if _HALF_A_PAIR.search(value):
                raise MalformedFileError(f"{where}: half of a character's \\u pair in {value!a:.40}; write both halves")
        elif not isinstance(value, int | float | None):
            raise MalformedFileError(f"{where}: {value!r:.40} is a {type(value).__name__}; put it in quotes")


def _parse_yaml(text: str, path: Path) -> Any:
    class Loader(yaml.SafeLoader):
        """A loader that rejects a key given twice, bombs of aliases, and scalars that are not what their tag says."""

        def construct_document(self, node: Any) -> Any:
            _check_nodes(node, path)
            return super().construct_document(node)

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                made = super().construct_object(node, deep)
                if isinstance(made, int) and made.bit_length() > MAX_BITS:  # by 0x... or 1:30:59:...
                    raise ValueError("a number has thousands of digits")
                return made
            except (KeyError, ValueError, AttributeError, TypeError, OverflowError) as error:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{node.value!r:.40} is not of the type {node.tag.rpartition(':')[2]}", node.start_mark
                ) from error

    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = mark.index if mark else len(text)
        raise _malformed_yaml(path, position, text, error.problem or error.context) from error
    except yaml.reader.ReaderError as error:
        raise _malformed_yaml(path, error.position, text, error.reason) from error
    except RecursionError as error:
        raise MalformedFileError(_too_deep(str(path))) from error


def _check_nodes(root: Any, path: Path) -> None:
    """Check depth, number and repeated keys of nodes before anything is made of them; an alias counts as what it repeats."""
    left = [(root, 1)]
    seen = 0
    while left:
        node, depth = left.pop()
        seen += 1
        where = f"{path}, line {node.start_mark.line + 1}"
        if seen > 2 * MAX_VALUES:  # keys are nodes too
            raise MalformedFileError(f"{path}: holds more than {MAX_VALUES:,} values, aliases included")
        if depth > MAX_DEPTH:
            raise MalformedFileError(_too_deep(where))
        if isinstance(node, yaml.MappingNode):
            keys = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            names = [key.value for key in keys if isinstance(key, yaml.ScalarNode)]
            if len(set(names)) < len(names):
                raise MalformedFileError(_twice(where, names))
            left += [(child, depth + 1) for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            left += [(child, depth + 1) for child in node.value]


def _malformed_yaml(path: Path, position: int, text: str, reason: str | None) -> MalformedFileError:
    line, column = text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)
    return MalformedFileError(f"{path}: malformed YAML at line {line}, column {column}: {reason}")


def _too_deep(where: str) -> str:
    return f"{where}: nested more than {MAX_DEPTH} deep"


def _twice(where: str, keys: Iterable[str]) -> str:
    twice = [key for key, count in Counter(keys).items() if count > 1]
    return f"{where}: {', '.join(map(repr, twice))} is given more than once; keep one of them"
