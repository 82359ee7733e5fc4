"""A run resumed with another rank or α than it began with.

PEFT rejects other ranks when it loads weights. glora gives the model the ranks of what is loaded, so it compares the adapter
with the one that the checkpoint was made with: weights trained at one scaling compute another function at another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig

from glora.lora.adapter import RankedAdapter
from glora.lora.peft_config import configured_scaling

REMEDY = "make the model with the LoraConfig that the checkpoint's run began with, or start a new run"


def scalings_of(adapter: RankedAdapter) -> dict[str, float]:
    """Return the scaling s_k of each matrix that has an adapter."""
    return {matrix.name: float(matrix.scaling) for matrix in adapter.present}


def check_same_adapter(state: Mapping[str, Any], adapter: RankedAdapter) -> None:
    """Compare the adapter with that of an allocator's saved state. Call it before the ranks follow the state.

    Raises:
        ValueError: the scalings differ, or the ranks that the adapter was made with are neither those that the saved run began
            with nor those that it had reached.
    """
    began = adapter.initial_ranks
    if began not in (state["initial_ranks"], state["ranks"]):
        name = next(name for name, rank in began.items() if rank != state["initial_ranks"].get(name))
        raise ValueError(
            f"{name} was made with rank {began[name]}, and the checkpoint's run began with rank "
            f"{state['initial_ranks'].get(name)}; {REMEDY}"
        )
    _check_scalings(adapter, state.get("scalings") or {})


def check_loaded_adapter(adapter: RankedAdapter) -> None:
    """Check that a checkpoint that has no state of an allocator, of plain LoRA, has the ranks and scalings of the model.

    The ranks have followed the weights by now; the scalings are those of the configuration beside the weights.

    Raises:
        ValueError: the weights had other ranks, or were trained with other scalings.
    """
    for name, rank in adapter.ranks.items():
        if rank != (began := adapter.initial_ranks[name]):
            raise ValueError(
                f"{name} was made with rank {began}, and the checkpoint, which has no allocation, has rank {rank}; {REMEDY}"
            )
    if isinstance(adapter.loaded, LoraConfig):
        config, names = adapter.loaded, [matrix.name for matrix in adapter.present]
        _check_scalings(adapter, {name: configured_scaling(config, name) for name in names})


def _check_scalings(adapter: RankedAdapter, saved: Mapping[str, float]) -> None:
    now = scalings_of(adapter)
    for name in now.keys() & saved.keys():
        if not math.isclose(now[name], saved[name], rel_tol=1e-6):
            raise ValueError(f"{name} has scaling {now[name]:g}, and the checkpoint {saved[name]:g}; {REMEDY}")
