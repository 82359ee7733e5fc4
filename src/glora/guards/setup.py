"""Adapters, optimizers, signals and saved states that do not go together, rejected before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import PeftConfig

from glora.config import RankAllocationConfig
from glora.lora.adapter import RankedAdapter
from glora.lora.layout import is_sharded
from glora.lora.optimizer_state import check_optimizer, held_by
from glora.lora.peft_config import SAME_CONFIG, check_scalings
from glora.messages import pluralize


def check_setup(adapter: RankedAdapter, optimizer: torch.optim.Optimizer, config: RankAllocationConfig) -> None:
    """Check that the optimizer trains the adapter, and that the configuration goes with it."""
    if config.signal == "delta_exact" and not config.cuts and any(map(is_sharded, adapter.factors)):
        raise ValueError(
            'signal="delta_exact" needs whole factors and gradients, and fully_shard spreads them over the processes; use '
            'signal="delta"'
        )
    check_optimizer(optimizer)
    frozen = [matrix.name for matrix in adapter.present if not matrix.zero_factor.requires_grad]
    if frozen:
        raise ValueError(
            f"the adapter of {len(frozen)} of {len(adapter.matrices)} matrices is frozen, e.g. of {frozen[0]!r}, and would "
            "lose its ranks; let lora_A and lora_B require gradients there, or give the trained matrices their own adapter"
        )
    check_held(adapter, optimizer)


def check_held(adapter: RankedAdapter, optimizer: torch.optim.Optimizer) -> None:
    """Check that the optimizer holds every trained factor: the state of another optimizer cannot follow the ranks."""
    held = held_by(optimizer)
    trained = [(m.name, f"lora_{k}", p) for m in adapter.present for k, p in zip("AB", m.factors) if p.requires_grad]
    if unknown := [(name, factor) for name, factor, parameter in trained if parameter not in held]:
        name, factor = unknown[0]
        kinds = " and ".join(sorted({factor for _, factor in unknown}))
        raise ValueError(
            f"the optimizer does not hold {kinds} of {len({name for name, _ in unknown})} of {len(adapter.matrices)} "
            f"matrices, e.g. {factor} of {name!r}; make one optimizer from the adapted model (A and B may have groups of "
            "their own), or freeze what it does not train"
        )


def check_active(adapter: RankedAdapter) -> None:
    """Check that the adapter is active, and so trained."""
    if any(matrix.deleted for matrix in adapter.matrices.values()):
        raise RuntimeError(
            f"adapter {adapter.name!r} was deleted from the model; detach this allocator, and give another RankAllocator the "
            "adapter that is trained"
        )
    layer = next((matrix.layer for matrix in adapter.present), None)
    if layer is not None and (adapter.name not in layer.active_adapters or layer.disable_adapters):
        active = "none is" if layer.disable_adapters else f"{', '.join(map(repr, layer.active_adapters))} is"
        raise RuntimeError(
            f"adapter {adapter.name!r} is not active ({active}), so it gets no gradient; call "
            f"model.set_adapter({adapter.name!r}), and enable adapters, before the forward pass"
        )


def check_same_matrices(names: Iterable[str], adapter: RankedAdapter) -> None:
    """Reject a saved state of other matrices than this adapter's."""
    if odd := sorted(set(names) ^ set(adapter.matrices)):
        raise ValueError(
            f"the allocator's state is of another model or other target_modules, by {pluralize(len(odd), 'name')}, e.g. "
            f"{odd[0]!r}. Make the model as the run began, with the same LoraConfig: loading gives it its ranks"
        )


def check_same_adapter(state: Mapping[str, Any], adapter: RankedAdapter) -> None:
    """Compare the adapter with that of an allocator's saved state. Call it before the ranks follow the state.

    PEFT rejects other ranks when it loads weights. glora gives the model the ranks of what is loaded, so it compares the
    adapter with the one that the run began with: weights trained at one scaling compute another function at another.
    """
    began = adapter.initial_ranks
    if began not in (state["initial_ranks"], state["ranks"]):
        name = next(name for name, rank in began.items() if rank != state["initial_ranks"].get(name))
        raise ValueError(
            f"{name} was made with rank {began[name]}, and the checkpoint's run began with rank "
            f"{state['initial_ranks'].get(name)}; {SAME_CONFIG}"
        )
    check_scalings(adapter.scalings, state["scalings"])


def check_loaded_adapter(adapter: RankedAdapter, config: PeftConfig | None) -> None:
    """Check that a checkpoint that has no state of an allocator, of plain LoRA, has the ranks and scalings of the model.

    The ranks have followed the weights by now; the scalings are those of the configuration beside the weights.
    """
    for name, rank in adapter.ranks.items():
        if rank != (began := adapter.initial_ranks[name]):
            raise ValueError(
                f"{name} was made with rank {began}, and the checkpoint, which has no allocation, has rank {rank}; "
                f"{SAME_CONFIG}"
            )
    check_scalings(adapter.scalings, adapter.scalings_beside(config))
