r"""The part of a written answer that is scored, and when two parts are the same.

Final number (GSM8K): the number behind the first `####`; in a text without the mark, its last number. lm-evaluation-harness
calls these strict and flexible extraction. Numbers are compared as numbers: 1,234 is 1234.00, $18 is 18, .5 is 0.5, a dot that
ends a sentence is not part of one. Source: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems", and its code
(github.com/openai/grade-school-math, `dataset.py`: `#### (\-?[0-9\.\,]+)` with commas removed, compared as text).

Boxed (MATH): the content of the last \boxed{}. Two answers are the same if their LaTeX is, once it is written in one way.
That decides no mathematics: x+1 and 1+x differ. math-verify would call them equal, and accuracies would no longer compare with
published ones. Sources: Hendrycks et al. 2021, "Measuring Mathematical Problem Solving With the MATH Dataset", and its code
(github.com/hendrycks/math, modeling/math_equivalence.py, `is_equiv`) for \tfrac, \dfrac, \frac12, a/b, \sqrt3, \left, \right,
\!, degrees, percent, dollars, units at the end, the 0 before a dot, "x =" and spaces; Lewkowycz et al. 2022, "Solving
Quantitative Reasoning Problems with Language Models", appendix D.1, for \text{} around words, commas between thousands and a
dot at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from glora.experiments.data.task import Scoring

MARK = "####"

_NUMBER = re.compile(
    r"""
    (?P<minus>(?<![\w.,)\]}])[-−])?     # a sign touches its number and follows nothing: 10-3 and 10 - 3 end with 3
    (?:[$€£¥]\s?)?
    (?P<inner>(?<=[$€£¥])[-−])?           # $-5
    (?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?   # 1,234,567.89
      |\d+(?:\.\d+)?                                # 1234.5
      |(?<!\d)\.\d+)                                # .5
    """,
    re.VERBOSE,
)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_WORDS = r"\\(?:text|mbox|mathrm|textbf|textit|textrm|mathbf|operatorname)"


def find_final_number(text: str) -> Decimal | None:
    """Return the first number behind the first `####`, or the last number of a text without the mark; None without one.

    `#### 12 eggs for 3 people` is 12; if no number follows the mark there is none, although one may precede it.
    """
    _, mark, marked = text.partition(MARK)
    numbers = list(_NUMBER.finditer(marked if mark else text))
    if not numbers:
        return None
    found = numbers[0 if mark else -1]
    value = Decimal(found["digits"].replace(",", ""))
    return -value if found["minus"] or found["inner"] else value


def find_boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{} or \fbox{}, inner braces included; None without one, or if it does not end.

    Without braces (`\boxed 5`, in some references) the content ends at a dollar sign or a space.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    rest = text[boxes[-1].end() :]
    if not rest.startswith("{"):
        bare = re.match(r"[^\s$]+", rest)
        return bare[0] if bare else None
    depth = 0
    for token in re.finditer(r"\\.|[{}]", rest, re.DOTALL):  # an escaped brace opens and closes nothing
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return rest[1 : token.start()]
    return None


def normalize(answer: str) -> str:
    """Write an answer's LaTeX in one of its possible ways."""
    text = re.sub(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])", " ", answer)
    text = text.replace("\\!", "").replace("\\\\", "\\")
    text = re.sub(r"\\[td]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])", "", text)
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))", "", text)
    text = text.replace("\\$", "").replace("$", "").replace("\\%", "").replace("%", "").strip()
    # units at the end: `5 \text{ cm}` is 5; an answer of words alone stays
    text = re.sub(rf"(?<=\S)\s*{_WORDS}\s*\{{\s[^{{}}]*\}}(\s*\^\s*(\{{[^{{}}]*\}}|\w))?\s*$", "", text)
    text = re.sub(rf"{_WORDS}\s*\{{([^{{}}]*)\}}", r"\1", text)
    text = re.sub(r"(?<!\d)\.(?=\d)", "0.", text.strip())
    text = text.rstrip(".").rstrip()
    name, equals, value = text.partition("=")
    if equals and "=" not in value and len(name.strip()) <= 2:
        text = value
    text = re.sub(r"\\sqrt\s*([A-Za-z0-9])", r"\\sqrt{\1}", text)
    text = re.sub(r"\s+", "", text)
    text = _with_braced_fractions(text)
    if re.fullmatch(r"-?\d{1,3}((,|\{,\})\d{3})+(\.\d+)?", text):
        text = text.replace("{,}", "").replace(",", "")
    if text == "0.5":  # the one decimal that MATH's authors take for its fraction
        return r"\frac{1}{2}"
    return re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", text)


def _with_braced_fractions(text: str) -> str:
    r"""Write `\frac12`, `\frac1{72}`, `\frac{1}2` and `\frac xy` with both parts in braces."""
    text = re.sub(r"\\frac([A-Za-z0-9])", r"\\frac{\1}", text)
    half_braced = re.compile(r"(\\frac\{[^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*\})([A-Za-z0-9])")
    while half_braced.search(text):  # an inner fraction is found after its outer one
        text = half_braced.sub(r"\1{\2}", text)
    return text


def _normalized_box(text: str) -> str | None:
    content = find_boxed(text)
    return None if content is None else normalize(content)


@dataclass(frozen=True)
class AnswerScoring:
    """A way to score answers."""

    part: str
    """Name of the part that is scored, for messages."""
    extract: Callable[[str], Any]
    """Return that part in a form that can be compared; None where an answer has none."""

    def matches(self, answer: str, reference: str) -> bool:
        """Return whether an answer is right; an answer without the part is wrong."""
        found = self.extract(answer)
        return found is not None and found == self.extract(reference)


SCORINGS: dict[Scoring, AnswerScoring] = {
    "final_number": AnswerScoring("final number", find_final_number),
    "boxed": AnswerScoring(r"\boxed{}", _normalized_box),
}


NEARLY_ALL = 0.9


def find_scoring(answers: Sequence[str]) -> tuple[Scoring | None, list[int]]:
    """Choose how custom data are scored: by the part that the training answers have, None if they have no such part.

    Returns:
        The part that at least nine tenths of the answers have, and the indices of those without it, which are mistakes.
    """
    lacking: dict[Scoring, list[int]] = {
        "final_number": [i for i, text in enumerate(answers) if MARK not in text or find_final_number(text) is None],
        "boxed": [i for i, text in enumerate(answers) if find_boxed(text) is None],
    }
    scoring = min(lacking, key=lambda name: len(lacking[name]))
    return (scoring, lacking[scoring]) if len(lacking[scoring]) <= (1 - NEARLY_ALL) * len(answers) else (None, [])
