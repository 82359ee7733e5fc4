"""Acceleration: plain LoRA's forward and backward pass as one fused step, `accelerate_lora`.

Imports `lora`; only the contents page `glora/__init__.py` and users import it.
"""
