"""Names are compared by their letters and digits."""

from __future__ import annotations

import re


def plain(name: str) -> str:
    """A name's letters and digits in lower case: `GSM-8K` -> `gsm8k`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
