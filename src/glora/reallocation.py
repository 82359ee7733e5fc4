"""The record of one change of ranks, and the line that the user sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from glora.messages import pluralize, shortened


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
        parameters: tuple[int, int],
        energy_kept: float | None,
    ) -> Reallocation:
        """Return the record of a change of ranks; `parameters` are their numbers before and after it."""
        return cls(
            step=step,
            matrices=len(after),
            changed=sum(after[name] != before[name] for name in after),
            without_adapter=tuple(name for name, rank in after.items() if rank == 0),
            smallest_rank=min(after.values()),
            largest_rank=max(after.values()),
            total_rank_before=sum(before.values()),
            total_rank=sum(after.values()),
            parameters_before=parameters[0],
            parameters_after=parameters[1],
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
