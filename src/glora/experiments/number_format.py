"""Numbers and names as text, for every table, message and chart: times, memory, settings, models."""

from __future__ import annotations

import itertools
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from glora.experiments.publishing import is_local, without_digest

MISSING = "–"


def time_unit(longest_seconds: float) -> tuple[float, str]:
    """Return the seconds of the unit that suits the longest time, and the unit's name."""
    if longest_seconds < 600:
        return 1.0, "seconds"
    return (60.0, "minutes") if longest_seconds < 4 * 3600 else (3600.0, "hours")


def bytes_text(count: float) -> str:
    """Return a number of bytes in GiB, or in MiB below one GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def settings_text(values: Mapping[str, Any]) -> str:
    """Return `learning_rate=0.000312, beta=0.91`, with the four digits that a search can tell apart."""
    return ", ".join(f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in values.items())


def short_name(name: str) -> str:
    """Return a model or task as configured, but only the last part of a local path: a report names no folder of a machine."""
    return _last_parts(name, 1)


def distinct_names(names: Iterable[str]) -> dict[str, str]:
    """Return the `short_name` of each name, after as many of its folders as tell it from the other names."""
    looks = {name: _look(_last_parts(name, sys.maxsize)) for name in sorted(set(names))}
    first = {look: name for name, look in reversed(looks.items())}  # of names that look the same, one is compared
    depth = dict.fromkeys(first.values(), 1)
    while True:
        shown = {name: _last_parts(name, parts) for name, parts in depth.items()}
        count = Counter(map(_look, shown.values()))
        deeper = [n for n, text in shown.items() if count[_look(text)] > 1 and _last_parts(n, depth[n] + 1) != text]
        if not deeper:
            return dict(zip(looks, numbered([shown[first[look]] for look in looks.values()])))
        depth.update((name, depth[name] + 1) for name in deeper)


def numbered(labels: Sequence[str]) -> list[str]:
    """Return the labels, with " (2)" and so on after those that look like an earlier one."""
    seen: set[str] = set()
    result = []
    for label in labels:
        choices = itertools.chain([label], (f"{label} ({i})" for i in itertools.count(2)))
        result.append(next(choice for choice in choices if _look(choice) not in seen))
        seen.add(_look(result[-1]))
    return result


def _last_parts(name: str, count: int) -> str:
    """Return the last parts of a local path; other names whole, the digest of a recorded path as a second part."""
    if not is_local(name):
        return without_digest(name) if count == 1 else name
    return "/".join(name.replace("\\", "/").rstrip("/").split("/")[-count:])


def _look(text: str) -> str:
    """Return what a reader sees of a text: names that differ only in their Unicode form look the same."""
    return unicodedata.normalize("NFC", printable(text))


def printable(text: str) -> str:
    """Return the text with control characters, surrogates and text-direction marks written out, as `ascii` does."""
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)
