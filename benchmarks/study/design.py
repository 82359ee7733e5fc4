"""The arms, the runs, and the order in which they are made: docs/study-design.md as values.

A run is known by what determines it, so a run that several arms need is made once: LoRA of rank 8 is the uniform LoRA of
average rank 8, and the ceiling of average rank 2.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SIZES = (2.0, 8.0, 0.5)
"""Average ranks r̄, the most informative first. Every arm but the ceiling ends with the parameters of uniform LoRA of rank r̄."""
WIDE = 4
"""Starting rank of the cuts, and rank of the ceiling, as multiples of r̄."""
SEEDS = tuple(range(10))
TUNING_SEED = 100
"""The seed by which learning rates are chosen; it is in no comparison."""
EVERYWHERE, ALTERNATE, TOP_HALF, TOP_THIRD, MIDDLE_THIRD = (
    "all",
    "every second",
    "top half",
    "top third",
    "middle third",
)


@dataclass(frozen=True)
class Arm:
    """A way to get an adapter of average rank r̄.

    Attributes:
        method: The method, as `glora compare --methods` names it.
        label: Its name in tables.
        rank: The run's `rank`, as a multiple of r̄.
        where: The adapted matrices.
        sizes: The average ranks at which it exists.
        rates: Factors of the task's learning rate, each tried on the tuning seed.
        compressed: Whether the arm is the adapter of this run after `compress_adapter` to r̄.
    """

    method: str
    label: str
    rank: float = 1
    where: str = EVERYWHERE
    sizes: tuple[float, ...] = SIZES
    rates: tuple[float, ...] = (0.5, 1, 2)
    compressed: bool = False


ARMS: dict[str, Arm] = {
    "uniform": Arm("lora", "uniform LoRA"),
    "spectrum": Arm("glora:rule=spectrum:budget=parameters", "spectrum, from 4r̄"),
    "uniform_cut": Arm("glora:rule=uniform", "uniform cut, from 4r̄", sizes=(2.0, 8.0)),
    "wide": Arm("lora", "LoRA of rank 4r̄ (four times the parameters)", rank=WIDE),
    "compressed": Arm("lora", "LoRA of rank 4r̄, compressed to r̄", rank=WIDE, compressed=True),
    "gradient_norm": Arm("glora:budget=parameters", "gradient norm"),
    "shuffled": Arm("shuffled:budget=parameters", "gradient norm, ranks shuffled"),
    "adalora": Arm("adalora", "AdaLoRA", sizes=(2.0, 8.0), rates=(1, 2, 4)),
    "eva": Arm("eva", "EVA", sizes=(2.0, 8.0)),
    "top_half": Arm("lora", "LoRA of rank 2r̄ in the top half", rank=2, where=TOP_HALF, sizes=(2.0,)),
    "top_third": Arm("lora", "LoRA of rank 3r̄ in the top third", rank=3, where=TOP_THIRD, sizes=(2.0,)),
    "middle_third": Arm("lora", "LoRA of rank 3r̄ in the middle third", rank=3, where=MIDDLE_THIRD, sizes=(2.0,)),
}
GROUPS = (
    ("uniform", "spectrum", "uniform_cut", "wide", "compressed"),
    ("gradient_norm", "shuffled"),
    ("adalora", "eva", "top_half", "top_third", "middle_third"),
)
"""The arms in the order in which they are made. No prespecified comparison needs the last group, which has five seeds."""
ON_LLM = ("uniform", "spectrum", "uniform_cut", "wide", "compressed", "gradient_norm")
"""Arms that are affordable where a run takes a quarter of an hour."""

COMPARISONS: tuple[tuple[str, str, tuple[float, ...]], ...] = (
    ("spectrum", "uniform", SIZES),
    ("spectrum", "uniform_cut", (2.0, 8.0)),
    ("spectrum", "compressed", SIZES),
    ("gradient_norm", "uniform", SIZES),
    ("gradient_norm", "shuffled", SIZES),
)
"""The family of prespecified comparisons, over which Holm's correction runs within a task."""


class Run(NamedTuple):
    """Everything that determines a run."""

    task: str
    method: str
    rank: int
    where: str
    learning_rate: float
    seed: int


