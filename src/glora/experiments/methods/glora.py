"""GLoRA in an experiment, and its control: the same ranks dealt out at random.

The control answers whether it matters which matrix gets which rank. It trains with the ranks that GLoRA would give, but
shuffled among matrices of the same shape, so that budget, parameters, cost and the moment of reallocation are GLoRA's.
"""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from typing import Any

from glora.allocator import RankAllocator
from glora.experiments.methods.adapted_model import AdaptedModel
from glora.experiments.methods.base import MethodContext
from glora.experiments.methods.limits import average_rank, start_rank
from glora.experiments.methods.uniform_lora import uniform_lora
from glora.scoring.spectrum import Spectra
from glora.trainer_callback import RankAllocationCallback


class ShuffledRankAllocator(RankAllocator):
    """Allocates as its base class does, then deals the ranks out at random among matrices of the same shape."""

    def allocate(self, learned: Spectra | None = None) -> dict[str, int]:
        """Return the base class's ranks, shuffled by the configuration's seed."""
        return shuffle_ranks(super().allocate(learned), self.shapes, self.config.seed)


class ShuffledRankAllocationCallback(RankAllocationCallback):
    """The callback of the control."""

    allocator_class = ShuffledRankAllocator


class AllocatedModel(AdaptedModel):
    """A model whose ranks are allocated after the warm-up."""

    def __init__(self, model: Any, callback: RankAllocationCallback) -> None:
        super().__init__(model, [callback])
        self._callback = callback

    def averaged_norms(self) -> dict[str, float] | None:
        """Module name -> g_k; reading it waits for the device."""
        return (self._callback.allocator and self._callback.allocator.norms) or None

    @property
    def warmup_steps(self) -> int:
        """T_warmup in steps; known once training has begun."""
        allocator = self._callback.allocator
        return int(allocator.config.warmup_steps or 0) if allocator else 0

    @property
    def reallocated_at(self) -> int | None:
        """The last step of the warm-up, once the ranks have changed."""
        reallocation = self._callback.allocator.reallocation if self._callback.allocator else None
        return reallocation.step if reallocation else None


def apply_glora(to: MethodContext) -> AllocatedModel:
    """Have the ranks of a LoRA model allocated."""
    return _allocated(to, RankAllocationCallback)


def apply_shuffled(to: MethodContext) -> AllocatedModel:
    """Have the ranks of a LoRA model allocated, and shuffled."""
    return _allocated(to, ShuffledRankAllocationCallback)


def _allocated(to: MethodContext, callback: type[RankAllocationCallback]) -> AllocatedModel:
    """Before a cut the adapter starts at `start_factor` times the average rank that the cut leaves."""
    allocation, start = dataclasses.replace(to.config.allocation, seed=to.config.seed), to.config.rank
    if allocation.cuts:
        average = average_rank(allocation, to.matrices, default=to.config.rank)
        start = start_rank(average, to.config.start_factor)
        if allocation.energy is None:
            allocation = dataclasses.replace(allocation, average_rank=average, total_rank=None)
    return AllocatedModel(uniform_lora(to, start), callback(allocation))


def shuffle_ranks(ranks: dict[str, int], shapes: dict[str, tuple[int, int]], seed: int) -> dict[str, int]:
    """Deal ranks out at random among matrices of the same shape, whose ranks cost the same.

    Args:
        ranks: module name -> rank.
        shapes: module name -> (d_out, d_in).
        seed: of the shuffle; the same ranks and seed give the same result in any order of the names.

    Returns:
        Module name -> rank, in the order of `ranks`; for each shape the same ranks as before.
    """
    random_order = random.Random(seed)
    alike = defaultdict(list)
    for name in sorted(ranks):
        alike[shapes[name]].append(name)
    dealt: dict[str, int] = {}
    for shape in sorted(alike):
        values = [ranks[name] for name in alike[shape]]
        random_order.shuffle(values)
        dealt |= zip(alike[shape], values)
    return {name: dealt[name] for name in ranks}
