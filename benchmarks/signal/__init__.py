"""How much of a rank budget each way to read ‖∂L/∂Δ‖_F puts elsewhere than the exact norm does."""
