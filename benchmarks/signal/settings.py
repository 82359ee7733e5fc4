"""The settings that are measured."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Setting:
    """A warm-up of uniform LoRA on all-MiniLM-L6-v2.

    Attributes:
        task: A sentence-pair task.
        batch_size, max_length: Pairs in a batch, and tokens of a pair at most.
        rank, alpha: Of LoRA, on every linear layer of the encoder.
        learning_rate, schedule: AdamW's. "constant" lets A move most; "linear" rises over 6 % of three warm-ups, then falls.
        steps: Where the norms are compared: after this many steps, as if the warm-up ended there.
    """

    task: str
    batch_size: int = 16
    max_length: int = 40
    rank: int = 8
    alpha: int = 16
    learning_rate: float = 2e-4
    schedule: str = "constant"
    steps: tuple[int, ...] = (40, 157)


SETTINGS = (Setting("pairs"), Setting("rte", max_length=64, steps=(40,)))
SEEDS = (0, 1, 2)
