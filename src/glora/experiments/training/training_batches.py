"""Batches of the training data for a method that looks at some of them before training begins.

Their order is drawn from a generator of its own: a DataLoader without one takes its seed from the global generator, and the
training that follows would be another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch


def training_batches(
    rows: Any, collate: Callable[[list[Any]], Any], batch_size: int, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Whole batches without end, each pass over the data in another order.

    Args:
        rows: the training data, indexed by whole numbers.
        collate: makes a batch of rows, as Trainer's `data_collator`.
        batch_size: examples a batch; fewer where there are not so many.
        seed: of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = max(1, len(rows) - batch_size + 1)
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, whole, batch_size):
            yield dict(collate([rows[i] for i in order[start : start + batch_size]]))
