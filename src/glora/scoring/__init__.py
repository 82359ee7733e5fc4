"""Scores: what a warm-up tells about each matrix. Imported by the allocator; imports `lora` and `distributed`."""
