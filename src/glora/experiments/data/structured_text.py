"""JSON and YAML files as dictionaries; errors name the line and column, or a key given twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

YAML_SUFFIXES = (".yaml", ".yml")
SUFFIXES = (".json", *YAML_SUFFIXES)


class MalformedFileError(ValueError):
    """A file with other content than its suffix says."""


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file, distinguished by the suffix, that holds one mapping.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: there is no such file, or it cannot be read.
        MalformedFileError: it is malformed, not UTF-8, not a mapping, or has a key twice.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file that ends in {', '.join(SUFFIXES)}")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if path.suffix.lower() not in SUFFIXES:
        raise MalformedFileError(f"{path}: unknown format; its name must end in one of {', '.join(SUFFIXES)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedFileError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    content = _from_yaml(path, text) if path.suffix.lower() in YAML_SUFFIXES else _from_json(path, text)
    if not isinstance(content, dict):
        found = {list: "a list", str: "a text", type(None): "nothing"}.get(type(content), type(content).__name__)
        raise MalformedFileError(f"{path}: holds {found}; expected names with values")
    return content


def _from_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _without_repeats(path, pairs))
    except json.JSONDecodeError as error:
        raise _malformed(path, "JSON", error.pos, text, error.msg) from error


def _from_yaml(path: Path, text: str) -> Any:
    class Loader(yaml.SafeLoader):
        """A loader that rejects a key given twice; PyYAML silently keeps the last one."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            _without_repeats(path, [(key.value, None) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"])
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = mark.index if mark else len(text)
        raise _malformed(path, "YAML", position, text, error.problem or error.context) from error
    except yaml.reader.ReaderError as error:
        raise _malformed(path, "YAML", error.position, text, error.reason) from error


def _malformed(path: Path, language: str, position: int, text: str, reason: str | None) -> MalformedFileError:
    line, column = text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)
    return MalformedFileError(f"{path}: malformed {language} at line {line}, column {column}: {reason}")


def _without_repeats(path: Path, pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    pairs = list(pairs)
    twice = [str(key) for key, count in Counter(str(key) for key, _ in pairs).items() if count > 1]
    if twice:
        raise MalformedFileError(f"{path}: {', '.join(twice)} is given more than once; keep one of them")
    return dict(pairs)
