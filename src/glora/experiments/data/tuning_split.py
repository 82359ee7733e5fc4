"""The split on which settings are tuned: a part of the training examples, held out from training.

What is reported is measured on a task's own evaluation split. Settings that were chosen on it would be fitted to it, so a
search never reads it: it trains on a part of the training examples, and judges by the rest. The part is the same for every
seed, method and process:

* Classes keep their shares, as nearly as whole examples allow.
* Where examples come in groups (the modules of stdlib-docs; the same prompt with several answers), a group is held out whole
  or not at all, as the task's own splits are made.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

from glora.experiments.data.task import DataError, E, Rows
from glora.messages import pluralize

TUNING_SPLIT = "tuning"
"""The split's name in `TaskData.evaluation`."""

ORDER_SEED = 1
"""Of the order in which examples are held out; not that in which `Rows.limited` draws."""


def hold_out(examples: E, share: float) -> tuple[E, E]:
    """Divide training examples into those to train on and those to judge by.

    Args:
        examples: the training examples, after their limit.
        share: of them, how many are held out; above 0 and below 1.

    Returns:
        Both parts, each in the order of `examples`.

    Raises:
        DataError: one of the parts would be empty.
    """
    groups = examples.groups
    labels = examples.labels if isinstance(examples, Rows) else [0] * len(examples)
    held = set(_by_classes(labels, share) if groups is None else _by_groups(groups, share))
    if not 0 < len(held) < len(examples):
        parts = (examples, "training example") if groups is None else (set(groups), "group of examples")
        count = pluralize(len(parts[0]), parts[1])
        raise DataError(
            f"held_out={share:g} of {count} leaves none to {'train on' if held else 'judge by'}; use more examples or "
            "another share"
        )
    return examples.at([i for i in range(len(examples)) if i not in held]), examples.at(sorted(held))


def _by_classes(labels: Sequence[int] | Sequence[float], share: float) -> list[int]:
    """Of every class the share, rounded; of a regression's examples, whose labels are floats, of all together."""
    members: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label if isinstance(label, int) else None, []).append(i)
    held = []
    for stratum in sorted(members, key=str):
        random.Random(ORDER_SEED).shuffle(members[stratum])
        held += members[stratum][: round(share * len(members[stratum]))]
    return held


def _by_groups(groups: Sequence[str], share: float) -> list[int]:
    """Whole groups, in an order of their own, as long as one brings the part nearer to its share."""
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    order = sorted(members)
    random.Random(ORDER_SEED).shuffle(order)
    wanted = share * len(groups)
    held: list[int] = []
    for group in order:
        if abs(len(held) + len(members[group]) - wanted) < abs(len(held) - wanted):
            held += members[group]
    return held
