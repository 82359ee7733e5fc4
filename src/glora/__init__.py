"""GLoRA: gradient-norm aware rank allocation for LoRA."""

from glora._version import __version__
from glora.adapter import export_uniform
from glora.allocator import RankAllocator
from glora.configuration import RankAllocationConfig
from glora.rank_allocation import allocate_ranks
from glora.resize import resize_lora_layer
from glora.trainer_callback import RankAllocationCallback

__all__ = [
    "RankAllocationCallback",
    "RankAllocationConfig",
    "RankAllocator",
    "__version__",
    "allocate_ranks",
    "export_uniform",
    "resize_lora_layer",
]
