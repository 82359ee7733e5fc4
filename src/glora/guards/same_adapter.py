"""A run resumed with another rank or α than it began with.

PEFT rejects other ranks when it loads weights. glora gives the model the ranks of what is loaded, so it compares the adapter
with the one that the checkpoint was made with: weights trained at one scaling compute another function at another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glora.lora.adapter import RankedAdapter
from glora.lora.peft_config import SAME_CONFIG, check_scalings


def check_same_adapter(state: Mapping[str, Any], adapter: RankedAdapter) -> None:
    """Compare the adapter with that of an allocator's saved state. Call it before the ranks follow the state."""
    began = adapter.initial_ranks
    if began not in (state["initial_ranks"], state["ranks"]):
        name = next(name for name, rank in began.items() if rank != state["initial_ranks"].get(name))
        raise ValueError(
            f"{name} was made with rank {began[name]}, and the checkpoint's run began with rank "
            f"{state['initial_ranks'].get(name)}; {SAME_CONFIG}"
        )
    check_scalings(adapter.scalings, state["scalings"])


def check_loaded_adapter(adapter: RankedAdapter) -> None:
    """Check that a checkpoint that has no state of an allocator, of plain LoRA, has the ranks and scalings of the model.

    The ranks have followed the weights by now; the scalings are those of the configuration beside the weights.
    """
    for name, rank in adapter.ranks.items():
        if rank != (began := adapter.initial_ranks[name]):
            raise ValueError(
                f"{name} was made with rank {began}, and the checkpoint, which has no allocation, has rank {rank}; "
                f"{SAME_CONFIG}"
            )
    check_scalings(adapter.scalings, adapter.scalings_beside(adapter.loaded))
