"""Ways to train in several processes that leave rank allocation no gradients to read, or no matrices to resize."""

from __future__ import annotations

import torch
from torch import nn

if torch.distributed.is_available():
    from torch.distributed.fsdp import FullyShardedDataParallel


def check_engine(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Check that the training engine works with rank allocation."""
    engines = (model, optimizer, getattr(optimizer, "optimizer", None))
    kinds = [kind for engine in engines for kind in type(engine).__mro__]
    if any(kind.__module__.startswith("deepspeed.") or kind.__name__.startswith("DeepSpeed") for kind in kinds):
        # accelerate steps within backward(), so there is no moment to ask for gradients (safe_get_full_grad), and DeepSpeed's
        # flat partitions of the parameters cannot change shape
        raise ValueError(
            "DeepSpeed steps and clears gradients within backward(), so glora cannot read them; use FSDP2 (fully_shard) or "
            "DistributedDataParallel, or give DeepSpeed ranks from glora.suggest_ranks"
        )
    if torch.distributed.is_available() and any(isinstance(m, FullyShardedDataParallel) for m in model.modules()):
        raise ValueError(
            "FullyShardedDataParallel (FSDP1) has one flat parameter for several matrices, which cannot change shape; use "
            "FSDP2 (fully_shard; fsdp_version: 2 in accelerate), or DistributedDataParallel"
        )
