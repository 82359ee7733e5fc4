"""A warm-up that the training did not last for, told when the process ends.

Trainer says when training ends. A loop of one's own just stops, and if its warm-up was longer, what it trained is plain LoRA,
which nobody should learn from a table of results.
"""

from __future__ import annotations

import atexit
from dataclasses import dataclass

from glora.messages import get_logger, is_main_process

logger = get_logger()


@dataclass(eq=False)
class WarmUp:
    """How far one allocator's warm-up is. It holds nothing of the model, so that it may outlive it."""

    steps: int
    made: int = 0

    def over(self) -> None:
        """The ranks were reallocated, or somebody else says that they were not."""
        if self in _unfinished:
            _unfinished.remove(self)


_unfinished: list[WarmUp] = []


def watch(steps: int) -> WarmUp:
    """A warm-up of so many steps begins; of several processes, the first is to speak of it."""
    warm_up = WarmUp(steps)
    if is_main_process():
        _unfinished.append(warm_up)
    return warm_up


@atexit.register
def tell_unfinished() -> None:
    """Say of each warm-up that began and did not end that its ranks are those of plain LoRA."""
    for made, steps in dict.fromkeys((each.made, each.steps) for each in _unfinished if each.made):
        logger.warning(
            "the process ends after %d of %d warm-up steps: the ranks were not reallocated, this is plain LoRA; lower "
            "warmup_steps=%d, train for longer, or resume it",
            made,
            steps,
            steps,
        )
    _unfinished.clear()
