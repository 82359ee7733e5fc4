"""The terminal. Everything is printed through it, and every text is shown as it is written.

A path, a name or a library's message is data: it may hold rich's markup (`[experiments]`), the name of an emoji
(`train.csv:question`), an escape sequence, or a character that reverses the text after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text
from typing_extensions import override

from glora.experiments.number_format import printable

CREDENTIALS = re.compile(r"\b((?:https?|ftps?|socks\w*)://)(?:[^\s/\"'<>]*@|[^\s/\"'<>]*:[^\s\"'<>]*@)", re.IGNORECASE)
"""User and password in a URL, such as HF_ENDPOINT's, which libraries quote; a password may have an unescaped @ or /."""


class Terminal(Console):
    """rich's console without markup, emoji names and highlighting; characters that steer a terminal are escaped.

    Credentials in the URLs of hubs and proxies are hidden.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    @override
    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as text that has the width of what is shown."""
        return super().render_str(self._harmless(text), **options)

    @override
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of everything that is printed; only rich's own can steer the terminal."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(self._harmless(segment.text), segment.style)

    def _harmless(self, text: str) -> str:
        lines = "\n".join(map(printable, CREDENTIALS.sub(r"\1***@", text).split("\n")))
        return lines.encode(self.encoding, "replace").decode(self.encoding)
