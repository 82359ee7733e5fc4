"""The record of one change of ranks, and the line that the user sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from glora.messages import get_logger, pluralize, shortened

logger = get_logger()
DOMINANT = 0.15
"""Share of the adapter's parameters above which a matrix is named, if ..."""
TAKEN_OVER = 1.5
"""... it is so many times its share before, since an embedding is large from the start, and ..."""
SEVERAL = 10
"""... there are so many matrices: of four, each has a quarter."""


@dataclass(frozen=True)
class Reallocation:
    """A change of ranks; `str()` is the line that the user sees.

    Attributes:
        step: Optimizer steps made.
        matrices, changed: Number of matrices, and of those whose rank changed.
        without_adapter: Names of the matrices at rank 0.
        smallest_rank, largest_rank: Over all matrices.
        total_rank_before, total_rank: Σ r_k.
        parameters_before, parameters_after: Σ r_k·(d_in + d_out).
        energy_kept: Share of the learned update's energy Σ σ² that a cut kept; None where gradient norms decided.
    """

    step: int
    matrices: int
    changed: int
    without_adapter: tuple[str, ...]
    smallest_rank: int
    largest_rank: int
    total_rank_before: int
    total_rank: int
    parameters_before: int
    parameters_after: int
    energy_kept: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "without_adapter", tuple(self.without_adapter))  # JSON has lists

    @classmethod
    def between(
        cls,
        step: int,
        before: Mapping[str, int],
        after: Mapping[str, int],
        costs: Mapping[str, int],
        energy_kept: float | None,
    ) -> Reallocation:
        """Return the record of a change of ranks; a rank of a matrix costs that many parameters."""
        return cls(
            step=step,
            matrices=len(after),
            changed=sum(after[name] != before[name] for name in after),
            without_adapter=tuple(name for name, rank in after.items() if rank == 0),
            smallest_rank=min(after.values()),
            largest_rank=max(after.values()),
            total_rank_before=sum(before.values()),
            total_rank=sum(after.values()),
            parameters_before=sum(rank * costs[name] for name, rank in before.items()),
            parameters_after=sum(rank * costs[name] for name, rank in after.items()),
            energy_kept=energy_kept,
        )

    def __str__(self) -> str:
        """Return one line: what was kept or changed, the ranks, parameters before and after, and who lost the adapter."""
        different = self.smallest_rank != self.largest_rank
        now = f"now {self.smallest_rank}{f' to {self.largest_rank}' if different else ''}"
        if self.energy_kept is None:
            what = f"{self.changed} of {self.matrices} matrices changed rank, {now} ({self.total_rank:,} in all)"
        else:
            what = (
                f"kept {self.energy_kept:.1%} of the learned update's energy in {self.total_rank:,} of "
                f"{self.total_rank_before:,} ranks, {now} in {pluralize(self.matrices, 'matrix')}"
            )
            if self.total_rank == self.total_rank_before:
                what += ", all that there are: a larger r would show whether more are needed"
        ratio = self.parameters_after / self.parameters_before - 1
        without = self.without_adapter
        lost = f"; {pluralize(len(without), 'matrix')} without an adapter: {shortened(without)}" if without else ""
        return (
            f"step {self.step}: {what}; adapter parameters {self.parameters_before:,} -> {self.parameters_after:,} "
            f"({ratio:+.1%}){lost}"
        )


def warn_of_dominant(before: Mapping[str, int], after: Mapping[str, int], costs: Mapping[str, int]) -> None:
    """Name the matrices that have taken over much of the adapter.

    Args:
        before: The ranks.
        after: Those of the reallocation.
        costs: Parameters of a rank of each matrix.
    """
    was, now = (_shares({name: rank * costs[name] for name, rank in ranks.items()}) for ranks in (before, after))
    taken = [f"{name} ({now[name]:.0%})" for name in now if now[name] > max(DOMINANT, TAKEN_OVER * was[name])]
    if taken and len(now) >= SEVERAL:
        logger.warning(
            "much of the adapter is now in %s: %s; max_rank bounds it, exclude_modules leaves it out",
            pluralize(len(taken), "matrix"),
            shortened(taken),
        )


def _shares(sizes: Mapping[str, int]) -> dict[str, float]:
    whole = sum(sizes.values())
    return {name: size / whole if whole else 0.0 for name, size in sizes.items()}
