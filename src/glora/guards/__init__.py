"""Guards: mistakes in a training loop, found when it starts, at its first step or at its end.

For the allocator and the callback; imports `lora` and `distributed`.
"""
