"""Scores: measures of each matrix during a warm-up, the norm of its gradient and the spectrum of its update.

For the allocator, the callback, `suggest` and `compress`; imports `lora` and `distributed`.
"""
