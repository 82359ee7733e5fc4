"""Tensors and modules that `fully_shard` (FSDP2) has sharded over processes, seen from one of them.

The norm of a whole matrix follows from those of the shards,

    ‖G‖² = Σ_p ‖G_p‖²,

so one all-reduce of n numbers a step gives the norms of n matrices. The device does it, and nobody waits.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import nn

if dist.is_available():
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: torch.Tensor) -> bool:
    """Return whether other processes hold parts of this tensor."""
    return dist.is_available() and isinstance(tensor, DTensor)


def is_unit(module: nn.Module) -> bool:
    """Return whether `fully_shard` was called on this module; only a call of such a module gathers its parameters."""
    return dist.is_available() and isinstance(module, FSDPModule)


def class_of(module: nn.Module) -> type:
    """Return the class of a module before `fully_shard`, which replaces it by a subclass."""
    return (
        next(kind for kind in type(module).__mro__[1:] if kind is not FSDPModule) if is_unit(module) else type(module)
    )


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this process holds."""
    return cast(DTensor, tensor).to_local() if is_sharded(tensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, gathered from all processes if it is sharded."""
    return cast(DTensor, tensor).full_tensor() if is_sharded(tensor) else tensor


def norms_of_whole(norms: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return the norms of whole tensors from the norms of this process's shards, by one all-reduce.

    Args:
        norms: ‖T_p‖ of several tensors, shape (n,).
        factor: One of the tensors; all are sharded alike.
    """
    if not is_sharded(factor):
        return norms
    group = cast(DTensor, factor).device_mesh.get_group(sharded_dimension(factor))
    squares = norms.square()
    if dist.get_backend(group) == "gloo":
        squares = squares.cpu()
    dist.all_reduce(squares, group=group)
    return squares.sqrt().to(norms.device)


def sharded_dimension(factor: torch.Tensor) -> int:
    """Return the dimension of the device mesh along which a factor is sharded."""
    placements = cast(DTensor, factor).placements
    along = [i for i, placement in enumerate(placements) if placement.is_shard()]
    if len(along) != 1 or any(not p.is_shard() and not p.is_replicate() for p in placements):
        raise ValueError(
            f"the adapter's factors have placements {placements}, as under tensor parallelism; use fully_shard (FSDP2) or "
            "DistributedDataParallel, without tp_plan, or get ranks with glora.suggest_ranks"
        )
    return along[0]
