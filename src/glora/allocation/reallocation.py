"""What happened when the ranks changed, and the line that tells the user."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Reallocation:
    """What happened when the ranks changed; `str()` is the line that the user sees."""

    step: int
    matrices: int
    changed: int
    removed: int
    smallest_rank: int
    largest_rank: int
    total_rank: int
    parameters_before: int
    parameters_after: int

    def __str__(self) -> str:
        """One line: how many matrices changed, smallest and largest rank, parameters before and after."""
        ratio = self.parameters_after / self.parameters_before - 1
        return (
            f"step {self.step}: {self.changed} of {self.matrices} matrices changed rank, now {self.smallest_rank} to "
            f"{self.largest_rank} ({self.removed} without an adapter, {self.total_rank} in all); adapter parameters "
            f"{self.parameters_before:,} -> {self.parameters_after:,} ({ratio:+.1%})"
        )
