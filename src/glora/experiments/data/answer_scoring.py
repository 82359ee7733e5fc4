"""How a written answer is scored against the reference: which part of it counts, and when two are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glora.experiments.data.boxed_answer import find_boxed, normalise
from glora.experiments.data.final_number import find_final_number
from glora.experiments.data.task import Scoring


@dataclass(frozen=True)
class AnswerScoring:
    """One way to score."""

    what: str
    """The part that counts, for messages."""
    extract: Callable[[str], Any]
    """That part in the one form in which it is compared; None where an answer has none."""

    def matches(self, answer: str, reference: str) -> bool:
        """Whether an answer is right; one without the part that counts is wrong."""
        found = self.extract(answer)
        return found is not None and found == self.extract(reference)


def _normalised_box(text: str) -> str | None:
    content = find_boxed(text)
    return None if content is None else normalise(content)


SCORINGS: dict[Scoring, AnswerScoring] = {
    "final_number": AnswerScoring("final number", find_final_number),
    "boxed": AnswerScoring(r"\boxed{}", _normalised_box),
}
