"""Ways to make a trained adapter smaller, compared at equal size: energy kept, held-out loss and accuracy."""
