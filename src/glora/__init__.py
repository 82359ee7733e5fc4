"""GLoRA: gradient-norm aware rank allocation for LoRA.

The names are imported when they are first used, so that `import glora`, and with it the command line, costs no import of
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from glora._version import __version__

if TYPE_CHECKING:
    from glora.allocation_file import save_allocation
    from glora.allocator import RankAllocator
    from glora.checkpoints import last_complete_checkpoint
    from glora.configuration import RankAllocationConfig
    from glora.lora_acceleration import accelerate_lora
    from glora.probe import suggest_ranks
    from glora.rank_allocation import allocate_ranks
    from glora.rank_log import RankLogCallback
    from glora.resize import resize_lora_layer
    from glora.trainer_callback import RankAllocationCallback
    from glora.uniform_export import export_uniform

__all__ = [
    "RankAllocationCallback",
    "RankAllocationConfig",
    "RankAllocator",
    "RankLogCallback",
    "__version__",
    "accelerate_lora",
    "allocate_ranks",
    "export_uniform",
    "last_complete_checkpoint",
    "resize_lora_layer",
    "save_allocation",
    "suggest_ranks",
]

_HOMES = {
    "RankAllocationCallback": "trainer_callback",
    "RankAllocationConfig": "configuration",
    "RankAllocator": "allocator",
    "RankLogCallback": "rank_log",
    "accelerate_lora": "lora_acceleration",
    "allocate_ranks": "rank_allocation",
    "export_uniform": "uniform_export",
    "last_complete_checkpoint": "checkpoints",
    "resize_lora_layer": "resize",
    "save_allocation": "allocation_file",
    "suggest_ranks": "probe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'glora' has no attribute {name!r}")
    value = getattr(import_module(f"glora.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
