"""What trains in several processes in a way that leaves rank allocation no gradients to see, or no matrices to resize."""

from __future__ import annotations

import torch
from torch import nn

if torch.distributed.is_available():
    from torch.distributed.fsdp import FullyShardedDataParallel


def refuse_engines(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Refuse what trains in several processes in a way that leaves no gradients, or no matrices, to work with.

    Raises:
        ValueError: DeepSpeed, or FullyShardedDataParallel (FSDP1).
    """
    engines = [type(engine).__mro__ for engine in (model, optimizer, getattr(optimizer, "optimizer", None))]
    if any(
        kind.__module__.startswith("deepspeed.") or kind.__name__.startswith("DeepSpeed")
        for mro in engines
        for kind in mro
    ):
        raise ValueError(
            "DeepSpeed reduces, clips, steps and clears within one call, and accelerate makes that call within "
            "backward(): there is no moment before a step at which its gradient accessors (safe_get_full_grad) could "
            "be asked, and its flat partitions of the parameters cannot change shape. Train with "
            "DistributedDataParallel, or with FSDP2 (fully_shard) where the base model does not fit one device; or "
            "get ranks with glora.suggest_ranks and give DeepSpeed that rank_pattern"
        )
    if not torch.distributed.is_available():
        return
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise ValueError(
            "FullyShardedDataParallel (FSDP1) puts the matrices of a layer into one flat parameter, which cannot "
            "change shape; use FSDP2 (torch.distributed.fsdp.fully_shard; fsdp_version: 2 in accelerate's "
            "configuration), or DistributedDataParallel"
        )