def run_of(task: str, arm: str, size: float, learning_rate: float, seed: int) -> Run:
    """Return the run of an arm.

    Half a rank on average is rank 1 in every second matrix for LoRA; what allocates ranks starts at rank 1, or at 4r̄ where it
    cuts, and gets half of that budget.
    """
    found = ARMS[arm]
    rank, method, where = found.rank * size, found.method, found.where
    if rank < 1:
        rank = 1
        if method == "lora":
            where = ALTERNATE
        else:
            method = f"{method}:average_rank={size:g}"
    return Run(task, method, round(rank), where, learning_rate, seed)


def chosen(names: Sequence[str], where: str) -> list[str]:
    """Return the matrices that an arm adapts.

    Args:
        names: All matrices in the model's order, layer by layer.
        where: The arm's `where`.
    """
    n = len(names)
    first, last = {
        EVERYWHERE: (0, n),
        ALTERNATE: (0, n),
        TOP_HALF: (n // 2, n),
        TOP_THIRD: (n - n // 3, n),
        MIDDLE_THIRD: (n // 3, n - n // 3),
    }[where]
    return list(names[first : last : 2 if where == ALTERNATE else 1])


@dataclass(frozen=True)
class TaskDesign:
    """The study on one task: its arms and seeds, and the learning rate in the middle of the three."""

    arms: tuple[str, ...]
    sizes: tuple[float, ...]
    seeds: tuple[int, ...]
    learning_rate: float

    def seeds_of(self, group: Sequence[str]) -> tuple[int, ...]:
        """Return the seeds of a group of arms."""
        return self.seeds[:5] if group == GROUPS[-1] else self.seeds


TASKS: dict[str, TaskDesign] = {
    "sst2": TaskDesign(tuple(ARMS), SIZES, SEEDS, 1.5e-3),
    "gsm8k": TaskDesign(ON_LLM, (2.0, 0.5), SEEDS[:3], 1e-3),
    "retrieval": TaskDesign(tuple(ARMS), SIZES, SEEDS[:5], 1.5e-3),
    "stdlib-docs": TaskDesign(tuple(ARMS), SIZES, SEEDS[:5], 1.5e-3),
}

Best = Callable[[str, str, float], float | None]
"""(task, arm, size) -> the learning rate that tuning chose; None while a run of the tuning is missing."""


def runs(tasks: Sequence[str], best: Best) -> Iterator[Run]:
    """Yield the runs of tasks in the order in which they are made; the same run may come twice.

    A cell is a group of arms at a size. The first cell of every task comes before the second of any, so that the comparisons
    that decide are there early, on all tasks.
    """
    for cells in itertools.zip_longest(*(_cells(task, best) for task in tasks), fillvalue=()):
        yield from itertools.chain(*cells)


def _cells(task: str, best: Best) -> list[list[Run]]:
    """Return the runs of each cell: the tuning, then the arms at the rates that it chose, seed by seed, and
    uniform LoRA at spectrum's.

    Last come all cells again at uniform LoRA's rate. Arms whose tuning is missing are left out.
    """
    design = TASKS[task]
    cells = [
        (size, [arm for arm in group if arm in design.arms and size in ARMS[arm].sizes], design.seeds_of(group))
        for group in GROUPS
        for size in design.sizes
    ]

    def at_rates(size: float, arms: Collection[str], seeds: Sequence[int], rates: Sequence[float | None]) -> list[Run]:
        return [
            run_of(task, arm, size, rate, seed) for seed in seeds for arm, rate in zip(arms, rates) if rate is not None
        ]

    tuned = [
        [
            run_of(task, arm, size, factor * design.learning_rate, TUNING_SEED)
            for arm in arms
            for factor in ARMS[arm].rates
        ]
        + at_rates(size, arms, seeds, [best(task, arm, size) for arm in arms])
        + at_rates(size, {"uniform"} & {*arms}, seeds, [best(task, "spectrum", size)])
        for size, arms, seeds in cells
    ]
    return tuned + [
        at_rates(size, arms, seeds, [best(task, "uniform", size)] * len(arms)) for size, arms, seeds in cells
    ]
