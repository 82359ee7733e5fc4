"""Matrices named by people: a full name, or an ending of one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def choose_modules(names: Sequence[str], wanted: Sequence[str] | None, *, what: str) -> list[str]:
    """Those of `names` that are or end with a wanted name, in their order; all if nothing is wanted.

    Args:
        names: full names, such as `bert.encoder.layer.0.attention.self.query`.
        wanted: full names, or endings of whole parts, such as `query` or `self.query`.
        what: what each of them is, for the message.

    Raises:
        ValueError: a wanted name matches none, naming the nearest.
    """
    if wanted is None:
        return list(names)
    for suffix in wanted:
        if not any(_ends_with(name, suffix) for name in names):
            endings = sorted({".".join(name.split(".")[-k:]) for name in names for k in (1, 2)})
            near = difflib.get_close_matches(suffix, endings, n=3, cutoff=0.4)
            raise ValueError(
                f"target_modules: {suffix!r} matches no {what}; "
                f"{'the nearest are' if near else 'there are'} {', '.join(near or endings)}"
            )
    return [name for name in names if any(_ends_with(name, suffix) for suffix in wanted)]


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")
