"""Scores: what a warm-up tells about each matrix. For the allocator and `suggest`; uses `lora` and `distributed`."""
