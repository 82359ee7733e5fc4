"""Rewrite records from before the allocation's settings were nested: `python -m benchmarks.migrate_records FOLDER...`.

The settings move into `config.allocation`, the record gets its new key and file name, and the file becomes one line of JSON.
Settings that left the configuration go: where a run used one, the name of its method says so, such as
`glora:budget=parameters:relative_to=weight`. A record that is already nested is left alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from glora.experiments.config import RunConfig

REMOVED = ("score", "score_exponent", "relative_to", "rank_scaling")


def migrate(path: Path) -> Path:
    """Rewrite one record and return its path."""
    record = json.loads(path.read_text(encoding="utf-8"))
    settings = record["config"]
    if "allocation" in settings:
        return path
    used = {name: settings.pop(name) for name in REMOVED if name in settings}
    hidden = [name for name, value in used.items() if value is not None and f":{name}=" not in settings["method"]]
    if hidden:
        raise ValueError(f"{path}: the method's name does not say {', '.join(hidden)}; rename it before migrating")
    config = RunConfig.model_validate(settings)
    record["config"] = config.model_dump(mode="json")
    record["key"] = config.key
    target = path.with_name(f"{config.key}.json")
    write_compact(target, record)
    path.unlink()
    return target


def write_compact(path: Path, content: dict[str, Any]) -> None:
    """Write JSON as one line."""
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def main(folders: list[str]) -> None:
    """Rewrite the records of the runs and of the search in each folder."""
    for folder in map(Path, folders):
        before = sorted(folder.glob("runs/*.json"))
        after = {migrate(path) for path in before}
        if len(after) != len(before):
            raise ValueError(f"{folder}: {len(before)} records became {len(after)}")
        if (search := folder / "search.json").exists():
            write_compact(search, json.loads(search.read_text(encoding="utf-8")))
        print(f"{folder}: {len(after)} records")


if __name__ == "__main__":
    main(sys.argv[1:])
