"""Guards: mistakes in a training loop that only its first step, or its end, can show."""
