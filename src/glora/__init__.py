"""GLoRA: gradient-norm aware rank allocation for LoRA. This is the contents page: the public names and their homes.

A name is imported at its first use, so that `import glora`, and with it the command line, does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from glora._version import __version__

if TYPE_CHECKING:
    from glora.acceleration.accelerate import accelerate_lora
    from glora.allocation.shares import allocate_ranks
    from glora.allocator import RankAllocator
    from glora.checkpoints import last_complete_checkpoint
    from glora.compress import compress_adapter
    from glora.config import RankAllocationConfig
    from glora.export import export_uniform, save_allocation
    from glora.lora.public_resize import resize_lora_layer
    from glora.rank_log import RankLogCallback
    from glora.suggest import suggest_ranks
    from glora.trainer_callback import RankAllocationCallback

__all__ = [
    "RankAllocationCallback",
    "RankAllocationConfig",
    "RankAllocator",
    "RankLogCallback",
    "__version__",
    "accelerate_lora",
    "allocate_ranks",
    "compress_adapter",
    "export_uniform",
    "last_complete_checkpoint",
    "resize_lora_layer",
    "save_allocation",
    "suggest_ranks",
]

_HOMES = {
    "RankAllocationCallback": "trainer_callback",
    "RankAllocationConfig": "config",
    "RankAllocator": "allocator",
    "RankLogCallback": "rank_log",
    "accelerate_lora": "acceleration.accelerate",
    "allocate_ranks": "allocation.shares",
    "compress_adapter": "compress",
    "export_uniform": "export",
    "last_complete_checkpoint": "checkpoints",
    "resize_lora_layer": "lora.public_resize",
    "save_allocation": "export",
    "suggest_ranks": "suggest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'glora' has no attribute {name!r}")
    value = getattr(import_module(f"glora.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
