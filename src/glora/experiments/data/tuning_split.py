"""The tuning split: a part of the training examples, held out from training, on which a search judges settings.

Results are reported on a task's own evaluation split. A search never reads that split, because settings chosen on it would be
fitted to it. The held-out part is the same for every seed, method and process:

* Classes keep their shares, as nearly as whole examples allow.
* A group of examples (a module of stdlib-docs; a prompt with several answers) is held out whole or not at all.

scikit-learn's splitters do not accept a class with one example, and would draw others: scores of searches would change.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

from glora.experiments.data.task import DataError, Examples
from glora.messages import pluralize

TUNING_SPLIT = "tuning"
"""The split's name in `TaskData.evaluation`."""

ORDER_SEED = 1
"""Seed of the order in which examples are held out; differs from `task.LIMIT_SEED`."""


def hold_out(examples: Examples, share: float) -> tuple[Examples, Examples]:
    """Divide training examples into a part to train on and a part to judge by, each in the order of `examples`.

    Args:
        examples: the training examples, after their limit.
        share: the share to hold out; above 0 and below 1.

    Raises:
        DataError: one part would be empty.
    """
    groups = examples.groups
    labels = examples.columns.get("label") or [0] * len(examples)
    held = set(_by_classes(labels, share) if groups is None else _by_groups(groups, share))
    if not 0 < len(held) < len(examples):
        parts = (examples, "training example") if groups is None else (set(groups), "group of examples")
        raise DataError(
            f"held_out={share:g} of {pluralize(len(parts[0]), parts[1])} leaves none to {'train on' if held else 'judge by'}; "
            "use more examples or another share"
        )
    return examples.at([i for i in range(len(examples)) if i not in held]), examples.at(sorted(held))


def _members(keys: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    members: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        members.setdefault(key, []).append(i)
    return members


def _by_classes(labels: Sequence[int] | Sequence[float], share: float) -> list[int]:
    """Hold out the share of every class, rounded; a regression's float labels are one class."""
    members = _members([label if isinstance(label, int) else None for label in labels])
    held = []
    for stratum in sorted(members, key=str):
        random.Random(ORDER_SEED).shuffle(members[stratum])
        held += members[stratum][: round(share * len(members[stratum]))]
    return held


def _by_groups(groups: Sequence[str], share: float) -> list[int]:
    """Hold out whole groups, in random order, while each brings the part nearer to its share."""
    members = _members(groups)
    order = sorted(members, key=str)
    random.Random(ORDER_SEED).shuffle(order)
    wanted = share * len(groups)
    held: list[int] = []
    for group in order:
        if abs(len(held) + len(members[group]) - wanted) < abs(len(held) - wanted):
            held += members[group]
    return held
