"""GLoRA: gradient-norm aware rank allocation for LoRA."""

from glora._version import __version__

__all__ = ["__version__"]
