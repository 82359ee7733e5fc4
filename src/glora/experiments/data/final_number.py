r"""The number that a written answer ends with, as GSM8K scores it.

A reference answer of GSM8K ends with `#### 1,234`. A model that was trained on such answers writes the same mark; one that was
not writes its number somewhere in the last sentence. So the number behind the last `####` counts, and where there is no mark
the last number of the text: what lm-evaluation-harness calls strict and flexible extraction, the first wherever it applies.

Numbers are compared as numbers: 1,234 is 1234.00, $18 is 18, .5 is 0.5, a dot that ends a sentence is no part of one.

Source: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems", and its code (github.com/openai/grade-school-math,
`dataset.py`: the regular expression `#### (\-?[0-9\.\,]+)`, with commas removed, compared as text).
"""

from __future__ import annotations

import re
from decimal import Decimal

MARK = "####"

_NUMBER = re.compile(
    r"""
    (?P<minus>(?<![\w.,)\]}])[-−])?     # a sign stands at its number and after nothing: 10-3 and 10 - 3 end with 3
    (?:[$€£¥]\s?)?
    (?P<inner>(?<=[$€£¥])[-−])?           # $-5
    (?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?   # 1,234,567.89
      |\d+(?:\.\d+)?                                # 1234.5
      |(?<!\d)\.\d+)                                # .5
    """,
    re.VERBOSE,
)


def find_final_number(text: str) -> Decimal | None:
    """The first number behind the first `####`, or the last number of a text without the mark; None if there is none.

    `#### 12 eggs for 3 people` is 12; nothing behind the mark is no number, whatever stands before it.
    """
    _, mark, marked = text.partition(MARK)
    if mark:
        found = _NUMBER.search(marked)
        return None if found is None else _value(found)
    last = None
    for found in _NUMBER.finditer(text):
        last = found
    return None if last is None else _value(last)


def same_final_number(answer: str, reference: str) -> bool:
    """Whether two answers end with the same number; an answer without one is wrong."""
    found = find_final_number(answer)
    return found is not None and found == find_final_number(reference)


def _value(found: re.Match[str]) -> Decimal:
    value = Decimal(found["digits"].replace(",", ""))
    return -value if found["minus"] or found["inner"] else value
