"""The part of a page that a benchmark writes, between two marks."""

from __future__ import annotations

END = "<!-- until here -->"


def fill(page: str, maker: str, made: str) -> str:
    """Return a page with new text between its marks.

    Args:
        page: The page, which holds `<!-- made by MAKER -->` once and `<!-- until here -->` after it.
        maker: The script that writes the text, as `benchmarks/cost/table.py`.
        made: The text.
    """
    begin = f"<!-- made by {maker} -->\n"
    before, rest = page.split(begin)
    return f"{before}{begin}{made}\n{END}{rest.split(END, 1)[1]}"
