r"""The content of the last \boxed{} of a written answer, as MATH scores it.

Two answers are the same if they are the same text once what LaTeX can write in several ways is written in one. That decides
no mathematics: x+1 and 1+x differ, as they do for the authors of MATH, and so are accuracies comparable with theirs.

Sources: Hendrycks et al. 2021, "Measuring Mathematical Problem Solving With the MATH Dataset", and its code
(github.com/hendrycks/math, modeling/math_equivalence.py, `is_equiv`), whose rules these are: \tfrac, \dfrac, \frac12, a/b,
\sqrt3, \left, \right, \!, degrees, percent, dollars, units at the end, the 0 before a dot, "x =" and spaces. Beyond these,
after Lewkowycz et al. 2022, "Solving Quantitative Reasoning Problems with Language Models", appendix D.1: \text{} around
words, commas between thousands, a dot at the end.
"""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_WORDS = r"\\(?:text|mbox|mathrm|textbf|textit|textrm|mathbf|operatorname)"


def find_boxed(text: str) -> str | None:
    r"""What is inside the last \boxed{} or \fbox{}, braces within it included; None if there is none, or it does not end.

    Without braces (`\boxed 5`, as some references have it) it is what follows, up to a dollar sign or a space.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    rest = text[boxes[-1].end() :]
    if not rest.startswith("{"):
        bare = re.match(r"[^\s$]+", rest)
        return bare[0] if bare else None
    depth, position = 0, 0
    while position < len(rest):
        if rest[position] == "\\":  # an escaped brace is printed, and opens or closes nothing
            position += 2
            continue
        depth += {"{": 1, "}": -1}.get(rest[position], 0)
        if depth == 0:
            return rest[1:position]
        position += 1
    return None


def same_boxed(answer: str, reference: str) -> bool:
    r"""Whether two written answers have the same \boxed{}; an answer without one is wrong."""
    found, wanted = find_boxed(answer), find_boxed(reference)
    return found is not None and wanted is not None and normalise(found) == normalise(wanted)


def normalise(answer: str) -> str:
    """An answer's LaTeX in one of the ways in which it can be written."""
    text = re.sub(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])", " ", answer)
    text = text.replace("\\!", "").replace("\\\\", "\\")
    text = re.sub(r"\\[td]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])", "", text)
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))", "", text)
    text = text.replace("\\$", "").replace("$", "").replace("\\%", "").replace("%", "")
    text = _without_units(text)
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
    if text == "0.5":  # the one decimal that the authors take for its fraction
        return r"\frac{1}{2}"
    return re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", text)


def _without_units(text: str) -> str:
    r"""Without the \text{ ...} at the end of a value: `5 \text{ cm}` is 5; an answer that is nothing but words stays."""
    return re.sub(rf"(?<=\S)\s*{_WORDS}\s*\{{\s[^{{}}]*\}}(\s*\^\s*(\{{[^{{}}]*\}}|\w))?\s*$", "", text.strip())


def _with_braced_fractions(text: str) -> str:
    r"""`\frac12`, `\frac1{72}`, `\frac{1}2` and `\frac xy` with both parts in braces."""
    text = re.sub(r"\\frac([A-Za-z0-9])", r"\\frac{\1}", text)
    half_braced = re.compile(r"(\\frac\{[^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*\})([A-Za-z0-9])")
    while half_braced.search(text):  # one within another is found when the outer one is done
        text = half_braced.sub(r"\1{\2}", text)
    return text
