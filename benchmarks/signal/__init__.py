"""Share of a rank budget that each way to read ‖∂L/∂Δ‖_F puts elsewhere than the exact norm does."""
